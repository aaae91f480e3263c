"""Each engine against a plain loop on the same patches; lower precision and decisions.

Speed: plain eager PyTorch (fp32, NCHW, batches of 64, its own threads) and every engine that runs
here, in interleaved rounds on patches in memory; medians, and the ratio to the plain loop per
model. The precision is the one that `--precision auto` has on this device.

    python benchmarks/engines.py [--arch idc_cnn …] [--patches 1024] [--rounds 5]
        [--engines torch openvino …]

Decisions: with trained models and labelled stores instead, the share of patches whose decision
flips and the difference in AUROC.

    python benchmarks/engines.py --model MODEL … --stores STORE …

Domain: what the comparison with the training patches costs, with the models in the box: the same
patches with and without it, in turns.

    python benchmarks/engines.py --domain [--patches 2048] [--rounds 9]
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from wsi_pipeline.core.calibration import ModelTerms
from wsi_pipeline.core.choices import BF16, FP32
from wsi_pipeline.core.errors import WsiError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.limits import available_cores
from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.models.checkpoint import Checkpoint, load_checkpoint
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.device import find_bf16_unit
from wsi_pipeline.models.engines import ENGINES, list_candidates
from wsi_pipeline.models.loading import list_boxed, load_model
from wsi_pipeline.models.model import Model
from wsi_pipeline.models.opening import open_predictor
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.models.stains import measure_stains, sample_patches
from wsi_pipeline.store.patches import PatchStore

Pixels = NDArray[np.uint8]
Predict = Callable[[Pixels], NDArray[np.float32]]
ARCHITECTURES = ("idc_cnn", "wide_resnet_16_2", "wide_resnet_16_4")
PLAIN_BATCH = 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_model(architecture: str) -> Checkpoint:
    """Return fresh weights, whose batch normalisations have statistics of random patches."""
    torch.manual_seed(0)
    network = build_network(architecture, 50).train()
    with torch.no_grad():
        network(torch.randn(16, 3, 50, 50))
    half, quarter = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    spec = PatchSpec(50, 50, 4.0)
    return Checkpoint(
        architecture,
        spec,
        ("negative", "positive"),
        Normalisation(half, quarter),
        ModelTerms(),
        "none",
        network.state_dict(),
    )


def plain_loop(model: Checkpoint) -> Predict:
    """Return probabilities by the guide's plain loop."""
    network = model.build().to(DEVICE)
    mean = torch.tensor(model.normalisation.mean, device=DEVICE).view(3, 1, 1)
    std = torch.tensor(model.normalisation.std, device=DEVICE).view(3, 1, 1)

    @torch.inference_mode()
    def predict(pixels: Pixels) -> NDArray[np.float32]:
        found = []
        for start in range(0, len(pixels), PLAIN_BATCH):
            x = (
                torch.from_numpy(pixels[start : start + PLAIN_BATCH])
                .permute(0, 3, 1, 2)
                .contiguous()
                .to(DEVICE)
            )
            found.append(model.logit(network((x.float() / 255 - mean) / std)).cpu())
        return model.terms.alone.calibration.apply(torch.cat(found).numpy())

    return predict


def open_engines(model: Checkpoint, names: list[str]) -> dict[str, Predict]:
    """Return the engines that run this model here, ready for it."""
    found: dict[str, Predict] = {}
    for name in names:
        try:
            opened = open_predictor(model, DEVICE, name)
        except WsiError as error:
            print(f"  {name}: left out: {error}")
        else:
            found[f"{name} {opened.predictor.setting.precision}"] = opened.predictor
    return found


def compare_speed(architecture: str, names: list[str], patches: int, rounds: int) -> None:
    """Print medians of interleaved rounds for one network."""
    model = make_model(architecture)
    pixels = np.random.default_rng(0).integers(0, 256, (patches, 50, 50, 3), dtype=np.uint8)
    chosen = list_candidates(model, DEVICE)[0].setting
    runners: dict[str, Predict] = {"plain": plain_loop(model), **open_engines(model, names)}
    answers = {name: run(pixels) for name, run in runners.items()}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            started = time.perf_counter()
            run(pixels)
            seconds[name].append(time.perf_counter() - started)
    plain = statistics.median(seconds["plain"])
    for name, times in seconds.items():
        median = statistics.median(times)
        difference = np.abs(answers[name] - answers["plain"]).max()
        mark = "  <- auto" if name == f"{chosen.engine} {chosen.precision}" else ""
        print(
            f"{architecture:<18} {name:<20} {patches / median:9,.0f} patches/s"
            f" {plain / median:6.2f} x  {difference:8.1e} apart{mark}"
        )


def read_labelled(stores: list[Path]) -> tuple[Pixels, NDArray[np.int8]]:
    """Return every labelled patch of the stores."""
    pixels, labels = [], []
    for path in stores:
        store = PatchStore(path)
        read = np.concatenate(
            [
                store.read_block(block).pixels
                for block in range(-(-store.table.patches // store.table.block_size))
            ]
        )
        known = store.table.labels >= 0
        pixels.append(read[known])
        labels.append(store.table.labels[known])
    return np.concatenate(pixels), np.concatenate(labels)


def compare_decisions(path: Path, pixels: Pixels, labels: NDArray[np.int8]) -> None:
    """Print what each engine and precision changes, even if this device must emulate it."""
    model: Model = load_model(path)
    plain = Predictor(model, EngineSetting("torch", FP32, DEVICE))(pixels)
    threshold = model.terms.alone.count
    print(f"{path}: {model.architecture}, {len(labels)} patches, threshold {threshold:.3f}")
    for setting in [
        EngineSetting(name, precision, DEVICE)
        for name in ("torch", "openvino")
        for precision in (FP32, BF16)
    ]:
        if DEVICE not in ENGINES[setting.engine].precisions or ENGINES[setting.engine].find_fault(
            model, DEVICE
        ):
            continue
        given = Predictor(model, setting)(pixels)
        flips = np.mean((given >= threshold) != (plain >= threshold))
        auroc = roc_auc_score(labels, given) - roc_auc_score(labels, plain)
        apart = np.abs(given - plain)
        print(
            f"  {setting!s:<26} at most {apart.max():.1e} apart, mean {apart.mean():.1e};"
            f" {flips:.3%} of decisions flip; AUROC {auroc:+.5f}"
        )
        gc.collect()


def compare_domain(patches: int, rounds: int) -> None:
    """Print the share of a prediction that is the comparison of 200 patches of a slide."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (patches, 50, 50, 3), dtype=np.uint8)
    sample = sample_patches(patches)
    for name, path in list_boxed().items():
        model = load_checkpoint(path)
        (setting, *_) = [one.setting for one in list_candidates(model)]
        plain = Predictor(replace(model, domain=None), setting)
        compared = Predictor(model, setting)
        seconds: dict[str, list[float]] = {"without": [], "with": []}
        for number in range(rounds + 1):
            started = time.process_time()
            plain.predict(pixels)
            between = time.process_time()
            compared.predict(pixels, sample)
            measure_stains(pixels[sample])
            if number:
                seconds["without"].append(between - started)
                seconds["with"].append(time.process_time() - between)
        without, with_it = (statistics.median(times) for times in seconds.values())
        print(
            f"{name:<8} {setting!s:<26} {patches} patches: {without:.3f} s of CPU without,"
            f" {with_it:.3f} s with the domain: {with_it / without - 1:+.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="*", default=ARCHITECTURES)
    parser.add_argument("--engines", nargs="*", default=list(ENGINES))
    parser.add_argument("--patches", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--domain", action="store_true")
    parser.add_argument("--model", nargs="*", type=Path, default=[])
    parser.add_argument("--stores", nargs="*", type=Path, default=[])
    options = parser.parse_args()
    print(
        f"{DEVICE}, {available_cores()} cores, unit for bfloat16: {find_bf16_unit() or 'none'},"
        f" torch {torch.__version__}"
    )
    if options.domain:
        compare_domain(options.patches, options.rounds)
        return
    if options.model:
        pixels, labels = read_labelled(options.stores)
        for path in options.model:
            compare_decisions(path, pixels, labels)
        return
    for architecture in options.arch:
        compare_speed(architecture, options.engines, options.patches, options.rounds)


if __name__ == "__main__":
    main()
