"""What dead runs leave behind: locks that nobody holds, work that was begun, files that were never renamed."""

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.errors import StoreError
from wsi_pipeline.operation.status import is_owner_alive
from wsi_pipeline.store.commit import STAGED, list_staged, put_back
from wsi_pipeline.store.files import is_process_alive
from wsi_pipeline.store.lock import HIDDEN, LockHeld, hold_lock, is_lock_held, read_owner, remove_empty, remove_lock
from wsi_pipeline.store.manifest import is_product

ASIDE = re.compile(r"\.(.+?)(?:\.[0-9a-f]{4})?\.(\d+)")
"""A file that was being written: hidden, with its writer's machine and process at the end."""
ASIDE_AGE_S = 3600.0
"""Younger ones are left alone: their writer may live on another machine."""
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Lock:
    """One lock file, and what became of it."""

    target: Path
    """The product that it guards."""
    owner: str
    is_held: bool
    """Whether somebody still has it, so that it was left."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that a dead run left, and what became of it."""

    path: Path
    target: Path
    """What it was to become."""
    bytes: int
    owner: str = ""
    """Who is at work on it, so that it was left; empty: nobody."""


def unlock(paths: Sequence[Path], force: bool = False) -> list[Lock]:
    """Remove the lock files that nobody holds, and with `force` those that somebody on another machine holds; all that there are.

    Raises StoreError where no run has left anything, and never takes a lock from a process that lives here.
    """
    locks = []
    for target in _targets(paths, "locks", r"(.+)\.lock"):
        owner = read_owner(target)
        if owner is None:
            continue  # its owner has just let go of it
        is_held = is_lock_held(target)
        if is_held and force and not is_owner_alive(owner):
            remove_lock(target)
            is_held = False
        locks.append(Lock(target, owner, is_held))
    return locks


def clean(paths: Sequence[Path], older_than_days: float = 0.0, is_dry: bool = False) -> list[Leftover]:
    """Remove work that was begun and that nobody is at, and files that were never renamed; what is or would be removed, and what was left.

    Finished products are not touched. Raises StoreError where no run has left anything in any of the paths.
    """
    latest = time.time() - older_than_days * DAY_S
    found = [leftover for target in _targets(paths, "staging", STAGED.pattern) for leftover in _clean_work(target, latest, is_dry)]
    return found + [leftover for path in paths for leftover in _clean_asides(path, latest, is_dry)]


def _clean_work(target: Path, latest: float, is_dry: bool) -> Iterator[Leftover]:
    try:
        with hold_lock(target):
            if not is_dry:
                put_back(target)
            for folder in list_staged(target):
                if _last_change(folder) <= latest:
                    yield Leftover(folder, target, _count_bytes(folder))
                    if not is_dry:
                        shutil.rmtree(folder, ignore_errors=True)
    except LockHeld:
        yield Leftover(target.parent / HIDDEN / "staging", target, 0, read_owner(target) or "another process")
    remove_empty(target)


def _clean_asides(path: Path, latest: float, is_dry: bool) -> Iterator[Leftover]:
    for folder in _folders_of_products(path):
        for entry in sorted(folder.iterdir()):
            match = ASIDE.fullmatch(entry.name)
            if match is None or not entry.is_file() or is_process_alive(int(match[2])):
                continue
            if entry.stat().st_mtime <= min(latest, time.time() - ASIDE_AGE_S):
                yield Leftover(entry, folder / match[1], entry.stat().st_size)
                if not is_dry:
                    entry.unlink(missing_ok=True)


def _targets(paths: Sequence[Path], inside: str, pattern: str) -> list[Path]:
    """The products of which something lies in a hidden folder: those at the paths and those below."""
    hidden = [(folder / HIDDEN, None) for path in paths for folder in _folders_of_products(path) if (folder / HIDDEN).is_dir()]
    beside = [(path.absolute().parent / HIDDEN, path.absolute().name) for path in paths if (path.absolute().parent / HIDDEN).is_dir()]
    if not hidden and not beside and not any(path.is_dir() for path in paths):
        raise StoreError(f"{', '.join(map(str, paths))}: no run of wsi has written here; name a folder of its products")
    found = set()
    for folder, only in hidden + beside:
        for entry in (folder / inside).glob("*"):
            match = re.fullmatch(pattern, entry.name)
            if match and only in (None, match[1]):
                found.add(folder.parent / match[1])
    return sorted(found)


def _folders_of_products(path: Path) -> Iterator[Path]:
    """The folder and those below it in which products may lie: not the products, and nothing hidden."""
    if not path.is_dir() or path.is_symlink() or is_product(path):
        return
    yield path.absolute()
    for entry in sorted(path.iterdir()):
        if not entry.name.startswith("."):
            yield from _folders_of_products(entry)


def _last_change(folder: Path) -> float:
    return max((Path(base) / name).stat().st_mtime for base, folders, files in os.walk(folder) for name in [*folders, *files, "."])


def _count_bytes(folder: Path) -> int:
    return sum((Path(base) / name).stat().st_size for base, _, names in os.walk(folder) for name in names)
