"""Remains of dead runs: abandoned locks, unfinished work, files that were never renamed."""

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.core.choices import HIDDEN
from wsi_pipeline.core.errors import EnvironmentFault, StoreError
from wsi_pipeline.runs.events import remove_dead_progress
from wsi_pipeline.runs.status import is_owner_alive
from wsi_pipeline.store.commit import STAGED, list_staged, put_back
from wsi_pipeline.store.files import is_process_alive
from wsi_pipeline.store.lock import (
    LockHeld,
    hold_lock,
    is_lock_held,
    read_owner,
    remove_empty,
    remove_lock,
)
from wsi_pipeline.store.manifest import is_product

ASIDE = re.compile(r"\.(.+)\.[0-9a-f]{4}\.(\d+)")
"""A hidden file that was being written, ending in its writer's machine and process."""
ASIDE_AGE_S = 3600.0
"""Younger ones are left alone: their writer may live on another machine."""
DAY_S = 86_400.0
PERHAPS = "perhaps another user ({})"
"""Stands for the holder of a lock that may not be read or removed."""


@dataclass(frozen=True, slots=True)
class Lock:
    """One lock file, and what became of it."""

    target: Path
    """The product that it guards."""
    owner: str
    is_held: bool
    """True if a process still holds it, so that it was left."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that a dead run left, and what became of it."""

    path: Path
    target: Path
    """The product it belongs to."""
    bytes: int
    owner: str = ""
    """The process at work on it, so that it was left; empty: none."""


def unlock(paths: Sequence[Path], force: bool = False) -> list[Lock]:
    """Remove abandoned locks, and with `force` those held on other machines; return all locks.

    Raises StoreError where no run has left anything, and never takes a lock from a process that
    lives here.
    """
    locks = []
    for target in _targets(paths, "locks", r"(.+)\.lock"):
        owner = read_owner(target)
        if owner is None:
            continue  # its owner has just let go of it
        try:
            is_held = is_lock_held(target)
        except EnvironmentFault as error:
            if not _is_refusal(error):
                raise
            # Whether its owner lives here cannot be told, so that no force removes it.
            locks.append(Lock(target, owner, is_held=True))
            continue
        if is_held and force and not is_owner_alive(owner):
            remove_lock(target)
            is_held = False
        locks.append(Lock(target, owner, is_held))
    return locks


def _is_refusal(error: Exception) -> bool:
    """Return True if another user's permissions were the reason, and not the machine."""
    return isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError)


def clean(
    paths: Sequence[Path], older_than_days: float = 0.0, is_dry: bool = False
) -> list[Leftover]:
    """Remove abandoned work and files that were never renamed; return what was removed or left.

    Finished products are not touched, nor what only another user may look into.

    Raises StoreError where no run has left anything in any of the paths.
    """
    latest = time.time() - older_than_days * DAY_S
    found = [
        leftover
        for target in _targets(paths, "staging", STAGED.pattern)
        for leftover in _clean_work(target, latest, is_dry)
    ]
    found += [leftover for path in paths for leftover in _clean_asides(path, latest, is_dry)]
    if not is_dry:
        for folder in (folder for path in paths for folder in _folders_of_products(path)):
            remove_dead_progress(folder)
    return found + [
        Leftover(folder, folder, 0, PERHAPS.format("it cannot be read"))
        for path in paths
        for folder in _list_forbidden(path)
    ]


def _clean_work(target: Path, latest: float, is_dry: bool) -> Iterator[Leftover]:
    staging = target.parent / HIDDEN / "staging"
    if not any(map(_is_folder, list_staged(target))):
        return  # something that is only called like begun work
    try:
        with hold_lock(target):
            staged = list_staged(target)
            # Through a link, something would be put back that is no product.
            if not is_dry and all(map(_is_folder, staged)):
                put_back(target)
            for folder in filter(_is_folder, staged):
                if _last_change(folder) <= latest:
                    yield _remove_staging(folder, target, is_dry)
    except LockHeld:
        yield Leftover(staging, target, 0, read_owner(target) or "another process")
    except (PermissionError, EnvironmentFault) as error:
        if not _is_refusal(error):
            raise
        yield Leftover(staging, target, 0, PERHAPS.format(os.strerror(errno.EACCES)))
    remove_empty(target)


def _remove_staging(folder: Path, target: Path, is_dry: bool) -> Leftover:
    size = _count_bytes(folder)
    if not is_dry:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            return Leftover(folder, target, 0, PERHAPS.format("not all of it can be removed"))
    return Leftover(folder, target, size)


def _clean_asides(path: Path, latest: float, is_dry: bool) -> Iterator[Leftover]:
    for folder in _folders_of_products(path):
        for entry in sorted(folder.iterdir()):
            if not (match := ASIDE.fullmatch(entry.name)) or is_process_alive(int(match[2])):
                continue
            found = entry.lstat()
            is_old = found.st_mtime <= min(latest, time.time() - ASIDE_AGE_S)
            if stat.S_ISREG(found.st_mode) and is_old:
                yield _remove_aside(entry, folder / match[1], found.st_size, is_dry)


def _remove_aside(entry: Path, target: Path, size: int, is_dry: bool) -> Leftover:
    try:
        if not is_dry:
            entry.unlink(missing_ok=True)
    except PermissionError as error:
        return Leftover(entry, target, 0, PERHAPS.format(error.strerror))
    return Leftover(entry, target, size)


def _targets(paths: Sequence[Path], inside: str, pattern: str) -> list[Path]:
    """Return the products at or below the paths that have something in a hidden folder."""
    places: list[tuple[Path, str | None]] = []
    for path in map(Path.absolute, paths):
        places += [(folder / HIDDEN, None) for folder in _folders_of_products(path)]
        places.append((path.parent / HIDDEN, path.name))
    places = [(folder, only) for folder, only in places if folder.is_dir()]
    if not places and not any(path.is_dir() for path in paths):
        raise StoreError(
            f"{', '.join(map(str, paths))}: no run of wsi has written here; name a folder of its"
            " products"
        )
    found = set()
    for folder, only in places:
        if not _is_folder(folder) or _is_forbidden(folder) or not _is_folder(folder / inside):
            continue  # a link, say: what it leads to is not wsi's to remove
        for entry in (folder / inside).glob("*"):
            match = re.fullmatch(pattern, entry.name)
            if match and only in (None, match[1]):
                found.add(folder.parent / match[1])
    return sorted(found)


def _folders_of_products(path: Path) -> Iterator[Path]:
    """Return the folder and those below it that may hold products; no product, nothing hidden."""
    if not _is_folder(path) or _is_forbidden(path) or is_product(path):
        return
    yield path.absolute()
    for entry in sorted(path.iterdir()):
        if not entry.name.startswith("."):
            yield from _folders_of_products(entry)


def _list_forbidden(path: Path) -> Iterator[Path]:
    """Return the folders that may hold products or work, and that cannot be read."""
    if _is_folder(path) and _is_forbidden(path):
        yield path.absolute()
    for folder in _folders_of_products(path):
        for entry in sorted(folder.iterdir()):
            is_searched = entry.name == HIDDEN or not entry.name.startswith(".")
            if is_searched and _is_folder(entry) and _is_forbidden(entry):
                yield entry


def _is_folder(path: Path) -> bool:
    """Return True for a folder itself, False for a link to one."""
    return not path.is_symlink() and path.is_dir()


def _is_forbidden(folder: Path) -> bool:
    return not os.access(folder, os.R_OK | os.X_OK)


def _last_change(folder: Path) -> float:
    inside = (
        Path(base) / name for base, folders, files in os.walk(folder) for name in [*folders, *files]
    )
    return max(path.lstat().st_mtime for path in (folder, *inside))


def _count_bytes(folder: Path) -> int:
    return sum(
        (Path(base) / name).lstat().st_size for base, _, names in os.walk(folder) for name in names
    )
