"""Verification of products: every file of every product, by size and checksum."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsi_pipeline.core.choices import (
    HIDDEN,
    HISTORY_CSV,
    MANIFEST,
    PREDICTIONS,
    RUN_FILE,
    STORE_SUFFIX,
    SUMMARY_JSON,
    ZARR_JSON,
)
from wsi_pipeline.core.errors import StoreError, WsiError
from wsi_pipeline.models.card import read_card
from wsi_pipeline.store.manifest import Manifest, find_faults, is_product, read_claims
from wsi_pipeline.store.slide_results import list_named

CHECKPOINT_SUFFIX = ".safetensors"
MARKER_FILES = (PREDICTIONS, SUMMARY_JSON, ZARR_JSON, HISTORY_CSV)
"""Files that show that a folder without a manifest was a product."""
CHECKPOINT = "checkpoint"
NO_PRODUCT = (
    f"{{}}: neither a folder nor a {CHECKPOINT_SUFFIX} file; name stores, results, models or"
    " folders of them"
)


@dataclass(frozen=True, slots=True)
class Found:
    """A product, or what is left of one, before its files are read."""

    path: Path
    bytes: int
    """To be read."""
    manifest: Manifest | None = None
    """None for a checkpoint by itself, and where there is none that can be read."""
    fault: str = ""
    """Reason for which none can be read."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of checking one product."""

    path: Path
    kind: str
    files: int
    bytes: int
    faults: Mapping[str, str] = field(default_factory=dict)
    """Every damaged file by its path within the product → what is wrong with it."""
    others: tuple[str, ...] = ()
    """Files in its folder that are not a part of it."""

    @property
    def is_whole(self) -> bool:
        """True if every file is as it was written."""
        return not self.faults


def find_products(paths: Sequence[Path]) -> list[Found]:
    """Return every product and checkpoint at or below the paths. Raises StoreError for none."""
    found = [product for path in paths for product in _walk(path)]
    if not found:
        raise StoreError(
            f"{', '.join(map(str, paths))}: nothing to verify; name stores, results, models or"
            " folders of them"
        )
    return found


def _walk(path: Path) -> Iterator[Found]:
    try:
        if path.is_file() or is_product(path) or _was_product(path):
            yield _look_at(path)
            return
        entries = [entry for entry in sorted(path.iterdir()) if _may_hold_products(entry)]
        gone = [folder for folder in list_named(path) if not folder.is_dir()]
    except NotADirectoryError as error:
        raise StoreError(NO_PRODUCT.format(path)) from error
    except PermissionError as error:
        yield Found(path, 0, fault=f"cannot be read ({error.strerror}); ask its owner to let you")
        return
    for entry in entries:
        yield from _walk(entry)
    yield from map(_read_claims, gone)


def _may_hold_products(entry: Path) -> bool:
    """Return True for folders, checkpoints, and entries that cannot be read."""
    if entry.name == HIDDEN:
        return False
    try:
        is_loop = entry.is_symlink() and not is_product(entry)
        return not is_loop and (
            entry.is_dir() or (entry.suffix == CHECKPOINT_SUFFIX and entry.is_file())
        )
    except PermissionError:
        return True


def _was_product(folder: Path) -> bool:
    """Return True if a folder without a manifest was made by wsi."""
    return folder.name.endswith(STORE_SUFFIX) or any(
        (folder / mark).exists() for mark in MARKER_FILES
    )


def _look_at(path: Path) -> Found:
    if path.is_file():
        return Found(path, path.stat().st_size)
    return _read_claims(path)


def _read_claims(path: Path) -> Found:
    try:
        manifest = read_claims(path)
    except StoreError as error:
        return Found(path, 0, fault=str(error).removeprefix(f"{path}: "))
    return Found(path, sum(size for size, _ in manifest.files.values()), manifest)


def verify(found: Found, on_bytes: Callable[[int], None] = lambda size: None) -> Verified:
    """Read every file of a product and compare; `on_bytes` hears of the bytes done."""
    if found.fault:
        return Verified(found.path, "", 0, 0, {MANIFEST: found.fault})
    manifest = found.manifest
    if manifest is None:
        return _verify_checkpoint(found, on_bytes)
    faults = find_faults(found.path, manifest, on_bytes)
    if faults and (replaced := _look_at(found.path)).manifest != manifest:
        return verify(replaced)  # a run put another in its place meanwhile
    others = tuple(sorted(_list_files(found.path) - {*manifest.files, MANIFEST, RUN_FILE}))
    return Verified(found.path, manifest.kind, len(manifest.files), found.bytes, faults, others)


def _verify_checkpoint(found: Found, on_bytes: Callable[[int], None]) -> Verified:
    """By the checksum that it carries."""
    if found.path.suffix != CHECKPOINT_SUFFIX:
        raise StoreError(NO_PRODUCT.format(found.path))
    # Here, because torch takes seconds to import and other products need none.
    from wsi_pipeline.models.checkpoint import load_checkpoint

    try:
        if read_card(found.path).code is None:  # code of its maker is not run to look at it
            load_checkpoint(found.path)
        faults = {}
    except WsiError as error:
        faults = {found.path.name: str(error).removeprefix(f"{found.path}: ")}
    on_bytes(found.bytes)
    return Verified(found.path, CHECKPOINT, 1, found.bytes, faults)


def _list_files(folder: Path) -> set[str]:
    return {
        (Path(base) / name).relative_to(folder).as_posix()
        for base, _, names in os.walk(folder)
        for name in names
    }
