"""summary.json: the figures of one slide."""

import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from wsi_pipeline.errors import StoreError
from wsi_pipeline.outcome import SlideState, SlideSummary
from wsi_pipeline.outputs.result import SlideResult
from wsi_pipeline.store.manifest import check_files, is_product, read_manifest

FILE_NAME = "summary.json"
SCHEMA_NAME = "summary.schema.json"


def write_summary(result: SlideResult, folder: Path) -> None:
    """The summary as JSON; null where nothing was assessed, never NaN."""
    (folder / FILE_NAME).write_text(json.dumps(asdict(result.summary), indent=1, allow_nan=False) + "\n")


def read_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that every summary.json keeps to."""
    schema: dict[str, Any] = json.loads(resources.files("wsi_pipeline.outputs").joinpath("schemas", SCHEMA_NAME).read_bytes())
    return schema


def read_summary(folder: Path) -> SlideSummary:
    """The summary of a slide's folder. Raises StoreError where it is not the one that was written."""
    if is_product(folder):
        check_files(folder, read_manifest(folder), [FILE_NAME])
    try:
        value = json.loads((folder / FILE_NAME).read_bytes())
        return SlideSummary(**value | {"state": SlideState(value["state"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder / FILE_NAME}: missing or damaged ({error}); make it again with --force") from error
