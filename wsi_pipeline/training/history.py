"""The course of a training run on disk: history.csv, and events for TensorBoard."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from wsi_pipeline.core.csv_io import format_csv
from wsi_pipeline.training.loop import Epoch

HISTORY_CSV = "history.csv"
EVENTS = Path("tensorboard") / "events.out.tfevents.0.wsi"
"""No date and no host in its name, nor in its records: the same training gives the same bytes."""
FIGURES = tuple(
    field.name for field in fields(Epoch) if field.name not in ("epoch", "seconds", "is_best")
)


def write_history(path: Path, history: Sequence[Epoch]) -> None:
    """One row per epoch, without its seconds, so that the same training gives the same bytes."""
    names = ["epoch", *FIGURES, "is_best"]
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
        Summary.Value(tag=_tag(name), simple_value=float(getattr(epoch, name))) for name in FIGURES
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
