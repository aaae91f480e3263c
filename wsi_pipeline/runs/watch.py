"""Runs that go on: new slides of some folders are run as they come, until the user ends it.

A slide is taken when none of its files has changed for a minute, so that none is read while it is
still being written. One that failed is tried again when its files have changed.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from wsi_pipeline.core.errors import WsiError
from wsi_pipeline.core.outcome import RunAccount, SlideOutcome, SlideState
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.runs.batch import Interrupted
from wsi_pipeline.scheduling import KeptWorkers
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.slides.selection import NoSlides, find_slides, list_slides
from wsi_pipeline.slides.slide_files import Stamp, find_files
from wsi_pipeline.store.lock import LockHeld, hold_lock, read_owner

logger = logging.getLogger(__name__)

STILL_S = 60.0
"""A slide is taken when its files have been the same for so long."""
LOOK_S = 10.0
"""Seconds between two looks into the folders."""
LOCK = ".watch"
"""Its lock file is named as no slide can be."""

Stamps = dict[str, Stamp]
Run = Callable[..., RunAccount]
"""Runs slides, with `listener`, `open_pool` and `earlier` as `infer_slides` takes them."""


@dataclass
class Watched:
    """The slides of some folders, and what is known of each."""

    places: Sequence[Path | str]
    recursive: bool = False
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    _seen: dict[Path, tuple[Stamps, float]] = field(default_factory=dict)
    """The files of slides that are not taken yet, and since when they are the same."""
    _failed: dict[Path, Stamps] = field(default_factory=dict)
    _done: set[Path] = field(default_factory=set)
    _is_first_look: bool = True

    def take_still(self) -> list[FoundSlide]:
        """Return slides that are to be run now. Raises WsiError at the first look."""
        now, still = self.clock(), []
        for slide in self._list():
            path = slide.path.absolute()
            if path in self._done:
                continue
            stamps = _stamp(path)
            if self._failed.get(path) == stamps:
                continue
            seen, since = self._seen.get(path, (None, now))
            if seen != stamps:
                since = now - (_age(stamps) if self._is_first_look else 0)
            self._seen[path] = (stamps, since)
            if now - since >= STILL_S:
                still.append(slide)
        self._is_first_look = False
        return still

    def _list(self) -> Sequence[FoundSlide]:
        find = find_slides if self._is_first_look else _list_quietly
        try:
            return find(self.places, recursive=self.recursive)
        except NoSlides:
            return []
        except WsiError as error:
            if self._is_first_look:
                raise
            logger.warning("%s; it is looked for again", error)  # a share that is away for a while
            return []

    def note(self, slides: Sequence[FoundSlide], account: RunAccount) -> None:
        """Take how slides have ended."""
        states = {Path(outcome.path): outcome.state for outcome in account.outcomes}
        for path in (slide.path.absolute() for slide in slides):
            stamps, _ = self._seen.pop(path)
            if states.get(path) is SlideState.FAILED:
                self._failed[path] = stamps
            else:
                self._done.add(path)


def _list_quietly(places: Sequence[Path | str], *, recursive: bool) -> Sequence[FoundSlide]:
    """Return the slides without the warnings of the first look."""
    return list_slides(places, recursive=recursive).slides


def _stamp(path: Path) -> Stamps:
    """Return the stamps of a slide's files; none where they cannot be seen, which its run says."""
    try:
        return find_files(path).stamps
    except OSError:
        return {}


def _age(stamps: Stamps) -> float:
    """Return the seconds since the files changed, by the clocks of this machine and the disk's."""
    latest = max((changed_ns for _, changed_ns in stamps.values()), default=0)
    return max(time.time() - latest / 1e9, 0)


def watch_slides(watched: Watched, folder: Path, run: Run, listener: Listener) -> RunAccount:
    """Run slides as they come; return the account of all when Ctrl-C or SIGTERM ends it.

    `folder` is that of the products. Raises LockHeld where another process watches for it, and
    what the first look raises.
    """
    account, ended = RunAccount(()), list[SlideOutcome]()
    with _hold_watch(folder), closing(KeptWorkers()) as workers:
        try:
            say = listener.say
            while True:
                if slides := watched.take_still():
                    kept = {"open_pool": workers.open, "earlier": account}
                    account = run(slides, listener=_note_ends(listener, say, ended), **kept)
                    watched.note(slides, account)
                    ended.clear()
                    say = _say_nothing  # what was said of the model and of the workers
                listener.working_on("watching for new slides, until Ctrl+C")
                time.sleep(LOOK_S)
        except Interrupted as end:
            return end.account
        except BaseException as end:
            if isinstance(end, Exception):
                raise
            return RunAccount(tuple(ended)).after(account)


def _say_nothing(line: str) -> None:
    """Keep no line."""


def _note_ends(
    listener: Listener, say: Callable[[str], None], ended: list[SlideOutcome]
) -> Listener:
    """Return a listener that passes everything on and keeps the outcomes."""

    def note(outcome: SlideOutcome) -> None:
        ended.append(outcome)
        listener.slide_ended(outcome)

    told: dict[str, Callable[..., None]] = {
        "progress": listener.progress,
        "working_on": listener.working_on,
    }
    return Listener(**told, say=say, slide_ended=note)


@contextmanager
def _hold_watch(folder: Path) -> Iterator[None]:
    """Hold the lock of the one watch of a folder. Raises LockHeld, EnvironmentFault."""
    try:
        lock = hold_lock(folder / LOCK)
        lock.__enter__()
    except LockHeld as error:
        owner = read_owner(folder / LOCK)
        raise LockHeld(
            f"{folder}: another --watch writes there ({owner}); end it, or name another folder"
        ) from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
