"""Training on a GPU: as on the CPU, resumed as it was, in little memory, and how fast."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_facts import little_memory
from gpu_report import Report

from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.core.options import IngestOptions
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.models.outlines import NetworkOptions
from wsi_pipeline.runs.tile import ingest_patches
from wsi_pipeline.training.augment import NO_AUGMENTATION, Augmentation
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.data import MemoryPixels
from wsi_pipeline.training.fit import make_fabric
from wsi_pipeline.training.learner import Learner
from wsi_pipeline.training.optimise import Optimisation, Steps, TwoClasses
from wsi_pipeline.training.run import train
from wsi_pipeline.training.split import SplitChoice

PATIENTS = 4
EPOCH = 277_524
"""Patches of the public IDC data."""


class Stopped(Exception):
    """Ends a training after an epoch."""


def check_training(report: Report) -> None:
    """State that training on the device is training on the CPU."""
    with report.part("stores"):
        stores = make_stores(report.work, 160 if report.is_rehearsal else 4000)
    plain = TrainConfig(
        architecture="wide_resnet_10_1" if report.is_rehearsal else "idc_cnn",
        network=NetworkOptions(dropout=0.0),
        epochs=2,
        augmentation=NO_AUGMENTATION,
        device=report.device,
        precision="fp32",
        batch_size=32 if report.is_rehearsal else 64,
    )
    fits = Fits(stores, report.work)
    with report.part("parity"):
        check_parity(report, fits, plain)
    with report.part("everything"):
        precision = "fp32" if report.is_rehearsal else "fp16"
        optimisation = Optimisation(clip_norm=1.0, l1=1e-6, ema=0.9, label_smoothing=0.05)
        changed = replace(plain, augmentation=Augmentation(affine=1.0, hed=0.05))
        config = replace(changed, precision=precision, optimisation=optimisation)
        losses = [epoch.train_loss for epoch in fits.fit("everything", config)]
        report.state("every augmentation, EMA, clipping and L1", np.isfinite(losses).all(), losses)
    with report.part("resuming"):
        check_resuming(report, fits, replace(plain, augmentation=Augmentation()))
    with report.part("short memory"):
        check_memory(report, fits, plain)


def make_stores(folder: Path, count: int) -> Path:
    """Write stores of patches whose positive ones are darker, one store per patient."""
    rng, stacks = np.random.default_rng(0), folder / "stacks"
    stacks.mkdir()
    labels = rng.integers(0, 2, count)
    pixels = rng.integers(60, 256, (count, 50, 50, 3)) - 40 * labels[:, None, None, None]
    patients = np.array([f"patient {number % PATIENTS}" for number in range(count)])
    np.savez(
        stacks / "images.npz", images=pixels.astype(np.uint8), labels=labels, patients=patients
    )
    ingest_patches(stacks, folder / "stores", IngestOptions(mpp=4.0, layout="stacks"))
    return folder / "stores"


class Fits:
    """Trainings on the same stores."""

    def __init__(self, stores: Path, folder: Path) -> None:
        self.stores, self.folder = stores, folder

    def fit(self, name: str, config: TrainConfig, stop_after: int | None = None) -> list[Any]:
        """Train; return the epochs. Raises Stopped after the epoch that is named."""
        epochs: list[Any] = []

        def note(epoch: Any) -> None:
            epochs.append(epoch)
            if len(epochs) == stop_after:
                raise Stopped

        split, listener = SplitChoice(val_fraction=0.25), Listener(epoch_ended=note)
        train([self.stores], self.folder / name, config, split, listener=listener)
        return epochs

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """Return the weights that a training ended in."""
        return dict(load_checkpoint(self.folder / name / "model.safetensors").weights)


def check_parity(report: Report, fits: Fits, plain: TrainConfig) -> None:
    """State that losses are those of the CPU, from every cache and in every precision."""
    cpu = fits.fit("cpu", replace(plain, device="cpu"))
    report.measure("losses on the CPU", [epoch.train_loss for epoch in cpu])
    device = fits.fit("device", replace(plain, cache="device"))
    apart = abs(device[0].train_loss - cpu[0].train_loss)
    report.state("fp32: the first epoch's loss as on the CPU, to 2e-3", apart < 2e-3, apart)
    memory = fits.fit("memory", replace(plain, cache="memory"))
    apart = abs(memory[-1].train_loss - device[-1].train_loss)
    report.state("the same loss from either memory, to 1e-3", apart < 1e-3, apart)
    for precision in ("auto",) if report.is_rehearsal else ("auto", "fp16"):
        found = fits.fit(precision, replace(plain, precision=precision))
        apart = abs(found[-1].train_loss - cpu[-1].train_loss)
        report.state(f"{precision}: the last loss near the CPU's, to 0.05", apart < 0.05, apart)


def check_resuming(report: Report, fits: Fits, config: TrainConfig) -> None:
    """State that a training that was stopped ends as one that was not."""
    whole = fits.fit("whole", config)
    try:
        fits.fit("stopped", config, stop_after=1)
    except Stopped:
        rest = fits.fit("stopped", config)
    apart = abs(rest[-1].val_loss - whole[-1].val_loss)
    is_resumed = len(rest) == 1 and apart < 0.02
    report.state(
        "a stopped training is resumed", is_resumed, f"{len(rest)} epoch, {apart:.2g} apart"
    )
    one, other = fits.weights("whole"), fits.weights("stopped")
    report.measure("resumed to the same bits", all(one[n].equal(other[n]) for n in one))


def check_memory(report: Report, fits: Fits, plain: TrainConfig) -> None:
    """State that memory that runs out is one line with the remedy."""
    fact = "memory that runs out in training is one line with the remedy"
    if report.is_rehearsal:
        report.leave_out(fact)
        return
    found = "it was trained"
    with little_memory(0.1):
        try:
            fits.fit("short", replace(plain, batch_size=2048, cache="memory"))
        except EnvironmentFault as error:
            found = str(error)
    report.state(fact, "--batch-size" in found, found)


def measure_steps(report: Report) -> None:
    """Measure patches per second of whole steps, and the seconds of an epoch of the IDC data."""
    names = ("wide_resnet_10_1",) if report.is_rehearsal else ("idc_cnn", "wide_resnet_16_2")
    rng = np.random.default_rng(0)
    count = 256 if report.is_rehearsal else 16_384
    stock = torch.from_numpy(rng.integers(0, 256, (count, 50, 50, 3), dtype=np.uint8))
    for name in names:
        for batch in (32,) if report.is_rehearsal else (64, 512):
            with report.part(f"{name}, batches of {batch}"):
                config = TrainConfig(architecture=name, batch_size=batch, device=report.device)
                rate = time_steps(config, stock, 0.5 if report.is_rehearsal else 3.0)
                found = {"patches/s": rate, "seconds of an IDC epoch": EPOCH / rate}
                report.measure(f"{name}, batches of {batch}", found)


def time_steps(config: TrainConfig, stock: torch.Tensor, seconds: float) -> float:
    """Return patches per second of augmentation and whole steps."""
    fabric = make_fabric(config)
    fabric.launch()
    even = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    network = build_network(config.architecture, 50)
    learner = Learner(network, config, Steps(10**6, 10**6), even, fabric, TwoClasses())
    source = MemoryPixels(stock.to(fabric.device), fabric.device)
    labels = (torch.arange(config.batch_size) % 2).to(fabric.device)
    generator = torch.Generator().manual_seed(0)
    batches = torch.randperm(len(stock), generator=generator).split(config.batch_size)
    full = [batch for batch in batches if len(batch) == config.batch_size]
    started, done = time.perf_counter(), -1  # the first round makes everything ready
    while done < 1 or time.perf_counter() - started < seconds:
        for pixels in source.stream(full):
            loss = learner.learn(learner.prepare(pixels, generator), labels)
        float(loss)  # waits for the device
        if done < 0:
            started, done = time.perf_counter(), 0
        else:
            done += len(full) * config.batch_size
    return done / (time.perf_counter() - started)
