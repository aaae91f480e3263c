"""One writer per product: a lock file under `flock`, which the system releases when it dies.

A file system without such locks is refused. A lease with a heartbeat in its place would not be
safe: a writer whose machine stands still for longer than the lease would wake up and write beside
its successor, and nothing that is written here could be refused to it.
"""

import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from wsi_pipeline.core.choices import HIDDEN
from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.core.json_io import read_bounded
from wsi_pipeline.store.files import FOLDER_VANISHED, MOST_ATTEMPTS, open_to_append

MAX_OWNER_BYTES = 4096
"""Limit of the line in which a writer names itself, with a margin."""
OTHER_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
"""Names of what may be found in place of a lock file or a folder, besides devices."""
LOCKS_NEEDED = (
    "name a folder on another file system, or have this one mounted with locks (NFS: without nolock"
    " and with its lock service; Lustre: with flock)"
)
REMOVE_IT = "see whose it is, remove it, and run the same line again"
ANOTHER = "another process"


class LockHeld(EnvironmentFault):
    """Another process is the writer."""


@contextmanager
def hold_lock(target: Path) -> Iterator[None]:
    """Hold a product's lock as its only writer. Raises LockHeld, EnvironmentFault."""
    path = _lock_path(target)
    _check_hidden(target)
    stream = _lock_file(path, target)
    try:
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        yield
    finally:
        # While it is still held: another process that opened it meanwhile sees it gone and retries.
        # Never another file: where this one was removed by force, that is the lock of a successor.
        with stream:
            if _is_at(path, stream):
                path.unlink(missing_ok=True)
        remove_empty(target)


@contextmanager
def wait_for_lock(target: Path, seconds: float) -> Iterator[None]:
    """Hold a file's lock, after waiting for another writer. Raises as `hold_lock`."""
    deadline = time.monotonic() + seconds
    while True:
        lock = hold_lock(target)
        try:
            lock.__enter__()
            break
        except LockHeld:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def read_owner(target: Path) -> str | None:
    """Return the owner named in a product's lock, `process N on HOST`, or None without a lock.

    The owner may have died since. The lock is not tried, because that would turn away a writer that
    comes at that moment. For what cannot be read or is not a regular file, the answer is ANOTHER.
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


def _check_hidden(target: Path) -> None:
    """Raise EnvironmentFault where a link, or a file, is in the place of a folder of our work.

    Through a link, what another user chose would be written to, and removed.
    """
    hidden = target.parent / HIDDEN
    staging = hidden / "staging"
    own = []
    with suppress(OSError):
        own = [path for path in staging.iterdir() if path.name.startswith(f"{target.name}.")]
    for folder in (hidden, hidden / "locks", staging, *own):
        with suppress(OSError):  # not there, or not to be entered, which opening the lock says
            if (kind := stat.S_IFMT(folder.lstat().st_mode)) != stat.S_IFDIR:
                what = f"is {OTHER_KINDS.get(kind, 'a device')}, where wsi keeps unfinished work"
                raise EnvironmentFault(f"{folder}: {what}; {REMOVE_IT}")


def _lock_file(path: Path, target: Path) -> TextIO:
    """Lock the lock file and return it, checked to be the one at its path."""
    attempt = 0
    while True:
        attempt += 1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = _open_lock(path)
        except OSError as error:
            if isinstance(error, FOLDER_VANISHED) and attempt < MOST_ATTEMPTS:
                continue  # a writer that just ended removed the folder; in /proc it never exists
            what = f"{path}: cannot be written ({error.strerror})"
            raise EnvironmentFault(f"{what}; name a folder that you may write to") from error
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _to_owner(os.pread(stream.fileno(), MAX_OWNER_BYTES, 0))
            stream.close()
            remedy = "wait for it, then run the same line again"
            raise LockHeld(f"{target}: is being written by {owner}; {remedy}") from error
        except OSError as error:
            with stream, suppress(OSError):
                if os.fstat(stream.fileno()).st_size == 0:  # a holder has put its name in
                    path.unlink(missing_ok=True)
            raise _no_locks(target, error) from error
        if _is_at(path, stream):
            stream.truncate(0)
            return stream
        stream.close()


def _is_at(path: Path, stream: TextIO) -> bool:
    """Return whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _no_locks(target: Path, error: OSError) -> EnvironmentFault:
    """Return the fault of a folder in which nothing can be locked, and leave nothing there."""
    remove_empty(target)
    what = f"files cannot be locked there ({error.strerror}), so runs could collide"
    return EnvironmentFault(f"{target.parent}: {what}; {LOCKS_NEEDED}")


def _open_lock(path: Path) -> TextIO:
    """Open or create the lock file. Raises OSError, EnvironmentFault for no regular file."""
    try:
        return open(open_to_append(path), "a+")  # noqa: PTH123 - a handle, not a path
    except OSError as error:
        with suppress(OSError):
            kind = stat.S_IFMT(path.lstat().st_mode)
            if kind != stat.S_IFREG:
                raise EnvironmentFault(
                    f"{path}: is {OTHER_KINDS.get(kind, 'a device')}, where wsi keeps a lock file;"
                    f" {REMOVE_IT}"
                ) from error
        raise


def is_lock_held(target: Path) -> bool:
    """Return True where a process holds a product's lock; remove a dead writer's lock file."""
    try:
        with hold_lock(target):
            return False
    except LockHeld:
        return True


def remove_remains(target: Path) -> None:
    """Remove the lock of a dead writer beside a finished product, and folders that this empties.

    Readers call it too, so it does nothing where files cannot be removed.
    """
    if read_owner(target) is not None:
        with suppress(EnvironmentFault):
            is_lock_held(target)
    remove_empty(target)


def remove_lock(target: Path) -> None:
    """Remove a product's lock file even if it is held, so that the next writer finds none."""
    _lock_path(target).unlink(missing_ok=True)
    remove_empty(target)


def remove_empty(target: Path) -> None:
    """Remove empty hidden folders beside a product."""
    hidden = target.parent / HIDDEN
    for empty in (hidden / "locks", hidden / "staging", hidden):
        with suppress(OSError):
            empty.rmdir()
