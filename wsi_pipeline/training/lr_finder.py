"""The learning rate finder (Smith 2017).

The rate rises over a few hundred steps; the suggestion is where the loss falls fastest.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wsi_pipeline.core.csv_io import format_csv
from wsi_pipeline.core.errors import ConfigError, ModelError, StoreError
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.store.commit import Staging, find_finished
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.patches import find_stores
from wsi_pipeline.training.config import TrainConfig, derive_seed
from wsi_pipeline.training.data import choose_cache, cut_batches, load_labelled, sample_epoch
from wsi_pipeline.training.fit import (
    FitJob,
    make_fabric,
    make_learner,
    measure_normalisation,
    open_part,
)
from wsi_pipeline.training.learner import Learner
from wsi_pipeline.training.loop import SplitPart, send_labels
from wsi_pipeline.training.optimise import Schedule, Steps
from wsi_pipeline.training.run import make_recipe
from wsi_pipeline.training.split import SplitChoice

KIND = "wsi learning rate sweep"
SWEEP_CSV = "lr_find.csv"
SWEEP_PNG = "lr_find.png"
SMOOTHING = 0.95
"""Share of the running mean of the loss that each step keeps."""
DIVERGED = 4.0
"""The sweep ends where the smoothed loss is this many times its lowest."""
SKIPPED = 10
"""Steps at either end that are ignored: the mean has just begun there, or the loss diverges."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Rates tried and the smoothed loss at each, (n,) each."""

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]

    @property
    def suggestion(self) -> float:
        """The rate at which the loss falls fastest per decade, before the loss is lowest.

        After that point it has diverged. Raises ModelError where the loss never falls.
        """
        if len(self.rates) < 2 * SKIPPED + 2:
            raise ModelError("the loss diverged at once; sweep again with a lower --high")
        usable = slice(SKIPPED, min(int(np.argmin(self.losses)) + 1, len(self.rates) - SKIPPED))
        rates, losses = self.rates[usable], self.losses[usable]
        slope = np.gradient(losses, np.log(rates)) if len(rates) > 1 else np.zeros(1)
        if slope.min() >= 0:
            raise ModelError(
                "the loss falls at none of the rates; sweep again with a higher --high or more"
                " --steps"
            )
        return float(rates[int(np.argmin(slope))])


def find_learning_rate(job: FitJob, steps: int, highest: float, listener: Listener) -> Sweep:
    """Sweep the rate over `steps` steps up to `highest`, a head's own rate in proportion.

    Ends early where the loss diverges.
    """
    job = replace(job, config=rise_to(job.config, highest))
    fabric = make_fabric(job.config)
    fabric.launch()
    cache = choose_cache(job.config.cache, job.patches, fabric.device)
    part = open_part(job.patches, job.division.train, cache, fabric.device)
    normalisation = measure_normalisation(part.pixels)
    learner = make_learner(job, fabric, normalisation, Steps(steps, steps))
    return sweep_learner(learner, part, job.config, steps, listener)


def rise_to(config: TrainConfig, highest: float) -> TrainConfig:
    """Return the configuration of a sweep up to `highest`."""
    before = config.optimisation
    head = before.head_learning_rate and before.head_learning_rate * highest / before.learning_rate
    swept = replace(before, learning_rate=highest, head_learning_rate=head)
    return replace(config, optimisation=swept, schedule=Schedule("rise"))


def sweep_learner(
    learner: Learner, part: SplitPart, config: TrainConfig, steps: int, listener: Listener
) -> Sweep:
    """Sweep with a learner whose rate rises."""
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for rate, loss in islice(_learn_forever(learner, part, config), steps):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed = mean / (1 - SMOOTHING ** (len(rates) + 1))
        if not math.isfinite(smoothed):
            break
        rates.append(rate)
        losses.append(smoothed)
        listener.progress(f"sweeping: step {len(rates)} of {steps}", len(rates), steps)
        if smoothed > DIVERGED * min(losses):
            break
    return Sweep(np.array(rates), np.array(losses))


def _learn_forever(
    learner: Learner, part: SplitPart, config: TrainConfig
) -> Iterator[tuple[float, float]]:
    """Yield the rate of each step and the loss before it, epoch after epoch."""
    draws = torch.Generator().manual_seed(derive_seed(config.seed, 0, 1))
    while True:
        drawn = sample_epoch(config.sampling, part.labels, part.patients, draws)
        batches = cut_batches(part.pixels.arrange(drawn, draws), config.batch_size)
        labels = send_labels(part.labels, batches, learner.fabric.device)
        for own, pixels in zip(labels, part.pixels.stream(batches), strict=True):
            rate = learner.learning_rate
            yield rate, float(learner.learn(learner.prepare(pixels, draws), own))


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Write the sweep as a table, and as a plot with the suggestion."""
    rows = zip(sweep.rates.tolist(), sweep.losses.tolist(), strict=True)
    table = format_csv(["learning_rate", "smoothed_loss"], rows, is_exact=True)
    (folder / SWEEP_CSV).write_text(table, newline="")
    plot_sweep(folder / SWEEP_PNG, sweep)


def read_sweep(folder: Path) -> Sweep:
    """Return the sweep that `write_sweep` wrote. Raises StoreError where its table is damaged."""
    try:
        table = np.loadtxt(folder / SWEEP_CSV, delimiter=",", skiprows=1, ndmin=2)
        return Sweep(table[:, 0], table[:, 1])
    except (OSError, ValueError, IndexError) as error:
        raise StoreError(
            f"{folder}: its {SWEEP_CSV} cannot be read ({error}); sweep again with --force"
        ) from error


def plot_sweep(path: Path, sweep: Sweep) -> None:
    """Plot the smoothed loss over the rate on a logarithmic axis."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx(sweep.rates, sweep.losses, label="smoothed loss")
    with suppress(ModelError):  # a sweep without a suggestion is plotted too
        label = f"steepest fall: {sweep.suggestion:.2g}"
        axes.axvline(sweep.suggestion, color="grey", linestyle=":", label=label)
    axes.set(xlabel="learning rate", ylabel="loss", ylim=(0, 1.1 * max(sweep.losses, default=1.0)))
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def sweep_stores(
    stores: Sequence[Path],
    out: Path,
    config: TrainConfig,
    choice: SplitChoice,
    *,
    steps: int,
    highest: float,
    pretrained: Path | None = None,
    force: bool = False,
    listener: Listener | None = None,
) -> Sweep:
    """Sweep over the training patches of stores and commit `out` with table and plot.

    If `out` already holds the same sweep, that one is returned.
    """
    if steps < 4 * SKIPPED:
        raise ConfigError(f"{steps} steps are too few for a sweep; take at least {4 * SKIPPED}")
    if not (math.isfinite(highest) and highest > 0):
        raise ConfigError(f"the highest rate is {highest}; it must be above 0")
    with hold_lock(out):
        pass  # fails before the stores are read if `out` cannot be written
    listener = listener or Listener()
    listener.working_on("reading the stores")
    patches = load_labelled(find_stores(list(stores)))
    division = choice.divide(patches, config.seed)
    recipe = make_recipe(patches, division, config, pretrained)
    staging = Staging(out, recipe | {"steps": steps, "highest": highest})
    with hold_lock(out):
        if find_finished(staging, KIND, force, [*patches.paths, pretrained]):
            return read_sweep(out)
        job = FitJob(config, patches, division, pretrained)
        sweep = find_learning_rate(job, steps, highest, listener)
        staging.begin()
        write_sweep(staging.product, sweep)
        staging.commit(KIND, {"steps": len(sweep.rates)})
    return sweep
