"""events.jsonl: what happened in runs, for machines, one JSON object a line for every run.

Lines of several runs may stand in between one another; `run` tells them apart. The text is plain
ASCII without control characters, numbers are finite, and a slide is named by its `slide_id` alone:
no path, nothing else of a patient. A line that cannot be written stops no run.

While a run is under way, `.wsi/progress.json` beside it has its figures of the last second, for
pages that show them.
"""

import json
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import EVENTS_JSONL, HIDDEN, PROGRESS_JSON
from wsi_pipeline.core.json_io import MAX_RECORD_BYTES, parse_json, read_bounded
from wsi_pipeline.core.outcome import RunAccount, SlideOutcome, SlideState
from wsi_pipeline.core.recipe import TOOL, tool_version
from wsi_pipeline.store.files import is_process_alive, open_to_append, replace_file

Seconds = Mapping[str, float]
SHOWN_EVERY_S = 1.0
STALE_S = 60.0
"""The figures of a run on another machine that are older than this are not believed."""
MAX_PROGRESS_BYTES = 4096


@dataclass
class ProgressFile:
    """The figures of a run under way; they are lost where they cannot be written."""

    path: Path | None
    """None: nothing is written."""
    run_id: str
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    _next_s: float = float("-inf")

    def show(self, figures: Mapping[str, float | None]) -> None:
        """Write the figures, unless they were written within the last second."""
        if self.path is None or self.clock() < self._next_s:
            return
        self._next_s = self.clock() + SHOWN_EVERY_S
        who = {"run": self.run_id, "process": os.getpid(), "host": socket.gethostname()}
        content = json.dumps(to_plain({**figures, **who, "at": time.time()}), allow_nan=False)
        with suppress(OSError):
            if not self.path.parent.is_symlink():  # it may lead to where another user wants it
                self.path.parent.mkdir(exist_ok=True)
                replace_file(self.path, content.encode())

    def remove(self) -> None:
        """Remove the file, and its folder if nothing else is there."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
                self.path.parent.rmdir()


def read_progress(folder: Path) -> list[dict[str, Any]]:
    """Return the figures of every run that is under way in a folder: one, or one for each share."""
    stem, _, suffix = PROGRESS_JSON.rpartition(".")
    found = []
    for path in sorted((folder / HIDDEN).glob(f"{stem}*.{suffix}")):
        with suppress(OSError, ValueError):
            figures = parse_json(read_bounded(path, MAX_PROGRESS_BYTES))
            if isinstance(figures, dict) and _is_under_way(figures):
                found.append(figures)
    return found


def _is_under_way(figures: Mapping[str, Any]) -> bool:
    process, at = figures.get("process"), figures.get("at")
    if figures.get("host") == socket.gethostname():
        return isinstance(process, int) and is_process_alive(process)
    return isinstance(at, int | float) and abs(time.time() - at) < STALE_S


def remove_dead_progress(folder: Path) -> None:
    """Remove the figures that a killed run left in a folder, unless another run is under way."""
    if read_progress(folder):
        return
    stem, _, suffix = PROGRESS_JSON.rpartition(".")
    for path in (folder / HIDDEN).glob(f"{stem}*.{suffix}"):
        ProgressFile(path, "").remove()


@dataclass
class EventLog:
    """Appends the events of one run."""

    path: Path | None
    """None: nothing is written."""
    run_id: str = field(default_factory=lambda: secrets.token_hex(4))
    progress: ProgressFile = field(default_factory=lambda: ProgressFile(None, ""))
    _is_torn: bool = False
    """The last line was not written to its end, for the disk was full."""

    def write(self, event: str, **entries: Any) -> None:
        """Write one line; it is lost if it cannot be written: a full disk must not stop a run."""
        if self.path is None:
            return
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps(
            to_plain({"time": moment, "run": self.run_id, "event": event} | entries),
            allow_nan=False,
        )
        with suppress(OSError):
            self._append(self.path, f"{line}\n".encode())

    def _append(self, path: Path, line: bytes) -> None:
        # Opened for every line, and written in one call: several processes may append, and
        # when the file is moved away a new one is made.
        handle = open_to_append(path)
        try:
            content = b"\n" + line if self._is_torn or _ends_within_a_line(handle) else line
            self._is_torn = True
            self._is_torn = os.write(handle, content) < len(content)
        finally:
            os.close(handle)

    def slide_prepared(
        self, slide_id: str, patches: int, missing_patches: int, blocks: int
    ) -> None:
        """Write that a slide was opened; `blocks` are missing."""
        counts = {"patches": patches, "missing_patches": missing_patches, "missing_blocks": blocks}
        self.write("slide prepared", slide=slide_id, **counts)

    def slide_ended(self, outcome: SlideOutcome, seconds: Mapping[str, float | None]) -> None:
        """Write that a slide ended; `seconds` by stage, and by the clock since it was opened."""
        self.write(
            "slide ended",
            slide=outcome.slide_id,
            state=outcome.state.value,
            patches=outcome.patches,
            seconds=dict(seconds),
            already_done=outcome.is_resumed_whole,
            message=hide_path(outcome.message, outcome.path, outcome.slide_id),
        )

    def run_ended(self, account: RunAccount, patches: int, seconds: Seconds) -> None:
        """Every slide has its outcome."""
        states = {state.value: account.count(state) for state in SlideState}
        self.write(
            "run ended",
            account=account.closing_line,
            slides={"in": len(account.outcomes)} | states,
            patches=patches,
            seconds=dict(seconds),
            exit_code=account.exit_code,
        )


@contextmanager
def log_events(
    folder: Path | None, command: str, slides: int, parameters: Mapping[str, Any], suffix: str = ""
) -> Iterator[EventLog]:
    """Write the log of a run into `folder`; a run that is stopped is recorded with the reason."""
    path = None if folder is None else folder / EVENTS_JSONL
    events = EventLog(path and path.with_stem(path.stem + suffix))
    shown = None if folder is None else folder / HIDDEN / PROGRESS_JSON
    events.progress = ProgressFile(shown and shown.with_stem(shown.stem + suffix), events.run_id)
    who = {
        "tool": TOOL,
        "version": tool_version(),
        "process": os.getpid(),
        "host": socket.gethostname(),
    }
    events.write("run begun", command=command, **who, slides=slides, parameters=dict(parameters))
    events.progress.show({"slides": slides})
    started = time.perf_counter()
    try:
        yield events
    except BaseException as error:
        seconds = {"total": time.perf_counter() - started}
        events.write("run stopped", reason=type(error).__name__, seconds=seconds)
        raise
    finally:
        events.progress.remove()


def hide_path(message: str, path: str, slide_id: str) -> str:
    """Return a message without the folders of a slide, whose names may be those of patients."""
    return re.sub(r"(?<![\w.])/(?:[^\s:;,()'\"]*/)+", "…/", message.replace(path, slide_id))


def to_plain(value: Any) -> Any:
    """Return the same as JSON values: finite numbers or null, valid text, else its text."""
    if isinstance(value, Mapping):
        return {_to_text(str(key)): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [to_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return _to_text(str(value))


def _to_text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _ends_within_a_line(handle: int) -> bool:
    """Return True if a killed run left half a line."""
    size = os.fstat(handle).st_size
    return size > 0 and os.pread(handle, 1, size - 1) != b"\n"


def list_logs(folder: Path) -> list[Path]:
    """Return the logs of events in a folder: one, and one for each share of an array job."""
    stem, _, suffix = EVENTS_JSONL.rpartition(".")
    return sorted(folder.glob(f"{stem}*.{suffix}"))


def read_events(folder: Path, max_bytes: int = MAX_RECORD_BYTES) -> list[dict[str, Any]]:
    """Return every whole line of a folder's logs, oldest first; anything else is skipped.

    A log of more than `max_bytes` is skipped, too.
    """
    events: list[dict[str, Any]] = []
    for path in list_logs(folder):
        with suppress(OSError, ValueError):
            lines = read_bounded(path, max_bytes).splitlines()
            events += [event for line in lines if (event := _parse(line)) is not None]
    return sorted(events, key=lambda event: event["time"])


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = parse_json(line)
    except ValueError:
        return None
    is_event = isinstance(event, dict) and all(
        isinstance(event.get(name), str) for name in ("time", "run", "event")
    )
    return event if is_event else None
