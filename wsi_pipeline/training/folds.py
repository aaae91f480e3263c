"""Cross-validation by patient: one training run per fold, and a summary of all.

Folds are drawn, or are the groups of a column of the sample sheet, such as the site. A group that
is held out serves for nothing in training: not even the threshold is chosen on it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from wsi_pipeline.core.choices import (
    FOLD,
    FOLDS_JSON,
    FOLDS_SUMMARY,
    MODEL_FILE,
    STORE_SUFFIX,
)
from wsi_pipeline.core.csv_io import format_csv
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.core.training_options import TrainOptions
from wsi_pipeline.models.loading import load_model
from wsi_pipeline.models.own_code import trust_own
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.slides.sheet import read_columns
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.manifest import is_product, read_manifest
from wsi_pipeline.store.patches import find_stores
from wsi_pipeline.training.calibrate import parse_threshold_rule
from wsi_pipeline.training.config import TrainConfig, read_config, read_split
from wsi_pipeline.training.data import LabelledPatches, load_labelled, read_pixels
from wsi_pipeline.training.fit import choose_setting
from wsi_pipeline.training.metrics import (
    METRIC_NAMES,
    Interval,
    bootstrap_intervals,
    score,
    show_metric,
)
from wsi_pipeline.training.report import format_interval
from wsi_pipeline.training.run import (
    METRICS_JSON,
    RunSettings,
    Trained,
    place_patches,
    train,
    train_division,
    write_json,
)
from wsi_pipeline.training.split import HeldOut, SplitChoice, hold_out_groups, split_folds

KIND = "wsi cross-validation"
FOLDS_CSV, HELD_OUT_CSV = "folds.csv", "held_out.csv"
PATCHES_AT_ONCE = 20_000
"""Patches of a group whose pixels are in memory together."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One metric over the folds."""

    mean: float
    deviation: float
    """Sample standard deviation between folds (n - 1)."""
    folds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Metrics of a group by the model that knows none of its patients."""

    fold: str
    """Name of the model's folder."""
    value: str
    """The group's value of the column."""
    patients: int
    scores: dict[str, float | None]
    """By metric."""
    intervals: dict[str, Interval]

    @property
    def line(self) -> str:
        """The metrics for the terminal, without the value, which is data of patients."""
        shown = [
            f"{METRIC_NAMES[name]} {show_metric(self.scores[name])}"
            f" ({format_interval(self.intervals.get(name))})"
            for name in ("auroc", "balanced_accuracy")
        ]
        return f"{self.fold}, {self.patients} patients held out: {', '.join(shown)}"


@dataclass(frozen=True, slots=True)
class FoldsResult:
    """A finished cross-validation."""

    folder: Path
    metrics: dict[str, Spread]
    held_out: tuple[HeldOutScores, ...] = ()
    """Scores of each held-out group; empty where folds were drawn."""

    def __str__(self) -> str:
        rows = [
            f"  {name.replace('_', ' '):<30} {spread.mean:.3f} ± {spread.deviation:.3f}"
            for name, spread in self.metrics.items()
        ]
        whose = "held-out" if self.held_out else "validation"
        head = f"{whose} patients of all folds, mean ± standard deviation between folds:"
        return "\n".join([*(one.line for one in self.held_out), head, *rows])


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


def train_held_out(
    stores: Sequence[Path],
    out: Path,
    config: TrainConfig,
    column: str,
    choice: SplitChoice,
    sheet: Mapping[str, Mapping[str, str]] | None = None,
    **settings: Unpack[RunSettings],
) -> FoldsResult:
    """Train once for each group of a column into `out`/fold-1 …, without the group's patients.

    Each model is judged on the group that it does not know. `sheet` has the columns of each store
    by name, in place of those that the stores record. Raises as `train` does.
    """
    listener = settings.get("listener") or Listener()
    listener.working_on("reading the stores")
    patches = load_labelled(find_stores(list(stores)))
    columns = patches.columns
    if sheet is not None:
        names = (path.name.removesuffix(STORE_SUFFIX) for path in patches.paths)
        columns = tuple(sheet.get(name, {}) for name in names)
    groups = hold_out_groups(patches, column, columns, choice, config.seed)
    runs = [out / f"{FOLD}{number}" for number in range(1, len(groups) + 1)]
    for run, group in zip(runs, groups, strict=True):
        train_division(patches, group.split.divide(patches.patients), run, config, **settings)

    def judge() -> list[HeldOutScores]:
        listener.working_on("judging each model on the group that it does not know")
        pairs = zip(runs, groups, strict=True)
        return [_judge(run, group, patches, config) for run, group in pairs]

    values = [group.value for group in groups]
    return _summarise(out / FOLDS_SUMMARY, runs, {"column": column, "values": values}, judge)


def _judge(
    run: Path, group: HeldOut, patches: LabelledPatches, config: TrainConfig
) -> HeldOutScores:
    """Return the metrics of a group's patches by a model, at the model's own threshold."""
    model = load_model(run / MODEL_FILE, trust_own(config.code))
    predictor = Predictor(model, choose_setting(config))
    parts = range(0, len(group.members), PATCHES_AT_ONCE)
    members = (group.members[start : start + PATCHES_AT_ONCE] for start in parts)
    logits = np.concatenate(
        [predictor.predict_logits(read_pixels(patches, own)) for own in members]
    )
    known = place_patches(patches, group.members, logits)
    probability, cut = known.apply(model.terms.on_grid), model.terms.on_grid.count
    scores = score(known.labels, probability, cut)
    return HeldOutScores(
        run.name,
        group.value,
        len(np.unique(known.patients)),
        {name: getattr(scores, name) for name in METRIC_NAMES},
        bootstrap_intervals(known.labels, probability, known.patients, cut, seed=config.seed),
    )


def _summarise(
    folder: Path,
    runs: Sequence[Path],
    grouping: Mapping[str, Any] | None = None,
    judge: Callable[[], list[HeldOutScores]] = list,
) -> FoldsResult:
    recipe: dict[str, Any] = {"folds": [read_manifest(run).content_digest for run in runs]}
    staging = Staging(folder, recipe if grouping is None else recipe | {"held_out": grouping})
    with hold_lock(folder):
        # Overwritten without asking if it is outdated: everything in it follows from the folds.
        is_there = is_product(folder) and read_manifest(folder).recipe == staging.recipe
        held_out = _read_held_out(folder) if is_there else judge()
        metrics = _measure_spread([each.scores for each in held_out] or _read_scores(runs))
        if not is_there:
            staging.begin()
            _write_summary(staging.product, runs, metrics, held_out)
            staging.commit(KIND, {"folds": len(runs)})
    return FoldsResult(folder, metrics, tuple(held_out))


def _read_held_out(folder: Path) -> list[HeldOutScores]:
    record = json.loads((folder / FOLDS_JSON).read_bytes()).get("held_out", [])
    return [
        HeldOutScores(**entry | {"intervals": {k: tuple(v) for k, v in entry["intervals"].items()}})
        for entry in record
    ]


def _read_scores(runs: Sequence[Path]) -> list[dict[str, float | None]]:
    """Return the validation metrics of each fold, at its own threshold."""
    return [json.loads((run / METRICS_JSON).read_bytes())["scores"] for run in runs]


def _measure_spread(scores: Sequence[Mapping[str, float | None]]) -> dict[str, Spread]:
    """Return every metric that all folds have."""
    by_name = {name: tuple(fold[name] for fold in scores) for name in METRIC_NAMES}
    return {
        name: Spread(float(np.mean(known)), float(np.std(known, ddof=1)), known)
        for name, values in by_name.items()
        if len(known := tuple(value for value in values if value is not None)) == len(values)
    }


def _write_summary(
    folder: Path,
    runs: Sequence[Path],
    metrics: dict[str, Spread],
    held_out: Sequence[HeldOutScores],
) -> None:
    header = ["figure", "mean", "standard_deviation", *(run.name for run in runs)]
    rows = ([name, item.mean, item.deviation, *item.folds] for name, item in metrics.items())
    (folder / FOLDS_CSV).write_text(format_csv(header, rows), encoding="utf-8", newline="")
    spreads = {
        name: {"mean": item.mean, "standard_deviation": item.deviation}
        for name, item in metrics.items()
    }
    models = {run.name: f"../{run.name}/{MODEL_FILE}" for run in runs}
    record: dict[str, Any] = {"figures": spreads, "models": models}
    if held_out:
        record["held_out"] = [asdict(each) for each in held_out]
        _write_held_out(folder / HELD_OUT_CSV, held_out)
    write_json(folder / FOLDS_JSON, record)


def _write_held_out(path: Path, held_out: Sequence[HeldOutScores]) -> None:
    """Write a row for each group: its metrics with their intervals."""
    ends = [f"{name}_{end}" for name in METRIC_NAMES for end in ("low", "high")]
    rows = [
        [
            *(each.fold, each.value, each.patients, *each.scores.values()),
            *(end for name in METRIC_NAMES for end in each.intervals.get(name, (None, None))),
        ]
        for each in held_out
    ]
    table = format_csv(["fold", "held_out", "patients", *METRIC_NAMES, *ends], rows)
    path.write_text(table, encoding="utf-8", newline="")


def train_stores(
    stores: Sequence[Path], out: Path, options: TrainOptions, listener: Listener | None = None
) -> Trained | FoldsResult:
    """Train as the options say: once, once per fold, or per group. Raises as `train` does."""
    config, choice = read_config(options), read_split(options)
    settings: RunSettings = {
        "pretrained": options.weights,
        "rule": parse_threshold_rule(str(options.threshold)),
        "force": options.force,
        "resume": options.resume,
        "listener": listener,
    }
    if options.hold_out_by is not None:
        columns = None if options.sheet is None else read_columns(options.sheet)
        return train_held_out(stores, out, config, options.hold_out_by, choice, columns, **settings)
    if options.folds is None:
        return train(stores, out, config, choice, **settings)
    return train_folds(stores, out, config, options.folds, choice.test_patients, **settings)
