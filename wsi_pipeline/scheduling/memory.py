"""Memory that is given back between slides."""

import ctypes
import itertools
import sys

SLIDES_BETWEEN = 16
_ended = itertools.count(1)


def tidy_memory() -> None:
    """Called when a slide has ended: every so often glibc hands back what it keeps of freed memory.

    Its scattered rests would add up for days otherwise.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None and next(_ended) % SLIDES_BETWEEN == 0:
        trim(0)
