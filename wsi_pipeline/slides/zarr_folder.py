"""OME-Zarr images: which folders are one, and the file by which it is named as a slide."""

import json
import os
from pathlib import Path

from wsi_pipeline.core.choices import ZARR_JSON

SUFFIX = ".zarr"
ZARR_2 = (".zattrs", ".zgroup")
"""Files in which Zarr of version 2 keeps what version 3 keeps in one."""
MAX_HEAD_BYTES = 4 * 1024 * 1024


def find_image_file(folder: Path) -> Path | None:
    """Return the file that stands for the OME-Zarr image in a folder; None where it holds none.

    It is zarr.json, or .zattrs of Zarr 2.
    """
    if folder.suffix.lower() != SUFFIX:
        return None
    for name in (ZARR_JSON, ZARR_2[0]):
        try:
            if not (folder / name).is_file():
                continue
            with (folder / name).open("rb") as stream:
                value = json.loads(stream.read(MAX_HEAD_BYTES))
        except (OSError, ValueError, RecursionError):
            continue
        if _states_levels(value):
            return folder / name
    return None


def _states_levels(value: object) -> bool:
    for key in ("attributes", "ome"):
        inner = value.get(key) if isinstance(value, dict) else None
        value = value if inner is None else inner
    return isinstance(value, dict) and bool(value.get("multiscales"))


def list_files(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Return name below the folder and status of every file in it, sorted by name."""
    found = []
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in files:
            path = Path(where, name)
            found.append((path.relative_to(folder).as_posix(), path.stat()))
    return sorted(found, key=lambda file: file[0])
