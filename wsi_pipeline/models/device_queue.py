"""A GPU and the one thread that owns it.

Blocks come from many threads. The next one is copied and its computing is queued on the GPU before
the numbers of the one before it are waited for, so that the GPU always has work; copies and
computing run side by side, each block in a slot of its own. Nothing is locked while it is copied.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.models.batch_sizes import is_full

SLOTS = 3
"""One block is copied, one computed, and one's numbers are on their way back."""
WARM_UP_RUNS = 3
"""Runs before a capture: libraries choose their algorithms and take their memory."""


class Event(Protocol):
    """A point in a stream of the device."""

    def record(self) -> None: ...

    def wait(self) -> None: ...

    def synchronize(self) -> None: ...


class Cuda:
    """All that a queue asks of CUDA; tests put a device without a GPU in its place."""

    device = torch.device("cuda")

    def pin(self, size: int) -> NDArray[np.uint8]:
        """Return bytes of memory that the device copies from, and to, by itself."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()

    def new_stream(self) -> Any:
        """Return a stream that runs beside the others."""
        return torch.cuda.Stream()

    def new_event(self) -> Event:
        """Return an event on which a thread sleeps."""
        event: Event = torch.cuda.Event(blocking=True)
        return event

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Queue what follows on a stream."""
        return torch.cuda.stream(stream)

    def synchronise(self) -> None:
        """Wait for everything that is queued."""
        torch.cuda.synchronize()

    def capture(self, forward: Callable[[Tensor], Tensor], pixels: Tensor) -> Callable[[], Tensor]:
        """Return what computes `forward(pixels)` of the pixels that are then there, as one launch.

        Each run overwrites the output of the one before it.
        """
        current, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP_RUNS):
                forward(pixels)
        current.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads take pinned memory meanwhile, which does not concern this capture.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = forward(pixels)
        finally:
            torch.cuda.set_stream(current)  # which a capture that fails leaves to us

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


class Slot:
    """Room on the device for one block, with a stream for its copies.

    It is used again only after its numbers were fetched.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._stream = cuda.new_stream()
        self._sent, self._done = cuda.new_event(), cuda.new_event()
        self._rooms: dict[int, Tensor] = {}
        self._answers: list[Tensor] = []

    def send(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        """Begin to copy arrays to the device; what is computed next waits for them there.

        They must stay as they are until the slot's numbers are fetched.
        """
        with self._cuda.on(self._stream):
            sent = [self._put(number, array) for number, array in enumerate(arrays)]
            self._sent.record()
        self._sent.wait()
        return sent

    def _put(self, number: int, array: NDArray[Any]) -> Tensor:
        host = torch.from_numpy(array)
        room = self._rooms.get(number)
        if room is None or room.nbytes < host.nbytes:
            room = None
            self._rooms.pop(number, None)  # given back first
            # Taken on the stream of the copies: memory of the computing stream might be in use.
            room = torch.empty(host.nbytes, dtype=torch.uint8, device=self._cuda.device)
            self._rooms[number] = room
        there = room[: host.nbytes].view(host.dtype).view(host.shape)
        return there.copy_(host, non_blocking=True)

    def answer(self, *numbers: Tensor) -> None:
        """Begin to copy results, float32, back, behind what computes them."""
        self._answers = []
        for there in numbers:
            pinned = self._cuda.pin(there.nbytes).view(np.float32).reshape(there.shape)
            self._answers.append(torch.from_numpy(pinned).copy_(there, non_blocking=True))
        self._done.record()

    def fetch(self) -> list[Tensor]:
        """Wait for the results. Raises RuntimeError where the device failed on the way."""
        self._done.synchronize()
        answers, self._answers = self._answers, []
        return answers


class Task(Protocol):
    """One block's way over the device; all of it runs in the thread that owns the device."""

    def launch(self, slot: Slot) -> None:
        """Queue copies and computing, and wait for nothing."""

    def fetch(self, slot: Slot) -> Any:
        """Wait for the results and return them."""

    def shrink(self, error: RuntimeError) -> None:
        """Do with less of the device's memory from now on. Raises EnvironmentFault."""


class _Entry:
    """A task, and where its results go."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.future: Future[Any] = Future()

    def finish(self, slot: Slot) -> None:
        """Fetch the results, or the error."""
        try:
            self.future.set_result(self.task.fetch(slot))
        except BaseException as error:  # noqa: BLE001 - whoever waits for it raises it
            self.fail(slot, error)

    def fail(self, slot: Slot, error: BaseException) -> None:
        """Do the task again with less memory where that ran out, until it is done or has failed."""
        while isinstance(error, RuntimeError) and is_full(error):
            try:
                self.task.shrink(error)
                self.task.launch(slot)
                self.future.set_result(self.task.fetch(slot))
            except BaseException as another:  # noqa: BLE001 - as above
                error = another
            else:
                return
        self.future.set_exception(error)


class DeviceQueue:
    """The thread that owns a device, and the queue before it."""

    def __init__(self, cuda: Cuda, slots: int = SLOTS) -> None:
        self._inbox: SimpleQueue[_Entry | None] = SimpleQueue()
        owner = _Owner(self._inbox, [Slot(cuda) for _ in range(slots)])
        threading.Thread(target=owner.work, daemon=True, name="device").start()
        weakref.finalize(self, self._inbox.put, None)  # the thread knows nothing of this object

    def do(self, task: Task) -> Any:
        """Return a task's results. Raises what it raises."""
        entry = _Entry(task)
        self._inbox.put(entry)
        return entry.future.result()


class _Owner:
    """The inside of the thread that owns a device."""

    def __init__(self, inbox: "SimpleQueue[_Entry | None]", free: list[Slot]) -> None:
        self._inbox = inbox
        self._free = free
        self._under_way: deque[tuple[_Entry, Slot]] = deque()

    @torch.inference_mode()
    def work(self) -> None:
        """Launch what comes as long as a slot is free; else finish what was launched first."""
        while True:
            try:
                entry = self._inbox.get(block=not self._under_way) if self._free else None
            except Empty:
                self._finish_first()
                continue
            if entry is not None:
                self._launch(entry)
                del entry  # nothing of a block is held while the next one is waited for
            elif self._under_way:
                self._finish_first()
            else:
                return  # nobody is left to ask for anything

    def _launch(self, entry: _Entry) -> None:
        slot = self._free.pop()
        try:
            entry.task.launch(slot)
        except BaseException as error:  # noqa: BLE001 - whoever waits for it raises it
            while self._under_way:  # launched before it: whole, and they give their memory back
                self._finish_first()
            entry.fail(slot, error)
            self._free.append(slot)
        else:
            self._under_way.append((entry, slot))

    def _finish_first(self) -> None:
        entry, slot = self._under_way.popleft()
        entry.finish(slot)
        self._free.append(slot)
