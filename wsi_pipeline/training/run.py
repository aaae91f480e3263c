"""A training run: from stores to a committed folder with the checkpoint and its report."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from wsi_pipeline.core.choices import HISTORY_CSV, MODEL_FILE, REPORT_HTML
from wsi_pipeline.core.csv_io import format_csv
from wsi_pipeline.core.progress import Listener, relay
from wsi_pipeline.core.recipe import describe_tool, file_sha256
from wsi_pipeline.models.checkpoint import Checkpoint, save_checkpoint
from wsi_pipeline.models.self_test import make_self_test
from wsi_pipeline.store.commit import Staging, find_finished
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.patches import find_stores
from wsi_pipeline.training.calibrate import (
    ThresholdRule,
    apply_temperature,
    fit_temperature,
    parse_threshold_rule,
)
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.data import LabelledPatches, load_labelled, read_pixels
from wsi_pipeline.training.evaluate import Judgement, judge
from wsi_pipeline.training.fit import FitJob, Fitted, make_fabric, make_network, run_fit
from wsi_pipeline.training.loop import Course, Epoch
from wsi_pipeline.training.report import (
    ReportContent,
    WorstPatch,
    describe_worst,
    pick_worst,
    write_report_page,
)
from wsi_pipeline.training.split import (
    Division,
    SplitChoice,
)

EVENTS = Path("tensorboard") / "events.out.tfevents.0.wsi"
"""No date and no host in its name, nor in its records: the same training gives the same bytes."""
LOGGED = tuple(
    field.name for field in fields(Epoch) if field.name not in ("epoch", "seconds", "is_best")
)


def write_history(path: Path, history: Sequence[Epoch]) -> None:
    """One row per epoch, without its seconds, so that the same training gives the same bytes."""
    names = ["epoch", *LOGGED, "is_best"]
    path.write_text(
        format_csv(names, ([getattr(epoch, name) for name in names] for epoch in history)),
        newline="",
    )


def write_events(path: Path, history: Iterable[Epoch]) -> None:
    """Every epoch's figures as TensorBoard reads them; the wall time of an event is its epoch's number."""
    with path.open("wb") as stream:
        RecordWriter(stream).write(
            Event(wall_time=0, step=0, file_version="brain.Event:2").SerializeToString()
        )
    for epoch in history:
        append_events(path, epoch)


def append_events(path: Path, epoch: Epoch) -> None:
    """One more epoch, so that a running training can be watched."""
    values = [
        Summary.Value(tag=_tag(name), simple_value=float(getattr(epoch, name))) for name in LOGGED
    ]
    event = Event(
        wall_time=epoch.epoch,
        step=epoch.epoch,
        summary=Summary(value=[value for value in values if _is_number(value)]),
    )
    with path.open("ab") as stream:
        RecordWriter(stream).write(event.SerializeToString())


def _is_number(value: Summary.Value) -> bool:
    return math.isfinite(value.simple_value)


def _tag(name: str) -> str:
    """`val_loss` → `loss/validation`, so that TensorBoard draws both losses in one chart."""
    for prefix, side in (("train_", "training"), ("val_", "validation")):
        if name.startswith(prefix):
            return f"{name.removeprefix(prefix)}/{side}"
    return name


METRICS_JSON = "metrics.json"
SPLIT_JSON = "split.json"
VALIDATION_CSV = "validation.csv"
IN_SAMPLE = (
    "The best epoch, the temperature and the threshold were chosen on these validation patients, so"
    " these figures flatter a little. For figures to publish, keep patients out with"
    " --test-patients, run wsi infer on them and wsi evaluate on the results."
)


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """A finished training run, as its report tells it."""

    checkpoint: Checkpoint
    patches: LabelledPatches
    division: Division
    course: Course
    judgement: Judgement


def write_run_folder(folder: Path, record: TrainingRecord) -> None:
    """Every file of the report; the same run always gives the same bytes."""
    write_history(folder / HISTORY_CSV, record.course.history)
    _write_json(folder / METRICS_JSON, record.judgement.to_json())
    _write_json(
        folder / SPLIT_JSON, record.division.record | {"is_leaky": record.division.is_leaky}
    )
    _write_validation(folder / VALIDATION_CSV, record)
    write_report_page(folder / REPORT_HTML, _build_report(record))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_validation(path: Path, record: TrainingRecord) -> None:
    val = record.division.val
    probability = apply_temperature(record.course.best_logits, record.checkpoint.temperature)
    rows: list[list[Any]] = []
    for index, logit, value in zip(
        val.tolist(), record.course.best_logits, probability, strict=True
    ):
        store, patch = record.patches.places[index].tolist()
        row = [
            str(record.patches.patients[index]),
            record.patches.paths[store].name,
            patch,
            int(record.patches.labels[index]),
        ]
        rows.append([*row, str(logit), str(value)])
    table = format_csv(["patient_id", "store", "patch", "label", "logit", "probability"], rows)
    path.write_bytes(table.encode(errors="surrogateescape"))


def _build_report(record: TrainingRecord) -> ReportContent:
    val = record.division.val
    labels, logits = record.patches.labels[val], record.course.best_logits
    return ReportContent(
        title=f"Training of {record.checkpoint.architecture}",
        class_names=record.checkpoint.class_names,
        judgement=record.judgement,
        labels=labels,
        logits=logits,
        patients=record.patches.patients[val],
        history=[asdict(epoch) for epoch in record.course.history],
        facts=_list_facts(record),
        is_leaky=record.division.is_leaky,
        notes=(IN_SAMPLE,),
        worst=_show_worst(record, labels, apply_temperature(logits, record.checkpoint.temperature)),
    )


def _list_facts(record: TrainingRecord) -> dict[str, str]:
    """What the model is and what it was trained on, in words."""
    checkpoint, training = record.checkpoint, record.checkpoint.training
    return {
        "network": checkpoint.architecture,
        "patches": (
            f"{checkpoint.spec.side_px} × {checkpoint.spec.side_px} px at {checkpoint.spec.mpp:g}"
            " µm/px"
        ),
        "training": _count_side(record, "train"),
        "validation": _count_side(record, "val"),
        "held out": f"{len(record.division.record['test'])} patients",
        "epochs": f"{training['epochs']}, the best is {training['best_epoch']}",
        "temperature": f"{checkpoint.temperature:.3f}",
        "threshold": f"{checkpoint.threshold:.3f}: {checkpoint.threshold_source}",
    }


def _count_side(record: TrainingRecord, side: str) -> str:
    members = getattr(record.division, side)
    counts = record.checkpoint.training["patches"][side]
    patients = len({*record.patches.patients[members].tolist()})
    return f"{patients} patients, {len(members)} patches: " + ", ".join(
        f"{count} {name}" for name, count in counts.items()
    )


def _show_worst(
    record: TrainingRecord, labels: NDArray[np.int8], probability: NDArray[np.float32]
) -> tuple[WorstPatch, ...]:
    """The most confidently wrong validation patches as pictures."""
    worst = pick_worst(labels, probability)
    members = record.division.val[worst]
    names = record.checkpoint.class_names
    captions = [
        describe_worst(label, value, names, patient)
        for patient, label, value in zip(
            record.patches.patients[members], labels[worst], probability[worst], strict=True
        )
    ]
    return tuple(
        WorstPatch(*shown)
        for shown in zip(read_pixels(record.patches, members), captions, strict=True)
    )


KIND = "wsi training"
STATE_FILE = "state.safetensors"
DEFAULT_RULE = "youden"


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished training run."""

    model: Path
    judgement: Judgement | None
    """On the validation patients; None where an earlier run had already finished this very work."""


def train(
    stores: Sequence[Path],
    out: Path,
    config: TrainConfig,
    choice: SplitChoice | None = None,
    *,
    pretrained: Path | None = None,
    rule: ThresholdRule | None = None,
    force: bool = False,
    resume: bool = True,
    listener: Listener | None = None,
) -> Trained:
    """Train on the labelled patches of `stores` and commit `out` with the model and its report.

    A run that was killed is taken up after its last whole epoch and ends in the same weights (on
    the CPU, at the same number of threads). `pretrained` is a file of weights to start from. Raises
    ConfigError, ModelError or StoreError before any training where the stores do not fit together,
    or the split cannot be made.
    """
    with hold_lock(out):
        pass  # a place that cannot be written to is said before the stores are read
    listener = listener or Listener()
    listener.working_on("reading the stores")
    patches = load_labelled(find_stores(list(stores)))
    division = (choice or SplitChoice()).divide(patches, config.seed)
    return train_division(
        patches,
        division,
        out,
        config,
        pretrained=pretrained,
        rule=rule,
        force=force,
        resume=resume,
        listener=listener,
    )


def train_division(
    patches: LabelledPatches,
    division: Division,
    out: Path,
    config: TrainConfig,
    *,
    pretrained: Path | None = None,
    rule: ThresholdRule | None = None,
    force: bool = False,
    resume: bool = True,
    listener: Listener | None = None,
) -> Trained:
    """`train` on patches that are loaded and divided already."""
    rule = rule or parse_threshold_rule(DEFAULT_RULE)
    listener = listener or Listener()
    staging = Staging(
        out, make_recipe(patches, division, config, pretrained) | {"threshold": rule.describe()}
    )
    with hold_lock(out):
        if find_finished(staging, KIND, force, [*patches.paths, pretrained]):
            return Trained(out / MODEL_FILE, None)
        job = FitJob(config, patches, division, pretrained, staging.folder / STATE_FILE)
        make_fabric(config)
        make_network(job)
        if not (resume and staging.is_prepared):
            staging.begin()
            (staging.product / EVENTS).parent.mkdir()
            staging.mark_prepared()
        listener.say(describe_split(patches, division))
        listener.say(f"to watch: tensorboard --logdir {staging.product / EVENTS.parent}")
        listener.working_on(f"reading {len(division.train) + len(division.val):,} patches")
        fitted = run_fit(job, _log_epochs(staging.product / EVENTS, listener))
        listener.working_on("measuring the best epoch, and writing the report")
        judgement = _finish(staging, job, fitted, rule)
    return Trained(out / MODEL_FILE, judgement)


def make_recipe(
    patches: LabelledPatches, division: Division, config: TrainConfig, pretrained: Path | None
) -> dict[str, Any]:
    """Everything that decides what training comes to."""
    parameters = config.to_json()
    if pretrained is not None:
        parameters["pretrained"] = file_sha256(pretrained)
    return {"stores": list(patches.stores), "split": division.record, "parameters": parameters}


def _log_epochs(events: Path, listener: Listener) -> Listener:
    """Return a listener that tells TensorBoard of every epoch, then the listener it is given."""

    def send(name: str, *values: Any) -> None:
        if name == "epoch_ended":
            append_events(events, *values)
        getattr(listener, name)(*values)

    return relay(send)


def describe_split(patches: LabelledPatches, division: Division) -> str:
    """Return the patients and patches of each side, a line per side."""
    lines = []
    for side, members in (("training", division.train), ("validation", division.val)):
        count, positive = (
            len({*patches.patients[members].tolist()}),
            int((patches.labels[members] == 1).sum()),
        )
        lines.append(
            f"{side}: {count} patients, {len(members)} patches, {positive} {patches.class_names[1]}"
        )
    if test := division.record["test"]:
        labels = patches.labels[[name in test for name in patches.patients.tolist()]]
        lines.append(
            f"held out: {len(test)} patients, {len(labels)} patches, {int((labels == 1).sum())}"
            f" {patches.class_names[1]}"
        )
    if division.is_leaky:
        both = len(division.record["patients_on_both_sides"])
        lines.append(
            f"LEAKY: patches were divided at random, {both} patients are on both sides; every"
            " figure is inflated"
        )
    if patches.skipped:
        lines.append(f"skipped: {patches.skipped} patches without a label or unreadable")
    return "\n".join(lines)


def _finish(staging: Staging, job: FitJob, fitted: Fitted, rule: ThresholdRule) -> Judgement:
    """Calibrate on the validation patches, choose the threshold there, and commit model and report."""
    val = job.division.val
    labels, patients, logits = (
        job.patches.labels[val],
        job.patches.patients[val],
        fitted.course.best_logits,
    )
    temperature = fit_temperature(labels, logits)
    threshold = rule.choose(labels, apply_temperature(logits, temperature))
    judgement = judge(
        labels, logits, patients, temperature=temperature, threshold=threshold, seed=job.config.seed
    )
    checkpoint = _build_checkpoint(job, fitted, judgement, temperature, threshold, rule)
    checkpoint = replace(checkpoint, self_test=make_self_test(checkpoint))
    save_checkpoint(checkpoint, staging.product / MODEL_FILE)
    write_events(staging.product / EVENTS, fitted.course.history)
    write_run_folder(
        staging.product,
        TrainingRecord(checkpoint, job.patches, job.division, fitted.course, judgement),
    )
    staging.commit(KIND, {"patches": len(job.patches), "epochs": len(fitted.course.history)})
    return judgement


def _build_checkpoint(
    job: FitJob,
    fitted: Fitted,
    judgement: Judgement,
    temperature: float,
    threshold: float,
    rule: ThresholdRule,
) -> Checkpoint:
    patches, division = job.patches, job.division
    judges = (
        f"{len({*patches.patients[division.val].tolist()})} validation patients,"
        f" {len(division.val)} patches"
    )
    return Checkpoint(
        architecture=job.config.architecture,
        options=job.config.network,
        spec=patches.spec,
        class_names=patches.class_names,
        normalisation=fitted.normalisation,
        temperature=temperature,
        threshold=threshold,
        threshold_source=(
            f"{rule.describe()} on"
            f" {judges}{'; patients on both sides' if division.is_leaky else ''}"
        ),
        weights=fitted.course.best_weights,
        is_leaky=division.is_leaky,
        scores={"validation": judgement.scores.to_json()},
        training={
            **make_recipe(patches, division, job.config, job.pretrained),
            "patches": {
                side: _count(patches, members)
                for side, members in (("train", division.train), ("val", division.val))
            },
            "epochs": len(fitted.course.history),
            "best_epoch": fitted.course.best_epoch,
            "tool": describe_tool(),
        },
    )


def _count(patches: LabelledPatches, members: NDArray[np.intp]) -> Mapping[str, int]:
    labels = patches.labels[members]
    return {
        name: int(np.count_nonzero(labels == index))
        for index, name in enumerate(patches.class_names)
    }
