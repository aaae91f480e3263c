"""Where a product comes from: versions, recipes and digests, the same on every run of the same work."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

TOOL = "wsi-pipeline"
RECORDED_PACKAGES = ("numpy", "openslide-python", "openslide-bin", "torch", "zarr")


def tool_version() -> str:
    """Version of the installed pipeline."""
    return metadata.version(TOOL)


def describe_tool() -> dict[str, Any]:
    """Tool, Python and package versions, without a date: the same installation always gives the same answer."""
    return {
        "tool": TOOL,
        "version": tool_version(),
        "python": platform.python_version(),
        "packages": {name: _version_or_none(name) for name in RECORDED_PACKAGES},
    }


def _version_or_none(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; refuses NaN and infinities, which are no JSON."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def recipe_digest(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of everything that decides a product's content, as hex; names of files in it need not be UTF-8."""
    return hashlib.sha256(canonical_json(recipe).encode(errors="surrogateescape")).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def bytes_sha256(content: bytes) -> str:
    """SHA-256 of some bytes, as hex."""
    return hashlib.sha256(content).hexdigest()
