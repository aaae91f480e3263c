"""One writer per product: a lock file held by `flock`, which the system lets go of when its owner dies."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from wsi_pipeline.errors import EnvironmentFault

HIDDEN = ".wsi"
"""Folder beside products that holds locks and work under way."""
MOST_ATTEMPTS = 100


class LockHeld(EnvironmentFault):
    """Another process is the writer."""


@contextmanager
def hold_lock(target: Path) -> Iterator[None]:
    """Be the only writer of a product. Raises LockHeld, naming who is, and EnvironmentFault where no lock can be made."""
    path = _lock_path(target)
    stream = _lock_file(path, target)
    try:
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still held: whoever opened it meanwhile sees that it is gone and tries again
        stream.close()
        remove_empty(target)


def read_owner(target: Path) -> str | None:
    """Who wrote itself into a product's lock, `process N on HOST`; None where there is no lock. It may have died since.

    The lock is not tried: a writer that came at that very moment would be turned away.
    """
    try:
        return _lock_path(target).read_text(errors="backslashreplace").strip() or "another process"
    except OSError:
        return None


def _lock_path(target: Path) -> Path:
    return target.parent / HIDDEN / "locks" / f"{target.name}.lock"


def _lock_file(path: Path, target: Path) -> TextIO:
    """The lock file, locked, and still the one that lies at its path."""
    attempt = 0
    while True:
        attempt += 1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a+")
        except OSError as error:
            if isinstance(error, FileNotFoundError) and attempt < MOST_ATTEMPTS:
                continue  # the folder was removed by a writer that just ended; in /proc and the like it never comes to be
            raise EnvironmentFault(f"{path}: cannot be written ({error.strerror}); name a folder that you may write to") from error
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            owner = stream.read().strip() or "another process"
            stream.close()
            raise LockHeld(f"{target}: is being written by {owner}; wait for it, then run the same line again") from error
        if path.exists() and os.fstat(stream.fileno()).st_ino == path.stat().st_ino:
            stream.truncate(0)
            return stream
        stream.close()


def is_lock_held(target: Path) -> bool:
    """Whether somebody has a product's lock; a lock file that nobody has is removed. Raises EnvironmentFault where that cannot be done."""
    try:
        with hold_lock(target):
            return False
    except LockHeld:
        return True


def remove_remains(target: Path) -> None:
    """Remove what a dead writer of a finished product left beside it: its lock, and the hidden folders that this empties.

    For those who only read the product, and may do so where they can remove nothing: then it stays.
    """
    if read_owner(target) is not None:
        with suppress(EnvironmentFault):
            is_lock_held(target)
    remove_empty(target)


def remove_lock(target: Path) -> None:
    """Remove a product's lock file whoever holds it, so that the next writer finds none."""
    _lock_path(target).unlink(missing_ok=True)
    remove_empty(target)


def remove_empty(target: Path) -> None:
    """Remove the hidden folders beside a product that hold nothing any more."""
    hidden = target.parent / HIDDEN
    for empty in (hidden / "locks", hidden / "staging", hidden):
        with suppress(OSError):
            empty.rmdir()
