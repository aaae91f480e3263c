"""One writer per product: a lock file held by `flock`, which the system lets go of when its owner dies."""

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from wsi_pipeline.core.choices import HIDDEN
from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.core.json_io import read_bounded
from wsi_pipeline.store.files import open_to_append

MOST_ATTEMPTS = 100
MAX_OWNER_BYTES = 4096
"""Of the line by which a writer names itself, with room to spare."""
STRANGERS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
"""What may lie where a lock file belongs; a device besides."""
ANOTHER = "another process"


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
        path.unlink(
            missing_ok=True
        )  # while it is still held: whoever opened it meanwhile sees that it is gone and tries again
        stream.close()
        remove_empty(target)


def read_owner(target: Path) -> str | None:
    """Who wrote itself into a product's lock, `process N on HOST`; None where there is no lock. It may have died since.

    The lock is not tried: a writer that came at that very moment would be turned away. Nothing is
    told of what cannot be read, or is no regular file, but that it lies there.
    """
    try:
        return _to_owner(read_bounded(_lock_path(target), MAX_OWNER_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        return ANOTHER


def _to_owner(content: bytes) -> str:
    return content.decode(errors="backslashreplace").strip() or ANOTHER


def _lock_path(target: Path) -> Path:
    return target.parent / HIDDEN / "locks" / f"{target.name}.lock"


def _lock_file(path: Path, target: Path) -> TextIO:
    """The lock file, locked, and still the one that lies at its path."""
    attempt = 0
    while True:
        attempt += 1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = _open_lock(path)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and attempt < MOST_ATTEMPTS:
                continue  # the folder was removed by a writer that just ended; in /proc and the like it never comes to be
            raise EnvironmentFault(
                f"{path}: cannot be written ({error.strerror}); name a folder that you may write to"
            ) from error
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _to_owner(os.pread(stream.fileno(), MAX_OWNER_BYTES, 0))
            stream.close()
            raise LockHeld(
                f"{target}: is being written by {owner}; wait for it, then run the same line again"
            ) from error
        if path.exists() and os.fstat(stream.fileno()).st_ino == path.stat().st_ino:
            stream.truncate(0)
            return stream
        stream.close()


def _open_lock(path: Path) -> TextIO:
    """The lock file, made where there is none. Raises OSError, and EnvironmentFault where something else than a regular file lies there."""
    try:
        return open(open_to_append(path), "a+")  # noqa: PTH123 - a handle, not a path
    except OSError as error:
        with suppress(OSError):
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode):
                found = STRANGERS.get(stat.S_IFMT(mode), "a device")
                remedy = "see whose it is, remove it, and run the same line again"
                raise EnvironmentFault(
                    f"{path}: is {found}, where wsi keeps a lock file; {remedy}"
                ) from error
        raise


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
