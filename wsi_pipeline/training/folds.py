"""Cross-validation by patient: one training run per fold, and a summary of all."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np

from wsi_pipeline.core.choices import FOLD, FOLDS_JSON, FOLDS_SUMMARY, MODEL_FILE
from wsi_pipeline.core.csv_io import format_csv
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.core.training_options import TrainOptions
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.manifest import is_product, read_manifest
from wsi_pipeline.store.patches import find_stores
from wsi_pipeline.training.calibrate import parse_threshold_rule
from wsi_pipeline.training.config import TrainConfig, read_config, read_split
from wsi_pipeline.training.data import load_labelled
from wsi_pipeline.training.metrics import METRIC_NAMES
from wsi_pipeline.training.run import (
    METRICS_JSON,
    RunSettings,
    Trained,
    train,
    train_division,
    write_json,
)
from wsi_pipeline.training.split import split_folds

KIND = "wsi cross-validation"
FOLDS_CSV = "folds.csv"


@dataclass(frozen=True, slots=True)
class Spread:
    """One metric over the folds."""

    mean: float
    deviation: float
    """Sample standard deviation between folds (n - 1)."""
    folds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class FoldsResult:
    """A finished cross-validation."""

    folder: Path
    metrics: dict[str, Spread]

    def __str__(self) -> str:
        rows = (
            f"  {name.replace('_', ' '):<30} {spread.mean:.3f} ± {spread.deviation:.3f}"
            for name, spread in self.metrics.items()
        )
        head = "validation patients of all folds, mean ± standard deviation between folds:"
        return "\n".join([head, *rows])


def train_folds(
    stores: Sequence[Path],
    out: Path,
    config: TrainConfig,
    folds: int,
    test_patients: Sequence[str] = (),
    **settings: Unpack[RunSettings],
) -> FoldsResult:
    """Train once per fold into `out`/fold-1 …, and write the metrics' spread to `out`/summary.

    Folds that are finished are not trained again. Raises as `train` does.
    """
    (settings.get("listener") or Listener()).working_on("reading the stores")
    patches = load_labelled(find_stores(list(stores)))
    splits = split_folds(
        patches.patients, patches.labels, folds, test_patients=test_patients, seed=config.seed
    )
    runs = [out / f"{FOLD}{number}" for number in range(1, len(splits) + 1)]
    for run, split in zip(runs, splits, strict=True):
        train_division(patches, split.divide(patches.patients), run, config, **settings)
    return _summarise(out / FOLDS_SUMMARY, runs)


def _summarise(folder: Path, runs: Sequence[Path]) -> FoldsResult:
    metrics = _measure_spread(runs)
    staging = Staging(folder, {"folds": [read_manifest(run).content_digest for run in runs]})
    with hold_lock(folder):
        # Overwritten without asking if it is outdated: everything in it follows from the folds.
        if not (is_product(folder) and read_manifest(folder).recipe == staging.recipe):
            staging.begin()
            _write_summary(staging.product, runs, metrics)
            staging.commit(KIND, {"folds": len(runs)})
    return FoldsResult(folder, metrics)


def _measure_spread(runs: Sequence[Path]) -> dict[str, Spread]:
    """Return every metric that all folds have, each fold at its own threshold."""
    scores = [json.loads((run / METRICS_JSON).read_bytes())["scores"] for run in runs]
    by_name = {name: tuple(fold[name] for fold in scores) for name in METRIC_NAMES}
    return {
        name: Spread(float(np.mean(values)), float(np.std(values, ddof=1)), values)
        for name, values in by_name.items()
        if None not in values
    }


def _write_summary(folder: Path, runs: Sequence[Path], metrics: dict[str, Spread]) -> None:
    header = ["figure", "mean", "standard_deviation", *(run.name for run in runs)]
    rows = ([name, item.mean, item.deviation, *item.folds] for name, item in metrics.items())
    (folder / FOLDS_CSV).write_text(format_csv(header, rows), encoding="utf-8", newline="")
    spreads = {
        name: {"mean": item.mean, "standard_deviation": item.deviation}
        for name, item in metrics.items()
    }
    models = {run.name: f"../{run.name}/{MODEL_FILE}" for run in runs}
    write_json(folder / FOLDS_JSON, {"figures": spreads, "models": models})


def train_stores(
    stores: Sequence[Path], out: Path, options: TrainOptions, listener: Listener | None = None
) -> Trained | FoldsResult:
    """Train as the options say: once, or once per fold. Raises as `train` does."""
    config, choice = read_config(options), read_split(options)
    settings: RunSettings = {
        "pretrained": options.weights,
        "rule": parse_threshold_rule(str(options.threshold)),
        "force": options.force,
        "resume": options.resume,
        "listener": listener,
    }
    if options.folds is None:
        return train(stores, out, config, choice, **settings)
    return train_folds(stores, out, config, options.folds, choice.test_patients, **settings)
