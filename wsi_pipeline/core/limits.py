"""The CPU cores that there are to work with, and memory that is given back between slides."""

import ctypes
import itertools
import os
import sys

SLIDES_BETWEEN = 16
_ended = itertools.count(1)


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tidy_memory() -> None:
    """Called when a slide has ended: every so often glibc hands back what it keeps of freed memory.

    Its scattered rests would add up for days otherwise.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None and next(_ended) % SLIDES_BETWEEN == 0:
        trim(0)
