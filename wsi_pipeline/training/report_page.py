"""report.html: everything that is known of a model on one set of patients, in one file that needs no network."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from numpy.typing import NDArray

from wsi_pipeline.store.files import write_file
from wsi_pipeline.training import report_plots
from wsi_pipeline.training.bootstrap import FEW_PATIENTS, Interval
from wsi_pipeline.training.calibration import apply_temperature
from wsi_pipeline.training.comparison import Comparison
from wsi_pipeline.training.metrics import FIGURES
from wsi_pipeline.training.scores import NAMED_THRESHOLDS, Judgement

REPORT_HTML = "report.html"
LEAK_WARNING = "split at random: patients on both sides, figures are inflated"


@dataclass(frozen=True, slots=True)
class WorstPatch:
    """One patch that the model got most wrong, with its words."""

    pixels: NDArray[np.uint8]
    """RGB, (side, side, 3)."""
    caption: str


@dataclass(frozen=True)
class ComparisonSection:
    """How another model did on the same patches."""

    one: str
    """Name of this model."""
    other: str
    comparison: Comparison


@dataclass(frozen=True)
class ReportContent:
    """What a report is made of; every text in it may come from strangers."""

    title: str
    class_names: tuple[str, str]
    judgement: Judgement
    labels: NDArray[np.int8]
    """(n,) 0 or 1."""
    logits: NDArray[np.float32]
    """(n,) before the temperature."""
    patients: NDArray[np.str_]
    """(n,)"""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What was judged and how it was made, in the order of the table."""
    history: Sequence[Mapping[str, Any]] = ()
    """Rows of the training's history, with `epoch` and any of `train_loss`, `val_loss`, `val_auroc` and `is_best`."""
    worst: Sequence[WorstPatch] = ()
    worst_note: str = ""
    """Why patches have no picture, where some have none."""
    is_leaky: bool = False
    comparison: ComparisonSection | None = None
    notes: Sequence[str] = ()
    """What a reader must know before believing the figures."""


def write_report_page(path: Path, content: ReportContent) -> None:
    """Write the page whole or not at all; the same content gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("wsi_pipeline.training"),
        autoescape=select_autoescape(),
        trim_blocks=True,
    )
    environment.filters |= {"figure": format_figure, "interval": format_interval}
    page = environment.get_template("report.html").render(
        content=content,
        judgement=content.judgement,
        scores=content.judgement.scores,
        figures=FIGURES,
        pictures=_draw_pictures(content),
        matrices=[content.judgement.scores, *map(content.judgement.at, NAMED_THRESHOLDS)],
        has_few_patients=len(content.judgement.patients) < FEW_PATIENTS,
        leak_warning=LEAK_WARNING,
        worst=[
            (embed_picture("png", report_plots.encode_png(patch.pixels)), patch.caption)
            for patch in content.worst
        ],
    )
    write_file(path, page.encode(errors="replace"))


def pick_worst(
    labels: NDArray[np.int8], probability: NDArray[np.float32], count: int
) -> NDArray[np.intp]:
    """Places of the `count` most confidently wrong patches, worst first: on the wrong side of 0.5, NaN never.

    Half of them missed positives, half false calls, where there are as many; else more of the other
    kind.
    """
    distance = np.abs(np.nan_to_num(probability.astype(np.float64), nan=0.5) - (labels == 1))
    order = np.argsort(-distance, kind="stable")
    wrong = order[(distance[order] > 0.5) & ~np.isnan(probability[order])]
    missed, false = wrong[labels[wrong] == 1], wrong[labels[wrong] == 0]
    most_missed = max(count - count // 2, count - len(false))
    chosen = np.concatenate([missed[:most_missed], false[: count - len(missed[:most_missed])]])
    return np.asarray(chosen[np.argsort(-distance[chosen], kind="stable")], dtype=np.intp)


def describe_worst(
    label: int, probability: float, class_names: tuple[str, str], patient: str
) -> str:
    """The words under a patch that was got wrong."""
    return (
        f"{class_names[label]}, but probability of {class_names[1]} {probability:.3f}; patient"
        f" {patient}"
    )


def format_figure(value: float | None) -> str:
    """Three decimals, a dash for what has no meaning."""
    return "–" if value is None else f"{value:.3f}"


def format_interval(interval: Interval | None) -> str:
    """Both ends, a dash where there is none."""
    return "–" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def embed_picture(kind: str, content: bytes) -> str:
    """A picture as the address of itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _draw_pictures(content: ReportContent) -> dict[str, str]:
    judgement, labels = content.judgement, content.labels
    probability = apply_temperature(content.logits, judgement.after.temperature)
    drawn: dict[str, bytes] = {}
    if content.history:
        drawn["history"] = report_plots.draw_history(content.history)
    if judgement.scores.auroc is not None:
        drawn["roc"] = report_plots.draw_roc(labels, probability, content.patients, judgement)
        drawn["precision_recall"] = report_plots.draw_precision_recall(
            labels, probability, judgement
        )
    if len(labels):
        drawn["before"] = report_plots.draw_reliability(judgement.before, "before, temperature 1")
        drawn["after"] = report_plots.draw_reliability(
            judgement.after, f"after, temperature {judgement.after.temperature:.3f}"
        )
        drawn["sweep"] = report_plots.draw_sweep(judgement)
    return {name: embed_picture("svg+xml", picture) for name, picture in drawn.items()}
