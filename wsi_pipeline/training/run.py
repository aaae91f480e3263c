"""A training run: from stores to a committed folder with the checkpoint and its report."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from wsi_pipeline.core.calibration import ModelTerms
from wsi_pipeline.core.choices import HISTORY_CSV, LAST, LEAK_WARNING, MODEL_FILE, REPORT_HTML
from wsi_pipeline.core.csv_io import format_csv
from wsi_pipeline.core.progress import Listener, relay
from wsi_pipeline.core.recipe import describe_tool, file_sha256
from wsi_pipeline.models.checkpoint import Checkpoint, save_checkpoint
from wsi_pipeline.models.loading import describe_terms
from wsi_pipeline.models.model import make_self_test
from wsi_pipeline.store.commit import Staging, find_finished
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.patches import PatchStore, find_stores
from wsi_pipeline.training.calibrate import ThresholdRule
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.counts import count_patients
from wsi_pipeline.training.data import LabelledPatches, load_labelled, read_pixels
from wsi_pipeline.training.evaluate import Metrics, evaluate_predictions, format_metrics
from wsi_pipeline.training.fit import FitJob, find_domain, make_network
from wsi_pipeline.training.loop import Epoch, FitHistory
from wsi_pipeline.training.metrics import Floats
from wsi_pipeline.training.ranks import check_devices, compute_where_trained, run_fit
from wsi_pipeline.training.report import (
    ReportContent,
    WorstPatch,
    describe_worst,
    pick_worst,
    write_report_page,
)
from wsi_pipeline.training.split import Division, SplitChoice
from wsi_pipeline.training.terms import ValidationPatches, fit_terms

KIND = "wsi training"
STATE_FILE = "state.safetensors"
METRICS_JSON = "metrics.json"
SPLIT_JSON = "split.json"
VALIDATION_CSV = "validation.csv"
EVENTS = Path("tensorboard") / "events.out.tfevents.0.wsi"
"""The name and the records hold no date and no host: the same training gives the same bytes."""
LOGGED = tuple(
    field.name for field in fields(Epoch) if field.name not in ("epoch", "seconds", "is_best")
)
LOGGED_PARTS = {"train": "training", "val": "validation"}
CHOSEN = "context, calibration and thresholds"
IN_SAMPLE = (
    "{chosen} were chosen on these validation patients, so these metrics are slightly too good. For"
    " metrics to publish, keep patients out with --test-patients, run wsi infer on them and wsi"
    " evaluate on the results."
)


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished training run."""

    model: Path
    metrics: Metrics | None
    """On the validation patients; None where an earlier run had finished the same training."""
    class_names: tuple[str, str]
    is_leaky: bool
    chosen: str = CHOSEN
    """Things that were chosen on the validation patients."""

    def __str__(self) -> str:
        metrics = self.metrics
        if metrics is None:
            return (
                f"nothing to do: {self.model} was already trained from these stores with these"
                " parameters"
            )
        note = (
            f"{self.chosen} were chosen on these patients; for figures to publish, run infer and"
            " evaluate on others"
        )
        text = format_metrics(metrics, "validation patients", self.class_names, note)
        return f"LEAKY: {LEAK_WARNING}\n{text}" if self.is_leaky else text


class RunSettings(TypedDict, total=False):
    """Settings of a training beside its configuration and its split."""

    pretrained: Path | None
    """File of weights to start from."""
    rule: ThresholdRule | None
    """None: youden."""
    force: bool
    resume: bool
    """Continue a run that was killed; the default."""
    listener: Listener | None


def train(
    stores: Sequence[Path],
    out: Path,
    config: TrainConfig,
    choice: SplitChoice | None = None,
    **settings: Unpack[RunSettings],
) -> Trained:
    """Train on the labelled patches of `stores` and commit `out` with the model and its report.

    A run that was killed resumes after its last complete epoch and ends in the same weights (on the
    CPU, with the same number of threads). Raises ConfigError, ModelError or StoreError before any
    training where the stores do not fit together, or the split cannot be made.
    """
    with hold_lock(out):
        pass  # fails before the stores are read if `out` cannot be written
    (settings.get("listener") or Listener()).working_on("reading the stores")
    patches = load_labelled(find_stores(list(stores)))
    division = (choice or SplitChoice()).divide(patches, config.seed)
    return train_division(patches, division, out, config, **settings)


def train_division(
    patches: LabelledPatches,
    division: Division,
    out: Path,
    config: TrainConfig,
    **settings: Unpack[RunSettings],
) -> Trained:
    """Train as `train` does, on patches that are already loaded and split."""
    rule = settings.get("rule") or ThresholdRule("youden")
    listener = settings.get("listener") or Listener()
    pretrained = settings.get("pretrained")
    recipe = make_recipe(patches, division, config, pretrained)
    staging = Staging(out, recipe | {"threshold": rule.describe()})
    inputs = [*patches.paths, pretrained]
    with hold_lock(out):
        if find_finished(staging, KIND, settings.get("force", False), inputs):
            return Trained(out / MODEL_FILE, None, patches.class_names, division.is_leaky)
        job = FitJob(config, patches, division, pretrained, staging.folder / STATE_FILE)
        check_devices(config)
        make_network(job)
        events = staging.product / EVENTS
        if not (settings.get("resume", True) and staging.is_prepared):
            staging.begin()
            events.parent.mkdir()
            staging.mark_prepared()
        listener.say(describe_split(patches, division))
        listener.say(f"to watch: tensorboard --logdir {events.parent}")
        listener.working_on(f"reading {len(division.train) + len(division.val):,} patches")
        history = run_fit(job, _log_epochs(events, listener))
        listener.working_on("evaluating the kept epoch and writing the report")
        metrics = _finish(staging, job, history, rule)
    chosen = describe_chosen(config)
    return Trained(out / MODEL_FILE, metrics, patches.class_names, division.is_leaky, chosen)


def describe_chosen(config: TrainConfig) -> str:
    """Return what is chosen on the validation patients, in words."""
    chosen = CHOSEN
    return chosen if config.stop_on == LAST else f"epoch, {chosen}"


def describe_epochs(config: TrainConfig, history: FitHistory) -> str:
    """Return the number of epochs and which one is kept, in words."""
    if config.stop_on == LAST:
        return f"{len(history.epochs)}, the last is kept"
    return f"{len(history.epochs)}, the best is {history.kept_epoch} by {config.stop_on}"


def make_recipe(
    patches: LabelledPatches, division: Division, config: TrainConfig, pretrained: Path | None
) -> dict[str, Any]:
    """Return everything that decides the result of a training."""
    parameters = config.to_json()
    if pretrained is not None:
        parameters["pretrained"] = file_sha256(pretrained)
    return {"stores": list(patches.stores), "split": division.record, "parameters": parameters}


def _log_epochs(events: Path, listener: Listener) -> Listener:
    """Return a listener that writes every epoch for TensorBoard and passes everything on."""

    def send(name: str, *values: Any) -> None:
        if name == "epoch_ended":
            append_events(events, *values)
        getattr(listener, name)(*values)

    return relay(send)


def describe_split(patches: LabelledPatches, division: Division) -> str:
    """Return the patients and patches of each part of the split, a line per part."""
    lines = [
        f"training: {patches.describe(division.train)}",
        f"validation: {patches.describe(division.val)}",
    ]
    if tested := division.record["test"]:
        held_out = np.flatnonzero(np.isin(patches.patients, tested))
        lines.append(f"held out: {patches.describe(held_out)}")
    if division.is_leaky:
        both = len(division.record["patients_on_both_sides"])
        lines.append(
            f"LEAKY: patches were split at random, {both} patients are in training and validation;"
            " all metrics are inflated"
        )
    if patches.skipped:
        lines.append(f"skipped: {patches.skipped} patches without a label or unreadable")
    return "\n".join(lines)


def _finish(staging: Staging, job: FitJob, history: FitHistory, rule: ThresholdRule) -> Metrics:
    """Fit the terms on the validation patches; commit model and report."""
    val, folder, logits = job.division.val, staging.product, history.kept_logits
    labels, patients = job.patches.labels[val], job.patches.patients[val]
    known = place_patches(job.patches, val, logits)
    terms, how = fit_terms(known, rule)
    probability, alone = known.apply(terms.on_grid), known.apply(terms.alone)
    metrics = evaluate_predictions(
        labels,
        patients,
        logits=logits,
        alone=alone,
        probability=probability,
        thresholds=(terms.on_grid.count, terms.alone.count),
        seed=job.config.seed,
    )
    checkpoint = _make_checkpoint(job, history, metrics, terms, how)
    checkpoint = replace(
        checkpoint,
        self_test=make_self_test(checkpoint),
        domain=compute_where_trained(job.config, find_domain, checkpoint, job),
    )
    save_checkpoint(checkpoint, folder / MODEL_FILE)
    write_events(folder / EVENTS, history.epochs)
    write_history(folder / HISTORY_CSV, history.epochs)
    write_json(folder / METRICS_JSON, asdict(metrics))
    write_json(folder / SPLIT_JSON, job.division.record | {"is_leaky": job.division.is_leaky})
    columns = {"logit": logits, "raw_probability": alone, "probability": probability}
    _write_validation(folder / VALIDATION_CSV, job, columns)
    report = _make_report(job, history, checkpoint, metrics, probability)
    write_report_page(folder / REPORT_HTML, report)
    staging.commit(KIND, {"patches": len(job.patches), "epochs": len(history.epochs)})
    return metrics


def place_patches(
    patches: LabelledPatches, members: NDArray[np.intp], logits: Floats
) -> ValidationPatches:
    """Return some of the patches with their logits (k,) and their places in their slides."""
    stores, numbers = patches.places[members].T
    positions = np.empty((len(members), 2), dtype=np.int32)
    for store in np.unique(stores):
        own = stores == store
        positions[own] = PatchStore(patches.paths[store]).positions[numbers[own]]
    return ValidationPatches(
        labels=patches.labels[members],
        logits=logits,
        patients=patches.patients[members],
        stores=stores,
        positions=positions,
        stride_um=patches.spec.stride_px * patches.spec.mpp,
    )


def _make_checkpoint(
    job: FitJob, history: FitHistory, metrics: Metrics, terms: ModelTerms, how: str
) -> Checkpoint:
    patches, division = job.patches, job.division
    return Checkpoint(
        architecture=job.config.architecture,
        options=job.config.network,
        spec=patches.spec,
        class_names=patches.class_names,
        normalisation=history.normalisation,
        terms=terms,
        threshold_source=how + ("; patients on both sides" if division.is_leaky else ""),
        weights=history.kept_weights,
        own_code=job.config.code,
        is_leaky=division.is_leaky,
        scores={"validation": asdict(metrics.scores), "validation, alone": asdict(metrics.alone)},
        training={
            **make_recipe(patches, division, job.config, job.pretrained),
            "patches": {
                "train": patches.count_classes(division.train),
                "val": patches.count_classes(division.val),
            },
            "epochs": len(history.epochs),
            **({} if job.config.stop_on == LAST else {"best_epoch": history.kept_epoch}),
            "tool": describe_tool(),
            **({} if job.config.code is None else {"code": job.config.code.to_json()}),
        },
    )


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_history(path: Path, epochs: Sequence[Epoch]) -> None:
    """Write one row per epoch, without its seconds, which differ from run to run."""
    names = ["epoch", *LOGGED, "is_best"]
    rows = ([getattr(epoch, name) for name in names] for epoch in epochs)
    path.write_text(format_csv(names, rows), newline="")


def write_events(path: Path, epochs: Iterable[Epoch]) -> None:
    """Write all epochs for TensorBoard; the wall time of an event is the epoch's number."""
    head = Event(wall_time=0, step=0, file_version="brain.Event:2")
    with path.open("wb") as stream:
        RecordWriter(stream).write(head.SerializeToString())
    for epoch in epochs:
        append_events(path, epoch)


def append_events(path: Path, epoch: Epoch) -> None:
    """Append an epoch, so that TensorBoard can follow a running training."""
    values = [
        Summary.Value(tag=_tag(name), simple_value=getattr(epoch, name))
        for name in LOGGED
        if math.isfinite(getattr(epoch, name))
    ]
    event = Event(wall_time=epoch.epoch, step=epoch.epoch, summary=Summary(value=values))
    with path.open("ab") as stream:
        RecordWriter(stream).write(event.SerializeToString())


def _tag(name: str) -> str:
    """Return `loss/validation` for `val_loss`, so that TensorBoard plots both losses together."""
    part, _, metric = name.partition("_")
    return f"{metric}/{LOGGED_PARTS[part]}" if part in LOGGED_PARTS else name


def _write_validation(path: Path, job: FitJob, values: Mapping[str, Floats]) -> None:
    patches, val = job.patches, job.division.val
    stores, numbers = patches.places[val].T.tolist()
    columns = {
        "patient_id": patches.patients[val].tolist(),
        "store": [patches.paths[store].name for store in stores],
        "patch": numbers,
        "label": patches.labels[val].tolist(),
        **{name: map(str, column) for name, column in values.items()},
    }
    table = format_csv(list(columns), zip(*columns.values(), strict=True))
    path.write_bytes(table.encode(errors="surrogateescape"))


def _make_report(
    job: FitJob, history: FitHistory, checkpoint: Checkpoint, metrics: Metrics, probability: Floats
) -> ReportContent:
    patches, val = job.patches, job.division.val
    return ReportContent(
        title=f"Training of {checkpoint.architecture}",
        class_names=checkpoint.class_names,
        metrics=metrics,
        labels=patches.labels[val],
        probability=probability,
        patients=patches.patients[val],
        history=[asdict(epoch) for epoch in history.epochs],
        facts={
            "network": checkpoint.architecture,
            "patches": f"{patches.spec.side_px} × {patches.spec.side_px} px at"
            f" {patches.spec.mpp:g} µm/px",
            "training": patches.describe(job.division.train),
            "validation": patches.describe(val),
            "held out": f"{len(job.division.record['test'])} patients",
            "epochs": describe_epochs(job.config, history),
            "on a grid": describe_terms(checkpoint.terms.on_grid),
            "a patch alone": describe_terms(checkpoint.terms.alone),
            "chosen by": checkpoint.threshold_source,
        },
        counts=count_patients(metrics, patches.spec.field_um),
        is_leaky=job.division.is_leaky,
        notes=(IN_SAMPLE.format(chosen=describe_chosen(job.config).capitalize()),),
        worst=_show_worst(patches, val, probability),
    )


def _show_worst(
    patches: LabelledPatches, val: NDArray[np.intp], probability: Floats
) -> list[WorstPatch]:
    """Return the most confidently wrong validation patches with their images."""
    worst = pick_worst(patches.labels[val], probability)
    members = val[worst]
    labels, patients = patches.labels[members], patches.patients[members]
    facts = zip(read_pixels(patches, members), labels, probability[worst], patients, strict=True)
    return [
        WorstPatch(image, describe_worst(label, value, patches.class_names, patient))
        for image, label, value, patient in facts
    ]
