"""Copies of slides on a local disk, where the slides themselves lie on a slow share.

The next slide is copied while the present one runs; the copy is deleted when its slide has ended.
Everything lies in the hidden folder of the folder that the user names, where `wsi` looks for no
slides:

    <folder>/.wsi/staging/<slide>.<digest of its path>.<token of the run>.copying/
    <folder>/.wsi/staging/<slide>.<digest of its path>.<token of the run>.copy/
    <folder>/.wsi/locks/<slide>.<digest of its path>.lock

A copy is renamed from `copying` to `copy` when all its files are flushed and have the sizes of the
slide's files; only such a copy is read. The process that runs the slide holds the lock. A copy
without a lock was left by a killed run, and is used again or removed.
"""

import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from wsi_pipeline.core.choices import HIDDEN
from wsi_pipeline.core.errors import DAMAGES, ConfigError, EnvironmentFault, SlideError
from wsi_pipeline.core.json_io import MAX_RECORD_BYTES, format_json, read_json
from wsi_pipeline.core.options import RunOptions
from wsi_pipeline.runs.disk_space import GB, DiskSpace
from wsi_pipeline.scheduling import NotYet, Workers
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.slides.slide_files import SlideFiles, Stamp, find_files
from wsi_pipeline.store.files import make_folder
from wsi_pipeline.store.lock import LockHeld, hold_lock, wait_for_lock

logger = logging.getLogger(__name__)

NAME = re.compile(r"(.+\.[0-9a-f]{16})\.[0-9a-f]{8}\.(copy|copying)")
FILES, RECORD = "files", "copy.json"
CHUNK_BYTES = 16 * 1024 * 1024
"""Bytes that are copied at a time; before each chunk the disk's free space is checked."""
CHANGED = "changed while it was copied; run the same line again when it is complete"
WAIT_S = 0.2
"""Seconds to wait for the lock of a copy, which another run holds for a moment as it cleans up."""
IN_PLACE = "it is read where it is"


class NoRoom(Exception):
    """The disk of the copies is full, or cannot be written; the slide is then read where it is."""


@dataclass
class LocalCopies:
    """The copies of one run; without a folder, slides are read where they are."""

    folder: Path | None
    space: DiskSpace
    """Free space that the disk of the folder keeps."""
    token: str = field(default_factory=lambda: secrets.token_hex(4))
    """Part of the copies' names, so that no worker takes or fills those of another run."""
    held: set[str] = field(default_factory=set)
    """Names of the copies of slides that are under way in this process."""

    @classmethod
    def choose(
        cls, options: RunOptions, workers: Workers, slides: Sequence[FoundSlide]
    ) -> "LocalCopies":
        """Return the copies of `--stage`. Raises ConfigError for remote workers and for stores."""
        folder = options.stage
        if folder is not None and workers.is_elsewhere:
            raise ConfigError(
                f"{folder}: --stage is a disk of this machine, and workers of --scheduler and"
                " --cluster slurm run on others; leave it out, or run the command on each machine,"
                " with --shard and --stage"
            )
        if folder is not None and any(slide.is_store for slide in slides):
            raise ConfigError(
                f"{folder}: slides are copied there, and these are patch stores; leave --stage out"
            )
        return cls(folder and folder.absolute(), DiskSpace(options.min_free))

    @property
    def _staging(self) -> Path:
        assert self.folder is not None
        return self.folder / HIDDEN / "staging"

    def place(self, name: str, kind: str) -> Path:
        """Return the place of this run's copy; kind: `copy`, or `copying` until it is whole."""
        return self._staging / f"{name}.{self.token}.{kind}"

    def _list(self, name: str | None = None) -> Iterator[tuple[Path, str, str]]:
        """Yield folder, name and kind of every copy of this user, of one slide or of all."""
        entries: list[Path] = []
        with suppress(OSError):
            entries = sorted(self._staging.iterdir())
        for entry in entries:
            match = NAME.fullmatch(entry.name)
            if match is None or name not in (None, match[1]):
                continue
            with suppress(OSError):  # the other process has just removed it
                if entry.lstat().st_uid == os.geteuid():
                    yield entry, match[1], match[2]

    def clean(self, wanted: Collection[str] = ()) -> None:
        """Remove copies that no process holds, except whole ones whose names are `wanted`."""
        assert self.folder is not None
        for entry, name, kind in self._list():
            if name not in wanted or kind != "copy":
                with suppress(LockHeld), hold_lock(self.folder / name):
                    remove_copy(entry)

    @contextmanager
    def hold(self, slide: FoundSlide) -> Iterator[SlideFiles | None]:
        """Hold an empty copy of a slide, or the whole one of a killed run, until the block ends.

        Gives the files of the slide; None where it is not copied. Raises NotYet where there is room
        only after another copy of this process is deleted, and EnvironmentFault.
        """
        assert self.folder is not None
        name, files = name_copy(slide), None
        with suppress(OSError):  # the job itself says what is wrong with the slide
            files = find_files(slide.path)
        with ExitStack() as lock:
            try:
                if files is not None and self._may_be_copied(slide, files):
                    lock.enter_context(wait_for_lock(self.folder / name, WAIT_S))
            except LockHeld:
                logger.warning("%s: another run holds its copy; %s", slide.path, IN_PLACE)
                files = None
            if files is None or not files.is_whole:
                yield None
                return
            lock.callback(self._drop, name, has_many=len(files.stamps) > 1)
            if not self._find_again(name, files) and not self._reserve(slide, name, files):
                yield None
                return
            self.held.add(name)
            yield files

    def _may_be_copied(self, slide: FoundSlide, files: SlideFiles) -> bool:
        """Return False, with a warning, where not all files of a slide are known."""
        if not files.is_whole:
            why = "which files belong to a slide of its kind is not known"
            logger.warning("%s: is not copied, for %s; %s", slide.path, why, IN_PLACE)
        return files.is_whole

    def _drop(self, name: str, has_many: bool) -> None:
        """Remove the copies of a slide, whose lock is held, but not its whole one of many files.

        Of a slide that failed, another worker may still open one of these; a success leaves none.
        It is removed when the run ends.
        """
        self.held.discard(name)
        for entry, _, _ in self._list(name):
            if not has_many or entry != self.place(name, "copy"):
                remove_copy(entry)

    def _find_again(self, name: str, files: SlideFiles) -> bool:
        """Take over a killed run's whole copy of the present files; return False without one."""
        for entry, _, kind in self._list(name):
            if kind == "copy" and _is_of(entry, files):
                entry.rename(self.place(name, "copy"))
                return True
            remove_copy(entry)
        return False

    def _reserve(self, slide: FoundSlide, name: str, files: SlideFiles) -> bool:
        """Begin an empty copy; return False where it does not fit. Raises NotYet if it may soon."""
        assert self.folder is not None
        awaited = sum(_missing_bytes(entry) for entry, _, kind in self._list() if kind == "copying")
        try:
            self.space.check(self.folder, files.bytes + awaited)
        except EnvironmentFault as fault:
            if self.held:
                raise NotYet(str(fault)) from fault
            said = "%s: %.2f GB do not fit into %s beside what --min-free keeps free; %s"
            logger.warning(said, slide.path, files.bytes / GB, self.folder, IN_PLACE)
            return False
        copying = self.place(name, "copying")
        for file in files.stamps:
            make_folder((copying / FILES / file).parent)
        record = {"folder": str(files.folder), "files": files.stamps}
        (copying / RECORD).write_text(format_json(record))
        return True

    def fill(self, name: str, path: Path) -> None:
        """Copy the files of the slide at `path`, in a worker, and rename the copy.

        Raises SlideError where a file changes meanwhile, OSError where the slide cannot be read,
        and NoRoom where the copy cannot be written.
        """
        copying = self.place(name, "copying")
        folder, files = _read_record(copying)
        for file, stamp in files.items():
            _copy_file(folder / file, copying / FILES / file, self.space)
            status = (folder / file).stat()
            copied = (copying / FILES / file).stat().st_size
            if (status.st_size, status.st_mtime_ns) != stamp or copied != stamp[0]:
                raise SlideError(f"{path}: {CHANGED}")
        try:
            copying.rename(self.place(name, "copy"))
        except OSError as error:
            raise NoRoom(f"{copying}: {error.strerror}") from error


def name_copy(slide: FoundSlide) -> str:
    """Return the name of a slide's copy and lock; slides of one name in two folders differ."""
    digest = hashlib.sha256(os.fsencode(slide.path)).hexdigest()[:16]
    return f"{slide.slide_id}.{digest}"


def _read_record(folder: Path) -> tuple[Path, dict[str, Stamp]]:
    """Return folder and files of the slide that a copy was made of. Raises OSError, ValueError."""
    try:
        record: dict[str, Any] = read_json(folder / RECORD, MAX_RECORD_BYTES)
        files = {name: (int(size), int(ns)) for name, (size, ns) in record["files"].items()}
        return Path(record["folder"]), files
    except DAMAGES as error:
        raise ValueError(f"{folder}: no record of a copy") from error


def _is_of(folder: Path, files: SlideFiles) -> bool:
    """Return whether a copy was made of these files, unchanged, and holds each in full."""
    try:
        return _read_record(folder) == (files.folder, files.stamps) and all(
            (folder / FILES / name).stat().st_size == size
            for name, (size, _) in files.stamps.items()
        )
    except (OSError, ValueError):
        return False


def _missing_bytes(folder: Path) -> int:
    """Return how many bytes are still to be written of a copy that is being made."""
    missing = 0
    with suppress(OSError, ValueError):
        for name, (size, _) in _read_record(folder)[1].items():
            missing += size
            with suppress(OSError):
                missing -= (folder / FILES / name).stat().st_size
    return max(missing, 0)


def _copy_file(source: Path, target: Path, space: DiskSpace) -> None:
    """Copy one file and flush it. Raises OSError of reading, NoRoom of writing.

    No folder is made: a worker would bring back a copy that an interrupted run has removed.
    """
    with source.open("rb") as stream:
        try:
            copy = target.open("wb")
        except OSError as error:
            raise NoRoom(f"{target.parent}: {error.strerror}") from error
        with copy:
            while chunk := stream.read(CHUNK_BYTES):
                _write(copy, chunk, target, space)
            _write(copy, b"", target, space)


def _write(copy: BinaryIO, chunk: bytes, target: Path, space: DiskSpace) -> None:
    """Write a chunk; flush the file where the chunk is empty. Raises NoRoom."""
    try:
        space.check(target.parent, len(chunk))
        copy.write(chunk)
        if not chunk:
            copy.flush()
            os.fsync(copy.fileno())
    except (OSError, EnvironmentFault) as error:
        raise NoRoom(str(error)) from error


def remove_copy(folder: Path, *, is_read: bool = True) -> None:
    """Remove a copy: rename it to `copying`, so that nothing reads it, and delete its files.

    Files are truncated first unless a worker may still read them (`is_read`), so that their space
    is free even while a worker has one open. A truncated file would give it wrong pixels.
    """
    match = NAME.fullmatch(folder.name)
    assert match is not None
    doomed = folder.with_name(f"{match[1]}.{secrets.token_hex(4)}.copying")
    with suppress(OSError):
        folder.rename(doomed)
    for path in () if is_read else doomed.rglob("*"):
        with suppress(OSError):
            if path.is_file():
                os.truncate(path, 0)
    shutil.rmtree(doomed, ignore_errors=True)
