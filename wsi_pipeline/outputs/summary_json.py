"""The metrics of one slide in summary.json, and its JSON Schema."""

import json
import logging
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from wsi_pipeline.core.calibration import COUNT
from wsi_pipeline.core.choices import PREDICTIONS, SUMMARY_JSON
from wsi_pipeline.core.errors import MAKE_AGAIN, StoreError, WsiError, damage_error
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.core.json_io import read_json
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.counting.review_file import read_estimate, review_path
from wsi_pipeline.outputs.result import SlideResult
from wsi_pipeline.store.manifest import check_files, is_product, read_manifest
from wsi_pipeline.store.predictions import Predictions
from wsi_pipeline.store.zarr_io import read_attributes

logger = logging.getLogger(__name__)
MAX_BYTES = 1024 * 1024
ADDED = (
    "colour_distance",
    "colour_limit",
    "feature_distance",
    "feature_limit",
    "unlike_training",
)
"""Fields that summaries of earlier versions lack."""
LATER = ("colour_profile", "reader_note", "near_threshold", "mask", "slide_patches")
"""Newer fields, any of which an older summary may lack."""


def write_summary(result: SlideResult, folder: Path) -> None:
    """Write the summary as JSON; null where nothing was assessed, never NaN."""
    (folder / SUMMARY_JSON).write_text(
        json.dumps(asdict(result.summary), indent=1, allow_nan=False) + "\n"
    )


@cache
def _adapter() -> TypeAdapter[SlideSummary]:
    return TypeAdapter(SlideSummary)


def make_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of summary.json."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | _adapter().json_schema() | {"title": "wsi-pipeline slide summary"}


def read_summary(folder: Path) -> SlideSummary:
    """Return the summary of a slide's folder. Raises StoreError where it was changed."""
    path = folder / SUMMARY_JSON
    if is_product(folder):
        manifest = read_manifest(folder)
        if manifest.files.get(SUMMARY_JSON, (0, ""))[0] > MAX_BYTES:
            raise damage_error(path, f"has more than {MAX_BYTES} bytes")
        check_files(folder, manifest, [SUMMARY_JSON])
    try:
        value = _update(read_json(path, MAX_BYTES))
        if isinstance(value, dict) and "patient_id" not in value:
            value = value | _read_patient(folder)
        return _adapter().validate_python(value)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path}: missing or damaged ({_describe(error)}); {MAKE_AGAIN}"
        ) from error


def _read_patient(folder: Path) -> dict[str, str | None]:
    """Return the patient of a slide whose summary is from before it named them."""
    try:
        patient = read_attributes(folder / PREDICTIONS).get("patient_id")
    except StoreError:
        patient = None
    return {"patient_id": patient if isinstance(patient, str) else None}


def _update(value: Any) -> Any:
    """Return a summary as this version writes it, but for the patient.

    One from before distances has none, nor a colour profile, columns, or a number of patches near
    the threshold; one from before contexts has other names.
    """
    if not isinstance(value, dict):
        return value
    if "unlike_training" not in value:
        value = value | dict.fromkeys(ADDED)
    value = dict.fromkeys(LATER) | value
    value = {"columns": {}} | value
    if "smooth_um" not in value:
        return value
    renamed = {name: entry for name, entry in value.items() if name != "smooth_um"}
    source, positives = value.get("threshold_source"), value.get("positives")
    return renamed | {
        "context_um": value["smooth_um"],
        "prevalence": None,
        "threshold_source": COUNT if source == "model" else source,
        "positives_estimate": positives if value.get("assessed_mm2") else None,
        "positives_low": None,
        "positives_high": None,
        "interval_source": "none",
        "patch_um": None,
    }


def add_review(summary: SlideSummary, folder: Path, fingerprint: str, grid: Grid) -> SlideSummary:
    """Return the summary with the estimate of the slide's review, where a person reviewed it.

    `folder`, fingerprint and grid are the slide's. A review that is damaged, or of other patches,
    is left out with a warning; an estimate is returned as it is.
    """
    if summary.slide_patches is not None:
        return summary
    path = review_path(folder.parent, folder.name)
    try:
        found = read_estimate(path, fingerprint, grid)
    except WsiError as error:
        logger.warning("left out: %s", error)
        return summary
    if found is None or not found.reviewed:
        return summary
    return replace(
        summary,
        positives_estimate=found.estimate,
        positives_low=found.low,
        positives_high=found.high,
        interval_source=found.source,
    )


def add_saved_review(summary: SlideSummary, folder: Path) -> SlideSummary:
    """Return the summary of a finished slide with its review as it is now. Raises StoreError."""
    if not review_path(folder.parent, folder.name).exists():
        return summary
    table = Predictions(folder / PREDICTIONS).table
    return add_review(summary, folder, table.slide.fingerprint, table.grid)


def _describe(error: OSError | ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    place = "".join(f"{name}: " for name in first["loc"])
    return f"{place}{first['msg']}, not {str(first['input'])[:40]!r}"
