"""Threads beside a training step: the next batch is prepared, and batches are predicted in lanes.

Each of them computes with one thread of torch, so that no number depends on how many cores there
are and threads of OpenMP never wait for one another.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import torch

AHEAD = 2
"""Batches that are prepared or being prepared while a step runs."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def prepare_ahead(batches: Generator[Item, None, None]) -> Iterator[Iterator[Item]]:
    """Give an iterator over the same batches in the same order, prepared by a thread.

    An error in that thread is raised where its batch is taken. The thread has ended when the block
    ends, however it ends.
    """
    with _open_pool(1, "prepare") as pool:
        try:
            yield _take(batches, pool)
        finally:
            pool.shutdown(cancel_futures=True)
            with suppress(ValueError):  # an interrupt came while the thread was being started
                batches.close()


def _take(batches: Iterator[Item], pool: ThreadPoolExecutor) -> Iterator[Item]:
    coming = deque(pool.submit(next, batches, None) for _ in range(AHEAD))
    while (batch := coming.popleft().result()) is not None:
        coming.append(pool.submit(next, batches, None))
        yield batch


def map_in_lanes(
    compute: Callable[[Item], Result], items: Iterable[Item], lanes: int
) -> Generator[Result, None, None]:
    """Yield the result of each item in order, several computed side by side."""
    coming: deque[Future[Result]] = deque()
    with _open_pool(lanes, "validate") as pool:
        try:
            for item in items:
                coming.append(pool.submit(compute, item))
                if len(coming) > AHEAD * lanes:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _open_pool(workers: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Open threads that compute with one thread of torch each, and leave torch's number as is."""
    threads = torch.get_num_threads()  # also settles the number of this thread
    try:
        with ThreadPoolExecutor(workers, name, partial(torch.set_num_threads, 1)) as pool:
            yield pool
    finally:  # threads that start later take the last number that was set
        torch.set_num_threads(threads)
