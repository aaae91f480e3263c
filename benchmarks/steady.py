"""The steady state of a run, between its start and its end, and the work of its GPU."""

import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

WAVES = 5
"""Waves of blocks that are measured: a wave is one block of every thread."""
EVERY_S = 0.2


class BlockEnd(NamedTuple):
    """The moment at which a block was done, in seconds of any clock, and its patches."""

    moment: float
    patches: int


def blocks_needed(threads: int) -> int:
    """Return the blocks of a run whose steady state has enough waves: one more at either end."""
    return (WAVES + 2) * threads


def steady_seconds(ends: Sequence[BlockEnd], threads: int) -> float:
    """Return the seconds per patch between the first wave of blocks and the last.

    In the first all threads begin at once, in the last some have nothing left to do. Raises
    ValueError where less than five waves are left.
    """
    inner = ends[threads - 1 : len(ends) - threads]
    if len(inner) <= WAVES * threads:
        raise ValueError(
            f"{len(ends)} blocks are too few for {threads} threads; at least"
            f" {blocks_needed(threads)} are needed"
        )
    patches = sum(end.patches for end in inner[1:])
    return (inner[-1].moment - inner[0].moment) / patches


@dataclass
class GpuUse:
    """Memory of the machine's GPUs, in MiB, and the share of time in which one computed."""

    memory_mib: list[int] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)

    @property
    def most_memory_mib(self) -> int | None:
        """The most memory that was taken; None without a GPU."""
        return max(self.memory_mib, default=None)

    @property
    def mean_busy(self) -> float | None:
        """Per cent of the time; None without a GPU."""
        return sum(self.busy) / len(self.busy) if self.busy else None


@contextmanager
def watched_gpu() -> Iterator[GpuUse]:
    """Ask nvidia-smi again and again for as long as the block lasts."""
    use, ended = GpuUse(), threading.Event()

    def watch() -> None:
        while not ended.wait(EVERY_S):
            note_gpu(use)

    watching = threading.Thread(target=watch)
    if shutil.which("nvidia-smi"):
        watching.start()
    try:
        yield use
    finally:
        ended.set()
        if watching.ident is not None:
            watching.join()


def note_gpu(use: GpuUse) -> None:
    """Add what nvidia-smi tells of the first GPU now."""
    query = ["nvidia-smi", "--query-gpu=memory.used,utilization.gpu"]
    command = [*query, "--format=csv,noheader,nounits", "--id=0"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split(",")
    if len(told) == 2 and all(part.strip().isdecimal() for part in told):
        use.memory_mib.append(int(told[0]))
        use.busy.append(int(told[1]))
