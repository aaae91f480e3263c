"""Whether a product's files are files of its own: regular, in its own folders, never links to somewhere else."""

import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from wsi_pipeline.core.errors import StoreError


def check_contained(product: Path, names: Iterable[str]) -> None:
    """Raise StoreError where a file named in a manifest lies outside its product, or is reached through a link in it."""
    folders: set[PurePosixPath] = set()
    for name in names:
        path = PurePosixPath(name)
        if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
            raise StoreError(f"{product}: names a file outside the product, {name[:80]!r}; do not use it")
        folders.update(path.parents)
    for folder in sorted(folders, key=lambda path: len(path.parts)):
        if folder.parts and (product / folder).is_symlink():
            raise StoreError(f"{product}: {folder} is a link to somewhere else; copy the product whole, with its own files")


def size_of_own(path: Path) -> int | None:
    """Bytes of a regular file that is no link; None where there is none."""
    try:
        status = path.lstat()
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
