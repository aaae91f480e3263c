"""`--watch`: new slides in some folders are run as they appear, until the user ends it.

A slide is taken when none of its files has changed for a minute, so that none is read while it is
still being written. One that failed is tried again when its files have changed or come back, and
after some minutes where the machine was at fault. One that has ended well is run again when its
file has changed: then the run says whose results are there.
"""

import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsi_pipeline.core.choices import PREDICTIONS, STORE_SUFFIX
from wsi_pipeline.core.errors import WsiError
from wsi_pipeline.core.outcome import RunAccount, SlideOutcome, SlideState
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.runs.batch import Interrupted
from wsi_pipeline.scheduling import KeptWorkers
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.slides.selection import NoSlides, find_slides, list_slides
from wsi_pipeline.slides.slide_files import Stamp, find_files
from wsi_pipeline.stages.plan import stamp_file
from wsi_pipeline.store.lock import LockHeld, hold_lock, read_owner
from wsi_pipeline.store.zarr_io import read_attributes

logger = logging.getLogger(__name__)

STILL_S = 60.0
"""Seconds for which the files of a slide must be unchanged before it is run."""
LOOK_S = 10.0
"""Seconds between two looks into the folders."""
RETRY_S = 600.0
"""Until a slide is tried again that failed by the machine: a full disk, a lock, a lost share."""
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
    names: dict[Path, str] = field(default_factory=dict)
    """Names that slides keep, also where slides of equal names come later."""
    _seen: dict[Path, tuple[Stamps, float]] = field(default_factory=dict)
    """Of slides that are not run yet: their files, and since when these are unchanged."""
    _failed: dict[Path, tuple[Stamps, float]] = field(default_factory=dict)
    """Of slides that failed: their files then, and when they are tried again as they are."""
    _done: dict[Path, Stamp | None] = field(default_factory=dict)
    """The files by which finished slides are named, as they were."""
    _is_first_look: bool = True
    _is_away: bool = False
    """The folders could not be listed, which has been said."""

    def take_still(self) -> list[FoundSlide]:
        """Return the slides that are to be run now. Raises WsiError at the first look only."""
        now, still = self.clock(), []
        listed = {slide.path.absolute(): slide for slide in self._list()}
        for known in (self._seen, self._failed):
            for path in known.keys() - listed.keys():
                del known[path]  # it begins again when it comes back
        for path, slide in listed.items():
            if self._is_finished(path):
                continue
            stamps = _stamp(path)
            failed, retry = self._failed.get(path, (None, now))
            if failed == stamps and now < retry:
                continue
            seen, since = self._seen.get(path, (None, now))
            if seen != stamps:
                since = now - (_age(stamps) if self._is_first_look else 0)
            self._seen[path] = (stamps, since)
            if now - since >= STILL_S:
                still.append(slide)
        self._is_first_look = False
        return self._name(still, listed)

    def _is_finished(self, path: Path) -> bool:
        """Return whether a slide has ended well and its file is the same since."""
        if path not in self._done:
            return False
        stamp = self._done[path]
        try:
            return stamp is None or stamp == stamp_file(path)
        except OSError:  # it is away, perhaps for a while
            return True

    def _name(
        self, slides: Sequence[FoundSlide], listed: dict[Path, FoundSlide]
    ) -> list[FoundSlide]:
        """Return the slides by the names that they have had, and others by names of their own."""
        named = []
        for slide in slides:
            path = slide.path.absolute()
            taken = {
                name.casefold()
                for other, name in self.names.items()
                if other != path and other in listed
            }
            name = self.names.get(path, slide.slide_id)
            if name.casefold() in taken:
                digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
                name = f"{slide.slide_id}-{digest}"
            self.names[path] = name
            named.append(replace(slide, slide_id=name))
        return named

    def _list(self) -> Sequence[FoundSlide]:
        """Return every slide of the folders; none where a folder cannot be read for a while."""
        find = find_slides if self._is_first_look else _list_quietly
        try:
            slides = find(self.places, recursive=self.recursive)
        except NoSlides:
            slides = []
        except (WsiError, OSError) as error:
            if self._is_first_look:
                raise
            if not self._is_away:  # a share that is not mounted
                logger.warning("%s; it is looked for again", error)
            self._is_away = True
            return []
        self._is_away = False
        return slides

    def note(self, slides: Sequence[FoundSlide], account: RunAccount) -> None:
        """Remember how slides ended: done, or failed, with the files that they had."""
        outcomes = {Path(outcome.path): outcome for outcome in account.outcomes}
        for path in (slide.path.absolute() for slide in slides):
            stamps, _ = self._seen.pop(path)
            outcome = outcomes.get(path)
            self._done.pop(path, None)
            if outcome is None or outcome.state is not SlideState.FAILED:
                self._done[path] = next(iter(stamps.values()), None)
            elif path.exists():
                is_machines = outcome.is_environment_fault
                retry = self.clock() + RETRY_S if is_machines else math.inf
                self._failed[path] = (stamps, retry)


def read_names(folder: Path) -> dict[Path, str]:
    """Return the names of slides with products in a folder of results or stores, by their paths."""
    names: dict[Path, str] = {}
    with suppress(OSError):
        for product in sorted(folder.iterdir()):
            group = product if product.name.endswith(STORE_SUFFIX) else product / PREDICTIONS
            with suppress(WsiError, OSError, KeyError, TypeError):
                path = Path(read_attributes(group)["slide"]["path"])
                names.setdefault(path, product.name.removesuffix(STORE_SUFFIX))
    return names


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
        watched.names.update(read_names(folder))
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
