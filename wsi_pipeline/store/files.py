"""Files and folders that are on disk when a function returns."""

import ctypes
import errno
import hashlib
import os
import re
import shutil
import socket
import stat
from collections.abc import Mapping
from io import BufferedWriter, FileIO
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import xxhash

from wsi_pipeline.core.errors import EnvironmentFault, machine_fault

CHECKSUM_PIECE_BYTES = 4 * 1024 * 1024
MOST_ATTEMPTS = 100
FOLDER_VANISHED = (FileNotFoundError, FileExistsError)
"""Errors of making a folder that another process removes at that moment: also that it exists, where
it is gone when Python looks what exists.
"""
HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:4]
"""Tells machines that share a folder apart."""
ASIDE = re.compile(rf"\..+\.{HOST}\.(\d+)")
"""Name of a file while a process of this machine writes it."""
AT_FDCWD = -100
RENAME_EXCHANGE = 2
APPENDING = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
CANNOT_EXCHANGE = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM})
"""Errors of systems, and of file systems such as NFS, that cannot swap two names."""


class Recorded(NamedTuple):
    """A file as it was when its checksum became known."""

    size: int
    inode: int
    changed_ns: int
    """Time of the last change to content or metadata; unlike `mtime`, it cannot be set."""
    checksum: str

    @classmethod
    def of(cls, path: Path, checksum: str) -> "Recorded":
        """Return the record of a file that has just been written and flushed. Raises OSError."""
        return cls(*_stamp(path.stat()), checksum)

    def fits(self, status: os.stat_result) -> bool:
        """Return True where the file has not been written to, or replaced, since."""
        return _stamp(status) == self[:3]


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_ino, status.st_ctime_ns


NOTHING_RECORDED: Mapping[str, Recorded] = MappingProxyType({})


def write_file(path: Path, content: bytes) -> None:
    """Write a small file aside, flush and rename it. Raises EnvironmentFault for a full disk."""
    make_folder(path.parent)
    try:
        replace_file(path, content, is_flushed=True)
    except OSError as error:
        raise machine_fault(path, error) or error from error
    flush_folder(path.parent)


def replace_file(path: Path, content: bytes, is_flushed: bool = False) -> None:
    """Write a small file aside and rename it; the disk is waited for only to flush it.

    Raises OSError.
    """
    aside = path.with_name(f".{path.name}.{HOST}.{os.getpid()}")
    try:
        with _create(aside) as stream:
            stream.write(content)
            if is_flushed:
                stream.flush()
                os.fsync(stream.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _create(path: Path) -> BufferedWriter:
    """Create a file without following links; replace one that a dead process of our number left."""
    try:
        return path.open("xb")
    except FileExistsError:
        path.unlink()
        return path.open("xb")


def link_file(source: Path, target: Path) -> None:
    """Link a file, or copy it where the file system has no hard links. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def open_to_append(path: Path) -> int:
    """Return a handle for reading a regular file and appending to it; create it if missing.

    Raises OSError. A link is not followed, because it may lead to any file of the user, and a pipe
    is not waited for.
    """
    handle = os.open(path, APPENDING, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return handle


def remove_dead_asides(folder: Path) -> None:
    """Remove unfinished files that killed processes of this machine left in a folder."""
    for entry in os.scandir(folder):
        if (match := ASIDE.fullmatch(entry.name)) and not is_process_alive(int(match[1])):
            Path(entry).unlink(missing_ok=True)


def is_process_alive(process: int) -> bool:
    """Return True where a process of that number runs on this machine."""
    try:
        os.kill(process, 0)
    except PermissionError:  # another user's process
        return True
    except (OSError, OverflowError):
        return False
    return True


def write_all(stream: FileIO, content: memoryview) -> None:
    """Write every byte: a raw file may take fewer at a time."""
    while content:
        content = content[stream.write(content) :]


def make_folder(folder: Path) -> None:
    """Create a folder and its parents. Raises EnvironmentFault where the machine refuses."""
    for attempt in range(MOST_ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            break
        except OSError as error:
            # Not found: another process has removed the empty parent meanwhile.
            if not isinstance(error, FOLDER_VANISHED) or attempt == MOST_ATTEMPTS - 1:
                what = f"{folder}: cannot be made ({error.strerror or error})"
                raise EnvironmentFault(f"{what}; name a folder that you may write to") from error


def flush_tree(
    folder: Path, recorded: Mapping[str, Recorded] = NOTHING_RECORDED
) -> dict[str, tuple[int, str]]:
    """Flush every file and folder below to disk; return sizes and checksums by sorted path.

    A file is read unless its checksum was `recorded`, by the same path, and it is unchanged since.
    """
    files: dict[str, tuple[int, str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            flush_folder(path)
            continue
        name = path.relative_to(folder).as_posix()
        status, known = flush_file(path), recorded.get(name)
        if known is not None and known.fits(status):
            files[name] = (status.st_size, known.checksum)
        else:
            files[name] = (status.st_size, file_checksum(path))
    flush_folder(folder)
    return files


def start_checksum() -> xxhash.xxh3_128:
    """Return the checksum of no bytes yet, for `file_checksum` while a file is written."""
    return xxhash.xxh3_128()


def file_checksum(path: Path) -> str:
    """Return the 128-bit XXH3 of a file as hex: finds damage at thirty times SHA-256's speed."""
    digest = start_checksum()
    with path.open("rb") as stream:
        while piece := stream.read(CHECKSUM_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def flush_file(path: Path) -> os.stat_result:
    """Flush a file to disk and return its status."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        return os.fstat(stream.fileno())


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries (renames, new names) to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system cannot do it. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):  # a system other than Linux
        return False
    names = (AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other))
    if libc.renameat2(*names, RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))
