"""A step's forward and backward pass, recorded once and replayed.

A small network's step is some hundred kernels, which a GPU computes faster than Python can name
them. A recording (a CUDA graph) starts all of them by one call.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from wsi_pipeline.core.errors import one_line
from wsi_pipeline.models.batch_sizes import is_full

WARM_UP = 3
"""Steps before the recording, in which libraries prepare their memory and choose algorithms."""
logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """The means of recording."""

    def compute(self, step: Callable[[], Tensor]) -> Tensor:
        """Return the result of a step that is not recorded."""
        ...

    def record(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Return what replays a step, and its result, which each replay writes anew.

        The step itself is not computed.
        """
        ...


class CudaRecorder:
    """Recordings as CUDA graphs."""

    def __init__(self) -> None:
        self._beside = torch.cuda.Stream()

    def compute(self, step: Callable[[], Tensor]) -> Tensor:
        # Beside the stream of everything else: gradients remember the stream that made them.
        current = torch.cuda.current_stream()
        self._beside.wait_stream(current)
        with torch.cuda.stream(self._beside):
            result = step()
        current.wait_stream(self._beside)
        return result

    def record(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = step()
        return graph.replay, result


@dataclass(frozen=True, slots=True)
class _Recording:
    x: Tensor
    labels: Tensor
    gradients: list[Tensor | None]
    replay: Callable[[], None]
    loss: Tensor


class CapturedStep:
    """Computes the gradients of batches: full ones by a recording, others as they come."""

    def __init__(
        self,
        measure_gradients: Callable[[Tensor, Tensor], Tensor],
        weights: Sequence[nn.Parameter],
        recorder: Recorder,
    ) -> None:
        """`measure_gradients` leaves gradients in the weights, and returns the loss."""
        self._measure, self._weights, self._recorder = measure_gradients, weights, recorder
        self._full: torch.Size | None = None
        self._seen, self._may_record = 0, True
        self._recording: _Recording | None = None

    def __call__(self, x: Tensor, labels: Tensor) -> Tensor:
        """Leave the gradients of a batch in the weights; return its loss, a scalar."""
        self._full = self._full or x.shape
        if x.shape == self._full:
            self._seen += 1
            if self._may_record and self._seen > WARM_UP and self._recording is None:
                self._recording = self._try_to_record(x, labels)
            if self._recording is not None:
                return self._replay(self._recording, x, labels)
        return self._recorder.compute(lambda: self._measure(x, labels))

    def _try_to_record(self, x: Tensor, labels: Tensor) -> _Recording | None:
        """Record the step; a network that cannot be recorded is computed as it comes."""
        x, labels = x.clone(), labels.clone()
        try:
            replay, loss = self._recorder.record(lambda: self._measure(x, labels))
        except RuntimeError as error:
            if is_full(error):
                raise
            logger.info("steps are not recorded: %s", one_line(error))
            self._may_record = False
            return None
        return _Recording(x, labels, [weight.grad for weight in self._weights], replay, loss)

    def _replay(self, recording: _Recording, x: Tensor, labels: Tensor) -> Tensor:
        recording.x.copy_(x)
        recording.labels.copy_(labels)
        recording.replay()
        # A batch in between that was computed as it came left gradients of its own.
        for weight, gradient in zip(self._weights, recording.gradients, strict=True):
            weight.grad = gradient
        return recording.loss.clone()
