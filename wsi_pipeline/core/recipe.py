"""Provenance of a product: versions, recipes and digests, equal for every run of equal work."""

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

TOOL = "wsi-pipeline"
RECORDED_PACKAGES = ("numpy", "openslide-python", "openslide-bin", "torch", "zarr")


@cache
def tool_version() -> str:
    """Return the version of the installed pipeline."""
    return metadata.version(TOOL)


def describe_tool() -> dict[str, Any]:
    """Return the versions of the tool, Python and packages; no date, so it is always the same."""
    return {
        "tool": TOOL,
        "version": tool_version(),
        "python": platform.python_version(),
        "packages": {name: _version_or_none(name) for name in RECORDED_PACKAGES},
    }


@cache
def _version_or_none(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces; NaN and infinities raise ValueError."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def recipe_digest(recipe: Mapping[str, Any]) -> str:
    """Return the SHA-256 of everything that decides a product's content, as hex."""
    # Names of files in a recipe need not be UTF-8.
    return hashlib.sha256(canonical_json(recipe).encode(errors="surrogateescape")).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def bytes_sha256(content: bytes) -> str:
    """Return the SHA-256 of some bytes, as hex."""
    return hashlib.sha256(content).hexdigest()
