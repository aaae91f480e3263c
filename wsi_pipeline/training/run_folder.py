"""What a training run leaves in its folder beside the checkpoint: history, figures, split, validation logits, the report."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.csv_io import format_csv
from wsi_pipeline.models.checkpoint import Checkpoint
from wsi_pipeline.training.calibration import apply_temperature
from wsi_pipeline.training.data import LabelledPatches, read_pixels
from wsi_pipeline.training.history import HISTORY_CSV, write_history
from wsi_pipeline.training.loop import Course
from wsi_pipeline.training.report_page import (
    REPORT_HTML,
    ReportContent,
    WorstPatch,
    describe_worst,
    pick_worst,
    write_report_page,
)
from wsi_pipeline.training.scores import Judgement
from wsi_pipeline.training.split import Division

METRICS_JSON = "metrics.json"
SPLIT_JSON = "split.json"
VALIDATION_CSV = "validation.csv"
WORST_PATCHES = 24
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
    write_report_page(folder / REPORT_HTML, _describe(record))


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


def _describe(record: TrainingRecord) -> ReportContent:
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
    worst = pick_worst(labels, probability, WORST_PATCHES)
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
