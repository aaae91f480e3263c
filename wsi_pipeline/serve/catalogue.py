"""The table of served slides. Names in requests are looked up here, and never become paths.

Folders change underneath a long-lived server: every so often the table is compared with the disk,
by the size and time of each manifest, and what changed is read again.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import MANIFEST, PREDICTIONS
from wsi_pipeline.core.errors import DAMAGES, StoreError, WsiError
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.counting.review_file import review_path
from wsi_pipeline.outputs.heatmap import read_aggregation
from wsi_pipeline.outputs.summary_json import add_review, read_summary
from wsi_pipeline.runs.events import list_logs, read_events
from wsi_pipeline.runs.status import LiveRun, read_live
from wsi_pipeline.slides.selection import list_slides
from wsi_pipeline.store.manifest import read_manifest
from wsi_pipeline.store.slide_results import find_results
from wsi_pipeline.store.zarr_io import read_attributes

REFRESH_S = 1.0
MAX_LOG_BYTES = 64 * 1024 * 1024
"""A longer log of events is not read again and again while it grows."""
MAX_DEPTH = 32
"""Levels of brackets in the model's description in results; deeper JSON could not be sent."""

FileStamp = tuple[int, int, int]
"""Size, time of change and inode of a file: another after every replacement."""
NO_MANIFEST: FileStamp = (0, 0, 0)
"""Stands for the stamp of a manifest that is not there."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """One results folder."""

    run_id: str
    name: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Result:
    """One slide's results in one run, as far as the list needs them."""

    folder: Path
    stamp: FileStamp
    digest: str
    """SHA-256 of the content, from the manifest."""
    summary: SlideSummary | None = None
    """None where the results are damaged, as `slide` and `grid` are."""
    slide: SlideInfo | None = None
    grid: Grid | None = None
    reviewed: FileStamp | None = None
    """Stamp of the slide's review, which the summary holds."""

    @property
    def version(self) -> str:
        """A text that changes whenever the results or their review do."""
        return self.digest[:16] + ("" if self.reviewed is None else f"r{self.reviewed[1]:x}")


@dataclass(frozen=True, slots=True)
class SlideEntry:
    """One slide with its file and its results."""

    slide_id: str
    file: Path | None
    """Path of its pixels: in the served folder of slides, else the one in its results."""
    is_in_folder: bool
    """True for a file of the served folder of slides; jobs may run on it."""
    results: Mapping[str, Result]
    """By run."""
    recorded: SlideInfo | None
    """The slide as its first readable results have it."""
    patient_id: str | None = None
    """By the same results; None where there are none."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Free columns of the sample sheet, by the same results."""

    @property
    def has_file(self) -> bool:
        """True if the file exists and may be read."""
        try:
            return self.file is not None and self.file.is_file()
        except (OSError, ValueError):  # in a folder of another user, or an impossible file name
            return False

    @property
    def version(self) -> str:
        """A text that changes whenever any of its results do."""
        return "-".join(result.version for _, result in sorted(self.results.items())) or "none"


def stamp_file(path: Path) -> FileStamp | None:
    """Return the file's stamp, or None without a file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # untrusted results may hold an impossible file name
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


class Catalogue:
    """Every slide and run that is served; safe to share between threads."""

    def __init__(self, results: Sequence[Path], slides: Path | None) -> None:
        self.runs = name_runs(results)
        self._slides = slides
        self._lock = threading.Lock()
        self._known: dict[Path, Result] = {}
        self._entries: dict[str, SlideEntry] = {}
        self._checked = float("-inf")
        self._logs: dict[str, tuple[list[FileStamp | None], list[dict[str, Any]]]] = {}

    def entries(self) -> list[SlideEntry]:
        """Return every slide, sorted by name."""
        return list(self._current().values())

    def find(self, slide_id: str) -> SlideEntry | None:
        """Return the slide of that name, or None."""
        return self._current().get(slide_id)

    def live(self, run: Run) -> LiveRun | None:
        """Return the last `wsi` run over a results folder; None where none has left a log."""
        try:
            stamps = [stamp_file(path) for path in list_logs(run.folder)]
            known, events = self._logs.get(run.run_id, (None, []))
            if known != stamps:
                events = read_events(run.folder, MAX_LOG_BYTES)
                self._logs[run.run_id] = stamps, events
            return read_live(run.folder, events)
        except OSError as error:
            logger.warning("%s: its last run cannot be read: %s", run.name, error)
            return None

    @property
    def is_fresh(self) -> bool:
        """True if asking for a slide now reads nothing from the disk."""
        return time.monotonic() - self._checked < REFRESH_S

    def refresh(self) -> None:
        """Compare with the disk now."""
        self._checked = float("-inf")

    def _current(self) -> dict[str, SlideEntry]:
        if self.is_fresh:
            return self._entries
        with self._lock:
            if not self.is_fresh:
                self._entries = self._read_all()
                self._checked = time.monotonic()
            return self._entries

    def _read_all(self) -> dict[str, SlideEntry]:
        by_slide: dict[str, dict[str, Result]] = {}
        known: dict[Path, Result] = {}
        for run in self.runs:
            for folder in _list_results(run):
                if (result := self._read(folder)) is not None:
                    known[folder] = result
                    by_slide.setdefault(spell_out(folder.name), {})[run.run_id] = result
        self._known = known
        files = _list_files(self._slides)
        return {
            slide_id: _make_entry(slide_id, files.get(slide_id), by_slide.get(slide_id, {}))
            for slide_id in sorted({*by_slide, *files})
        }

    def _read(self, folder: Path) -> Result | None:
        """Return the result in a folder; read it only if it changed."""
        if (stamp := stamp_file(folder / MANIFEST)) is None:
            if folder not in self._known:
                logger.warning("%s: damaged results: no %s", folder.name, MANIFEST)
            return Result(folder, NO_MANIFEST, "damaged")
        known, reviewed = self._known.get(folder), _stamp_review(folder)
        if known is None or known.stamp != stamp:
            known = read_result(folder, stamp)
        if known is None or known.summary is None or known.reviewed == reviewed:
            return known
        return _take_review(known, reviewed)


def _stamp_review(folder: Path) -> FileStamp | None:
    return stamp_file(review_path(folder.parent, folder.name))


def _take_review(result: Result, reviewed: FileStamp | None) -> Result:
    """Return the result with the count of its slide's review as it is now."""
    if result.slide is None or result.grid is None:
        return result
    try:
        summary = read_summary(result.folder)
    except StoreError as error:  # replaced just now
        logger.warning("%s: %s", result.folder.name, error)
        return result
    summary = add_review(summary, result.folder, result.slide.fingerprint, result.grid)
    return replace(result, summary=summary, reviewed=reviewed)


def name_runs(results: Sequence[Path]) -> tuple[Run, ...]:
    """Return a run per results folder, named after it; equal names are numbered."""
    runs: dict[str, Run] = {}
    for index, folder in enumerate(results):
        name = spell_out(folder.resolve().name) or "results"
        names = (f"{name} ({number})" if number > 1 else name for number in count(1))
        unused = next(one for one in names if one not in runs)
        runs[unused] = Run(f"r{index}", unused, folder.absolute())
    return tuple(runs.values())


def read_result(folder: Path, stamp: FileStamp) -> Result | None:
    """Return the result for the list, or None while it is being replaced."""
    try:
        manifest = read_manifest(folder)
        attributes = read_attributes(folder / PREDICTIONS)
        slide = SlideInfo.from_json(attributes["slide"])
        read_aggregation(folder)
        read_model(attributes)
        grid = Grid.from_json(attributes["grid"])
        return Result(folder, stamp, manifest.content_digest, read_summary(folder), slide, grid)
    except (WsiError, OSError, MemoryError, *DAMAGES) as error:
        if stamp_file(folder / MANIFEST) != stamp:
            return None
        logger.warning("%s: damaged results: %s", folder.name, error)
        return Result(folder, stamp, f"damaged{stamp[1]:x}")


def read_model(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of the model in results.

    Raises KeyError, TypeError or ValueError where it cannot be sent to a client.
    """
    model: dict[str, Any] = attributes["model"]
    if not isinstance(model, dict):
        raise TypeError("its description of the model is not a table")
    if _is_deeper(model, MAX_DEPTH):
        raise ValueError("its description of the model nests too deep")
    return model


def _is_deeper(value: Any, levels: int) -> bool:
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in within)


def spell_out(name: str) -> str:
    """Return a name for pages and URLs: bytes that are not UTF-8 are escaped."""
    return name.encode(errors="backslashreplace").decode()


def _list_results(run: Run) -> list[Path]:
    try:
        return find_results([run.folder])
    except (WsiError, OSError) as error:
        logger.warning("%s: cannot be listed: %s", run.name, error)
        return []


def _list_files(slides: Path | None) -> dict[str, Path]:
    try:
        found = list_slides([slides]).slides if slides else []
    except (WsiError, OSError):  # an empty folder, or one that is not there now
        return {}
    return {one.slide_id: one.path.absolute() for one in found}


def _make_entry(slide_id: str, file: Path | None, results: dict[str, Result]) -> SlideEntry:
    readable = next((result for result in results.values() if result.slide), None)
    recorded, summary = (readable.slide, readable.summary) if readable else (None, None)
    path = file or (Path(recorded.path) if recorded else None)
    patient, columns = (summary.patient_id, summary.columns) if summary else (None, {})
    return SlideEntry(slide_id, path, file is not None, results, recorded, patient, columns)
