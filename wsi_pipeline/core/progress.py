"""Progress of a run: its listener, and rates and durations as text."""

from collections.abc import Callable
from functools import partial
from typing import Any

from wsi_pipeline.core.outcome import SlideOutcome


class Listener:
    """Receiver of a run's progress. Its methods do nothing: override some, or give functions."""

    def __init__(self, **functions: Callable[..., None]) -> None:
        for name, function in functions.items():
            setattr(self, name, function)

    def working_on(self, what: str) -> None:
        """Take what is being done before there are numbers, such as "loading the model"."""

    def say(self, line: str) -> None:
        """Take a line to keep: the model, the engine, the split, an epoch."""

    def progress(self, line: str, done: float, total: float | None) -> None:
        """Take the numbers of this moment as text, and how much is done of how much, if known."""

    def slide_ended(self, outcome: SlideOutcome) -> None:
        """Take the outcome of a slide."""

    def epoch_ended(self, epoch: Any) -> None:
        """Take an epoch of a training, a `training.loop.Epoch`."""


def relay(send: Callable[..., None]) -> Listener:
    """Return a listener that passes everything on as `send(method, *values)`."""
    names = ("working_on", "say", "progress", "slide_ended", "epoch_ended")
    return Listener(**{name: partial(send, name) for name in names})


def describe_rate(done: float, total: float, seconds: float, unit: str) -> str:
    """Return units per second and the time left at that rate; empty before anything is done."""
    if done <= 0 or seconds <= 0:
        return ""
    rate = done / seconds
    return f", {rate:,.0f} {unit}/s, {describe_duration(max(total - done, 0) / rate)} left"


def describe_duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
