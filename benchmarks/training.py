"""Whole `wsi train` processes against a plain loop, and the data path against a network.

Whole processes, with `--epochs`: `wsi train` in turns with `plain_training.py` (eager, fp32, one
step after another), and with another version of `wsi` where `--before` says how it starts. Wall and
CPU seconds for 5,400 training patches, start-up, validation and report included, and their ratios.

Data path: drawing an epoch, gathering batches (from memory, or from patch stores block by block),
augmentation. Network: one whole step on a batch that is already there. Rounds are interleaved,
medians are printed.

    python benchmarks/training.py [--arch idc_cnn] [--patches 20000] [--rounds 5]
    python benchmarks/training.py --epochs 2 [--arch wide_resnet_16_2] [--stores STORES]
        [--before COMMAND] [--rounds 3]
"""

import argparse
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from stopwatch import Timed, measure
from tiling import describe_machine

from wsi_pipeline.core.options import IngestOptions
from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.runs.tile import ingest_patches
from wsi_pipeline.training.augment import Augmentation
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.data import (
    LabelledPatches,
    PixelSource,
    cut_batches,
    load_labelled,
    open_pixels,
    sample_epoch,
)
from wsi_pipeline.training.fit import make_fabric, measure_normalisation
from wsi_pipeline.training.learner import Learner
from wsi_pipeline.training.optimise import Steps, TwoClasses
from wsi_pipeline.training.split import SplitChoice

BATCH = 64
PATIENTS = 4
STEPS = 20
CPU = torch.device("cpu")
EPOCH = 5_400
"""Patches for which whole processes are compared: those of the public IDC sample, nearly."""
PLAIN = Path(__file__).with_name("plain_training.py")
PYTHON = [sys.executable, "-W", "ignore"]
WSI = [*PYTHON, "-c", "import sys; sys.argv[0] = 'wsi'; from wsi_cli.main import wsi; wsi()"]
EVERYTHING = Augmentation(affine=1.0, hed=0.05)


def make_stores(folder: Path, count: int) -> LabelledPatches:
    """Write stores of random patches, one per patient, with `wsi ingest`."""
    rng = np.random.default_rng(0)
    stacks = folder / "stacks"
    stacks.mkdir()
    np.savez(
        stacks / "images.npz",
        images=rng.integers(0, 256, (count, 50, 50, 3), dtype=np.uint8),
        labels=rng.integers(0, 2, count),
        patients=np.array([f"patient {k % PATIENTS}" for k in range(count)]),
    )
    ingest_patches(stacks, folder / "stores", IngestOptions(mpp=4.0, layout="stacks"))
    return load_labelled(sorted((folder / "stores").glob("*.patches.zarr")))


def time_epoch(patches: LabelledPatches, source: PixelSource, augmentation: Augmentation) -> float:
    """Return patches per second of one epoch without a network."""
    draws = torch.Generator().manual_seed(0)
    started = time.perf_counter()
    order = source.arrange(sample_epoch("shuffle", patches.labels, patches.patients, draws), draws)
    for pixels in source.stream(cut_batches(order, BATCH)):
        augmentation.apply((pixels.float() / 255).permute(0, 3, 1, 2), draws)
    return len(patches) / (time.perf_counter() - started)


def time_network(learner: Learner, batch: torch.Tensor, labels: torch.Tensor) -> float:
    """Return patches per second of whole training steps on one batch."""
    draws = torch.Generator().manual_seed(0)
    started = time.perf_counter()
    for _ in range(STEPS):
        learner.learn(learner.prepare(batch, draws), labels)
    return STEPS * len(labels) / (time.perf_counter() - started)


def compare_processes(stores: Path, out: Path, options: argparse.Namespace) -> None:
    """Train in whole processes, in turns, the first one changing; print seconds and ratios."""
    patches = load_labelled(sorted(stores.glob("*.patches.zarr")))
    seen = options.epochs * len(SplitChoice().divide(patches, 0).train)
    more = ["--arch", options.arch, "--epochs", str(options.epochs)]
    wsi = ["train", str(stores), "--out", str(out), *more]
    ways = {
        "plain, eager, fp32": [
            *PYTHON,
            str(Path(__file__).with_name("plain_training.py")),
            str(stores),
            *more,
        ],
        "wsi train": [*WSI, *wsi],
        "wsi train --precision fp32": [*WSI, *wsi, "--precision", "fp32"],
    }
    if options.before:
        ways["wsi train, before"] = [*shlex.split(options.before), *wsi]
    found: dict[str, list[Timed]] = {name: [] for name in ways}
    for number in range(options.rounds):
        for name in [*ways][:: -1 if number % 2 else 1]:
            shutil.rmtree(out, ignore_errors=True)
            found[name].append(measure(ways[name]))
    plain_wall, plain_cpu = middle(found["plain, eager, fp32"])
    print(f"{options.arch}, {options.epochs} epochs, seconds for {EPOCH:,} patches")
    print(f"{'':<30}{'wall':>9}{'ratio':>8}{'CPU':>9}{'ratio':>8}")
    for name, runs in found.items():
        wall, cpu = middle(runs)
        share = EPOCH / seen
        print(
            f"{name:<30}{wall * share:>9.1f}{plain_wall / wall:>8.2f}"
            f"{cpu * share:>9.1f}{plain_cpu / cpu:>8.2f}"
        )


def middle(runs: list[Timed]) -> tuple[float, float]:
    """Return the medians of wall and CPU seconds of some runs."""
    walls, cpus = ([getattr(run, name) for run in runs] for name in ("total_wall", "total_cpu"))
    return statistics.median(walls), statistics.median(cpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="idc_cnn")
    parser.add_argument("--patches", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="compare whole processes of so many epochs")
    parser.add_argument("--stores", type=Path, help="labelled patch stores, instead of random ones")
    parser.add_argument("--before", metavar="COMMAND", help="starts another version of wsi")
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if options.epochs is None:
            compare_data_path(folder, options)
            return
        if options.stores is None:
            make_stores(folder, options.patches)
        compare_processes(options.stores or folder / "stores", folder / "trained", options)


def compare_data_path(folder: Path, options: argparse.Namespace) -> None:
    """Print patches per second of the data path beside those of a network."""
    patches = make_stores(folder, options.patches)
    members = np.arange(len(patches))
    memory, stores = (open_pixels(patches, members, cache, CPU) for cache in ("memory", "stores"))
    config = TrainConfig(architecture=options.arch, device="cpu")
    fabric = make_fabric(config)
    learner = Learner(
        build_network(options.arch, 50),
        config,
        Steps(1, 1),
        measure_normalisation(memory),
        fabric,
        TwoClasses(),
    )
    batch = next(iter(memory.stream([torch.arange(BATCH)])))
    labels = torch.from_numpy(patches.labels[:BATCH].astype(np.int64))
    rows: dict[str, Callable[[], float]] = {
        f"network ({options.arch}, whole steps)": lambda: time_network(learner, batch, labels),
        "from memory, default augmentation": lambda: time_epoch(patches, memory, Augmentation()),
        "from memory, every augmentation": lambda: time_epoch(patches, memory, EVERYTHING),
        "from the stores, default augmentation": lambda: time_epoch(
            patches, stores, Augmentation()
        ),
        "from the stores, every augmentation": lambda: time_epoch(patches, stores, EVERYTHING),
    }
    figures: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(options.rounds):
        for name, time_row in rows.items():
            figures[name].append(time_row())
    consumed = statistics.median(next(iter(figures.values())))
    print(f"{'':<45}{'patches/s':>12}{'ratio':>9}")
    for name, values in figures.items():
        rate = statistics.median(values)
        print(f"{name:<45}{rate:>12,.0f}{rate / consumed:>9.1f}")


if __name__ == "__main__":
    main()
