"""Batches prepared beside the step, and predictions side by side."""

import subprocess
import sys
import threading
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.builders import make_training_stores
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.store.patches import find_stores
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.data import LabelledPatches, MemoryPixels, load_labelled
from wsi_pipeline.training.fit import FitJob
from wsi_pipeline.training.ranks import run_fit
from wsi_pipeline.training.split import SplitChoice
from wsi_pipeline.training.threads import map_in_lanes, prepare_ahead

QUICK = TrainConfig(
    architecture="wide_resnet_10_1", epochs=1, batch_size=4, device="cpu", precision="fp32"
)


Numbers = Generator[int, None, None]
HALF = Normalisation((0.5,) * 3, (0.25,) * 3)


def threads_of(name: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(name)]


def count(numbers: int, closed: list[str] | None = None, fails_at: int = -1) -> Numbers:
    try:
        for number in range(numbers):
            if number == fails_at:
                raise StoreError(f"block {number}: damaged; tile the slide again")
            yield number
    finally:
        if closed is not None:
            closed.append(threading.current_thread().name)


def test_batches_come_in_their_order() -> None:
    with prepare_ahead(count(7)) as ready:
        assert list(ready) == [0, 1, 2, 3, 4, 5, 6]


def test_an_epoch_without_batches_ends_at_once() -> None:
    with prepare_ahead(count(0)) as ready:
        assert list(ready) == []


def test_batches_are_made_by_another_thread_with_one_thread_of_torch() -> None:
    seen: list[tuple[str, int]] = []

    def note() -> Numbers:
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        yield 1

    with prepare_ahead(note()) as ready:
        list(ready)
    assert seen == [("prepare_0", 1)]


def test_the_number_of_threads_of_torch_stays() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with prepare_ahead(count(3)) as ready:
            list(ready)
            assert torch.get_num_threads() == 2
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [2]
    finally:
        torch.set_num_threads(before)


def test_an_error_of_the_thread_is_raised_where_its_batch_is_taken() -> None:
    with prepare_ahead(count(5, fails_at=2)) as ready:
        assert [next(ready), next(ready)] == [0, 1]
        with pytest.raises(StoreError, match="block 2: damaged; tile the slide again"):
            next(ready)
    assert threads_of("prepare") == []


@pytest.mark.parametrize("reason", [StoreError("a step failed"), KeyboardInterrupt()])
def test_no_thread_is_left_where_a_step_ends_the_epoch(reason: BaseException) -> None:
    closed: list[str] = []

    def step() -> None:
        with prepare_ahead(count(100, closed)) as ready:
            next(ready)
            raise reason

    with pytest.raises(type(reason)):
        step()
    assert (threads_of("prepare"), len(closed)) == ([], 1)


INTERRUPTED = """
import os, signal, threading
from wsi_pipeline.training.threads import prepare_ahead

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it

def wait():
    yield 1
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(0.2)
    yield 2

try:
    with prepare_ahead(wait()) as ready:
        list(ready)
except KeyboardInterrupt:
    print([thread.name for thread in threading.enumerate()])
"""


def test_an_interrupt_ends_the_wait_for_a_batch() -> None:
    """In a process of its own, whose main thread is interrupted."""
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "['MainThread']\n"


def test_results_come_in_the_order_of_their_items() -> None:
    # The first of each pair is the slower one.
    def square(number: int) -> int:
        threading.Event().wait(0.02 if number % 2 == 0 else 0)
        return number**2

    assert list(map_in_lanes(square, range(7), lanes=2)) == [0, 1, 4, 9, 16, 25, 36]


def test_items_are_read_only_a_little_ahead() -> None:
    taken: list[int] = []

    def note() -> Numbers:
        for number in range(100):
            taken.append(number)
            yield number

    results = map_in_lanes(lambda number: number, note(), lanes=2)
    next(results)
    results.close()
    assert taken == [0, 1, 2, 3, 4]
    assert threads_of("validate") == []


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> LabelledPatches:
    folder = tmp_path_factory.mktemp("few") / "stores"
    return load_labelled(find_stores([make_training_stores(folder, patches=6)]))


def fit_once(patches: LabelledPatches, config: TrainConfig = QUICK) -> list[bytes]:
    division = SplitChoice(val_patients=("p1",)).divide(patches, config.seed)
    weights = run_fit(FitJob(config, patches, division), Listener()).kept_weights
    return [weights[name].numpy().tobytes() for name in sorted(weights)]


@pytest.mark.parametrize("cache", ["memory", "stores"])
def test_weights_are_those_of_batches_prepared_in_turn(
    cache: str, patches: LabelledPatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(QUICK, cache=cache)
    ahead = fit_once(patches, config)
    monkeypatch.setattr("wsi_pipeline.training.loop.prepare_ahead", closing)
    assert fit_once(patches, config) == ahead


def test_a_batch_that_cannot_be_read_ends_the_training_with_its_message(
    patches: LabelledPatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(pixels: MemoryPixels, batches: Any) -> Iterable[Tensor]:
        raise StoreError("p0.patches.zarr: block 3 is damaged; ingest again")

    monkeypatch.setattr("wsi_pipeline.training.fit.measure_normalisation", lambda pixels: HALF)
    monkeypatch.setattr(MemoryPixels, "stream", fail)
    with pytest.raises(StoreError, match=r"p0\.patches\.zarr: block 3 is damaged; ingest again"):
        fit_once(patches)
    assert threads_of("prepare") == []
