"""Available CPU cores, and memory that is returned between slides."""

import ctypes
import itertools
import os
import sys

SLIDES_BETWEEN = 16
_ended = itertools.count(1)


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tidy_memory() -> None:
    """Have glibc return freed memory to the system, after every few slides.

    Otherwise scattered remains add up over days.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None and next(_ended) % SLIDES_BETWEEN == 0:
        trim(0)
