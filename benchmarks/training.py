"""The data path of training against what a network consumes: patches per second, and their ratio.

Data path: drawing an epoch, gathering batches (from memory, or from patch stores block by block),
augmentation. Network: one whole step on a batch that is already there. Rounds are interleaved,
medians are printed.

    python benchmarks/training.py [--arch idc_cnn] [--patches 20000] [--rounds 5]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

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
from wsi_pipeline.training.loop import Learner
from wsi_pipeline.training.optimise import Steps, TwoClasses

BATCH = 64
PATIENTS = 4
STEPS = 20
CPU = torch.device("cpu")
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
        learner.learn(batch, labels, draws)
    return STEPS * len(labels) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="idc_cnn")
    parser.add_argument("--patches", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        patches = make_stores(Path(folder), options.patches)
        members = np.arange(len(patches))
        memory, stores = (
            open_pixels(patches, members, cache, CPU) for cache in ("memory", "stores")
        )
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
            "from memory, default augmentation": lambda: time_epoch(
                patches, memory, Augmentation()
            ),
            "from memory, every augmentation": lambda: time_epoch(patches, memory, EVERYTHING),
            "from the stores, default augmentation": lambda: time_epoch(
                patches, stores, Augmentation()
            ),
            "from the stores, every augmentation": lambda: time_epoch(patches, stores, EVERYTHING),
        }
        figures: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(options.rounds):
            for name, measure in rows.items():
                figures[name].append(measure())
    consumed = statistics.median(next(iter(figures.values())))
    print(f"{'':<45}{'patches/s':>12}{'ratio':>9}")
    for name, values in figures.items():
        rate = statistics.median(values)
        print(f"{name:<45}{rate:>12,.0f}{rate / consumed:>9.1f}")


if __name__ == "__main__":
    main()
