"""`--watch`: new slides in some folders are run as they appear, until the user ends it.

A slide is taken when none of its files has changed for a minute, so that none is read while it is
still being written. One that failed is tried again when its files have changed.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
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
"""Seconds for which the files of a slide must be unchanged before it is run."""
LOOK_S = 10.0
"""Seconds between two looks into the folders."""
LOCK = ".watch"
"""Name of the lock of a watch; no slide has a name that begins with a dot."""

Stamps = dict[str, Stamp]
Run = Callable[..., RunAccount]
"""Function of slides, with `listener`, `open_pool` and `earlier` as `infer_slides` has them."""


@dataclass
class Watched:
    """The slides of some folders, with what is known of each."""

    places: Sequence[Path | str]
    recursive: bool = False
    clock: Callable[[], float] = time.monotonic
    """Returns seconds."""
    _seen: dict[Path, tuple[Stamps, float]] = field(default_factory=dict)
    """Of slides that are not run yet: their files, and since when these are unchanged."""
    _failed: dict[Path, Stamps] = field(default_factory=dict)
    """Of slides that failed: their files at that time."""
    _done: set[Path] = field(default_factory=set)
    _is_first_look: bool = True

    def take_still(self) -> list[FoundSlide]:
        """Return the slides that are to be run now. Raises WsiError at the first look only."""
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
        """Return every slide of the folders; none where a folder cannot be read for a while."""
        find = find_slides if self._is_first_look else _list_quietly
        try:
            return find(self.places, recursive=self.recursive)
        except NoSlides:
            return []
        except WsiError as error:
            if self._is_first_look:
                raise
            logger.warning("%s; it is looked for again", error)  # a share that is not mounted
            return []

    def note(self, slides: Sequence[FoundSlide], account: RunAccount) -> None:
        """Remember how slides ended: done, or failed with the files that they had."""
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
    """Return the stamps of a slide's files; empty where they cannot be read: its run says why."""
    try:
        return find_files(path).stamps
    except OSError:
        return {}


def _age(stamps: Stamps) -> float:
    """Return the seconds from the last change of the files to the present time; at least 0."""
    latest = max((changed_ns for _, changed_ns in stamps.values()), default=0)
    return max(time.time() - latest / 1e9, 0)


def watch_slides(watched: Watched, folder: Path, run: Run, listener: Listener) -> RunAccount:
    """Run slides as they appear; return the account of all when Ctrl-C or SIGTERM ends it.

    `folder` is that of the products. Raises LockHeld where another watch writes there, and what the
    first look raises.
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
                    say = _say_nothing  # lines about model and workers would be the same each time
                listener.working_on("watching for new slides, until Ctrl+C")
                time.sleep(LOOK_S)
        except Interrupted as end:
            return end.account
        except BaseException as end:
            if isinstance(end, Exception):
                raise
            return RunAccount(tuple(ended)).after(account)


def _say_nothing(line: str) -> None:
    """Drop the line."""


def _note_ends(
    listener: Listener, say: Callable[[str], None], ended: list[SlideOutcome]
) -> Listener:
    """Return a listener that passes everything on and adds each outcome to `ended`."""

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
    """Hold the lock of a watch that writes to a folder. Raises LockHeld, EnvironmentFault."""
    with ExitStack() as held:
        try:
            held.enter_context(hold_lock(folder / LOCK))
        except LockHeld as error:
            owner = read_owner(folder / LOCK)
            raise LockHeld(
                f"{folder}: another --watch writes there ({owner}); end it, or name another folder"
            ) from error
        yield
