"""A step under watch in its worker process: how long it took, and an end to it where it hangs.

A thread cannot be stopped from outside, so a worker whose step outlives its deadline says so and ends itself; its keeper starts another.
"""

import logging
import os
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from distributed import get_worker

from wsi_pipeline.scheduling.jobs import Deadlines, Step

HUNG_TOPIC = "wsi-hung"
FLUSH_S = 1.0
"""Time that the last message gets on its way out."""
ENOUGH = 3
"""Blocks that make a median."""

logger = logging.getLogger(__name__)


class Timed(NamedTuple):
    """What a step gave back, and the seconds it took."""

    value: Any
    seconds: float


def choose_deadline(step: Step, deadlines: Deadlines, seconds_before: deque[float]) -> float:
    """Seconds that a step may take, by what blocks took before it: max(floor, factor × median)."""
    if step.kind != "block":
        return deadlines.others_s
    if len(seconds_before) < ENOUGH:
        return deadlines.first_s
    return max(deadlines.floor_s, deadlines.factor * statistics.median(seconds_before))


_seconds: deque[float] = deque(maxlen=101)
"""What blocks took in this process."""


def run_watched(step: Step, deadline_s: float, deadlines: Deadlines, key: str, function: Callable[..., Any], *arguments: Any) -> Timed:
    """Run a step in a worker. It is stopped after `deadline_s`, or earlier where this process knows blocks to be faster."""
    deadline_s = min(deadline_s, choose_deadline(step, deadlines, _seconds))
    watch = threading.Timer(deadline_s, _give_up, [get_worker(), key, deadline_s])
    watch.daemon = True
    watch.start()
    started = time.monotonic()
    try:
        value = function(*arguments)
    finally:
        watch.cancel()
    seconds = time.monotonic() - started
    if step.kind == "block":
        _seconds.append(seconds)
    return Timed(value, seconds)


def _give_up(worker: Any, key: str, deadline_s: float) -> None:
    worker.log_event(HUNG_TOPIC, {"key": key, "seconds": deadline_s})
    time.sleep(FLUSH_S)
    os.kill(os.getpid(), signal.SIGKILL)
