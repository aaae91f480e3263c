"""How a run gets on: slides, patches per second, where the time goes, and how long it will still take."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

STAGES = ("read", "compute", "write")
WINDOW_S = 300.0
"""The rate is that of the last five minutes: slow slides long ago say nothing of now, one slow block says little."""


@dataclass
class Pace:
    """The figures of one run, in which every slide is counted once, as it is opened and as it ends."""

    slides: int
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    patches_done: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """By stage, added up over all that work side by side."""
    _missing: dict[int, int] = field(default_factory=dict)
    """Patches to be done of every slide that was opened."""
    _ended: set[int] = field(default_factory=set)
    _done_before: set[int] = field(default_factory=set)
    """Slides that an earlier run had finished; they tell nothing of those to come."""
    _recent: deque[tuple[float, int]] = field(default_factory=deque)
    _started: float | None = None

    def open_slide(self, slide: int, missing_patches: int) -> None:
        """A slide's patches are known; so many of them are to be done."""
        self._started = self.clock() if self._started is None else self._started
        self._missing[slide] = missing_patches

    def add_block(self, patches: int, read_s: float, compute_s: float, write_s: float) -> None:
        """A block is done."""
        self.patches_done += patches
        for stage, seconds in zip(STAGES, (read_s, compute_s, write_s), strict=True):
            self.seconds[stage] += seconds
        now = self.clock()
        self._recent.append((now, patches))
        while self._recent[0][0] < now - WINDOW_S:
            self._recent.popleft()

    def end_slide(self, slide: int, is_done_before: bool) -> None:
        """A slide has come to its end, well or not."""
        self._ended.add(slide)
        if is_done_before:
            self._done_before.add(slide)

    @property
    def slides_done(self) -> int:
        """Slides that have come to their end."""
        return len(self._ended)

    @property
    def rate(self) -> float | None:
        """Patches per second; None before the first are done."""
        if self._started is None or not self._recent:
            return None
        now = self.clock()
        recent = sum(patches for at, patches in self._recent if at >= now - WINDOW_S)
        return recent / max(min(now - self._started, WINDOW_S), 1e-9)

    @property
    def shares(self) -> Mapping[str, float] | None:
        """Share of the time that each stage took, 0 to 1; None before there is any."""
        total = sum(self.seconds.values())
        return (
            {stage: seconds / total for stage, seconds in self.seconds.items()}
            if total > 0
            else None
        )

    @property
    def has_unopened(self) -> bool:
        """Whether some slides' patches are not known yet, so that what is left can only be guessed."""
        return self._unopened > 0

    @property
    def _unopened(self) -> int:
        return self.slides - len(self._ended | self._missing.keys())

    @property
    def patches_expected(self) -> float | None:
        """Patches that the whole run will have done; those of slides not opened are taken for the mean of the others. None: no idea yet."""
        fresh = (self._missing.keys() | self._ended) - self._done_before
        known = sum(self._missing.values())
        if self._unopened == 0:
            return known
        return known + self._unopened * known / len(fresh) if fresh and known else None

    @property
    def seconds_left(self) -> float | None:
        """None while nobody can tell."""
        expected, rate = self.patches_expected, self.rate
        if expected is None or not rate:
            return None
        return max(expected - self.patches_done, 0) / rate
