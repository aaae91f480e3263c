"""summary.json: the figures of one slide."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from wsi_pipeline.core.choices import SUMMARY_JSON
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.json_io import read_json
from wsi_pipeline.core.outcome import SlideState, SlideSummary
from wsi_pipeline.outputs.result import SlideResult
from wsi_pipeline.store.manifest import check_files, is_product, read_manifest

SCHEMA_NAME = "summary.schema.json"
MAX_BYTES = 1024 * 1024


def write_summary(result: SlideResult, folder: Path) -> None:
    """The summary as JSON; null where nothing was assessed, never NaN."""
    (folder / SUMMARY_JSON).write_text(
        json.dumps(asdict(result.summary), indent=1, allow_nan=False) + "\n"
    )


def read_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that every summary.json keeps to."""
    schema: dict[str, Any] = json.loads(
        resources.files("wsi_pipeline.outputs").joinpath("schemas", SCHEMA_NAME).read_bytes()
    )
    return schema


def read_summary(folder: Path) -> SlideSummary:
    """The summary of a slide's folder. Raises StoreError where it is not the one that was written."""
    if is_product(folder):
        manifest = read_manifest(folder)
        if manifest.files.get(SUMMARY_JSON, (0, ""))[0] > MAX_BYTES:
            raise StoreError(
                f"{folder / SUMMARY_JSON}: damaged: has more than {MAX_BYTES} bytes; make it again"
                " with --force"
            )
        check_files(folder, manifest, [SUMMARY_JSON])
    try:
        value = read_json(folder / SUMMARY_JSON, MAX_BYTES)
        summary = SlideSummary(**value | {"state": SlideState(value["state"])})
        _check_types(summary)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{folder / SUMMARY_JSON}: missing or damaged ({error}); make it again with --force"
        ) from error
    return summary


@cache
def _read_limits() -> dict[str, dict[str, Any]]:
    """What the schema says of each figure."""
    limits: dict[str, dict[str, Any]] = read_schema()["properties"]
    return limits


def _check_types(summary: SlideSummary) -> None:
    """Raise TypeError or ValueError for a figure that is none: a stranger may have written the file."""
    for field in fields(summary):
        value = getattr(summary, field.name)
        kinds = get_args(field.type) or (field.type,)
        is_whole = isinstance(value, int) and not isinstance(value, bool) and float in kinds
        if type(value) not in kinds and not is_whole:
            raise TypeError(f"{field.name} is {str(value)[:40]!r}")
        if not _is_within(value, _read_limits()[field.name]):
            raise ValueError(f"{field.name} is {str(value)[:40]!r}")


def _is_within(value: Any, limits: Mapping[str, Any]) -> bool:
    if "enum" in limits:
        return value in limits["enum"]
    if not isinstance(value, int | float):
        return True
    least, most = limits.get("minimum", -math.inf), limits.get("maximum", math.inf)
    return bool(least <= value <= most and value > limits.get("exclusiveMinimum", -math.inf))
