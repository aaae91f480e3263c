"""The metrics of one slide in summary.json, and its JSON Schema."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from wsi_pipeline.core.choices import SUMMARY_JSON
from wsi_pipeline.core.errors import MAKE_AGAIN, StoreError, damage_error
from wsi_pipeline.core.json_io import read_json
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.outputs.result import SlideResult
from wsi_pipeline.store.manifest import check_files, is_product, read_manifest

MAX_BYTES = 1024 * 1024


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
        return _adapter().validate_python(read_json(path, MAX_BYTES))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path}: missing or damaged ({_describe(error)}); {MAKE_AGAIN}"
        ) from error


def _describe(error: OSError | ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    place = "".join(f"{name}: " for name in first["loc"])
    return f"{place}{first['msg']}, not {str(first['input'])[:40]!r}"
