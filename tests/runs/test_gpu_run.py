"""A run on GPUs, without one: the process that starts it leaves CUDA to its workers."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.builders import make_checkpoint, make_patches, make_store, make_table, write_model
from tests.pretended_gpus import elsewhere, refuse_cuda
from wsi_pipeline.core.choices import RUN_JSON
from wsi_pipeline.core.options import InferOptions
from wsi_pipeline.models.choice import EngineRequest, ResolvedEngine
from wsi_pipeline.models.opening import resolve_engine
from wsi_pipeline.runs.infer import infer_slides, list_stores
from wsi_pipeline.scheduling import Workers
from wsi_pipeline.scheduling.jobs import Step
from wsi_pipeline.scheduling.run import PlainLoop, WorkerPool

SIDE = 22


class Elsewhere(PlainLoop):
    """A worker process, with a CPU in the place of its GPU; it notes the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []

    def submit(self, step: Step, function: Callable[..., Any], *arguments: Any) -> None:
        self.kinds.append(step.kind)
        super().submit(step, choose_here if step.kind == "call" else function, *arguments)

    def next_done(self) -> tuple[Step, Any]:
        with elsewhere():
            return super().next_done()


def choose_here(path: Path, request: EngineRequest, terms: Any) -> ResolvedEngine:
    assert request.device == "cuda"
    return resolve_engine(path, EngineRequest("cpu", "torch", "fp32", 7), terms)


def test_the_process_that_starts_a_run_never_touches_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table([(k // 10, k % 10) for k in range(40)], side_px=SIDE, block_size=16)
    store = make_store(tmp_path / "s.patches.zarr", table, make_patches(40, SIDE))
    model = write_model(tmp_path / "m.safetensors", make_checkpoint(side_px=SIDE))
    worker = Elsewhere()

    @contextmanager
    def start(workers: Workers) -> Iterator[WorkerPool]:
        assert (workers.gpus, workers.processes) == (("0", "1"), 2)
        yield WorkerPool(worker, window=2)

    refuse_cuda(monkeypatch)
    options = InferOptions(device="cuda", outputs="summary")
    account = infer_slides(list_stores([store]), model, tmp_path / "r", options, open_pool=start)
    assert account.exit_code == 0, account.outcomes
    assert worker.kinds == ["call", "prepare", "block", "block", "block", "finish"]
    parameters = json.loads((tmp_path / "r" / RUN_JSON).read_text())["parameters"]
    assert (parameters["engine"], parameters["device"]) == ("torch", "cpu")
