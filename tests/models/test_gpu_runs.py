"""A GPU's way of computing, on a device that only looks like one: order, slots, faults, and that
the numbers are the CPU's.
"""

import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.builders import make_checkpoint, make_overflowing, make_patches
from tests.models.test_domain import with_domain
from tests.models.test_engines import FULL, SIDE, make_lively
from wsi_pipeline.core.choices import BF16, FP16, FP32
from wsi_pipeline.core.errors import EnvironmentFault, GpuLost, ModelError
from wsi_pipeline.models import device_run
from wsi_pipeline.models.architectures.own_network import OwnNetwork
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.device_queue import Cuda, DeviceQueue, Slot
from wsi_pipeline.models.engines import ENGINES
from wsi_pipeline.models.engines.engine import Engine, Forward
from wsi_pipeline.models.engines.torch_eager import LowerNetwork, is_known, place
from wsi_pipeline.models.model import Model, PatchNetwork
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.models.stacked import Ensemble

LOST = RuntimeError("CUDA error: an illegal memory access was encountered")


class PretendedEvent:
    """An event that notes what is done with it."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self._name, self._notes = name, notes

    def record(self) -> None:
        self._notes.append(f"record {self._name}")

    def wait(self) -> None:
        self._notes.append(f"wait {self._name}")

    def synchronize(self) -> None:
        self._notes.append(f"synchronize {self._name}")


class PretendedCuda(Cuda):
    """The CPU in place of a GPU; every call is noted."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.events = 0

    def pin(self, size: int) -> NDArray[np.uint8]:
        return np.empty(size, np.uint8)

    def new_stream(self) -> Any:
        return None

    def new_event(self) -> PretendedEvent:
        self.events += 1
        kind = "sent" if self.events % 2 else "done"
        return PretendedEvent(f"{kind} {(self.events - 1) // 2}", self.notes)

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def synchronise(self) -> None:
        self.notes.append("synchronise")

    def capture(self, forward: Callable[[Tensor], Tensor], pixels: Tensor) -> Callable[[], Tensor]:
        self.notes.append(f"capture {len(pixels)}")
        output = forward(pixels)

        def replay() -> Tensor:
            self.notes.append("replay")
            return output.copy_(forward(pixels))

        return replay


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> PretendedCuda:
    """The device of every predictor on "cuda"."""
    device = PretendedCuda()
    monkeypatch.setattr(device_run, "Cuda", lambda: device)
    return device


def gpu(precision: str = FP32, engine: str = "torch") -> EngineSetting:
    return EngineSetting(engine, precision, "cuda")


# --- the thread that owns the device


class Noted:
    """A task that notes its way."""

    def __init__(self, name: str, notes: list[str], error: Exception | None = None) -> None:
        self.name, self.notes, self.error = name, notes, error
        self.where = "launch"
        self.begin = threading.Event()
        self.begin.set()
        self.slots: list[Slot] = []

    def launch(self, slot: Slot) -> None:
        self.begin.wait()
        self.slots.append(slot)
        self.notes.append(f"launch {self.name}")
        self._fail("launch")

    def fetch(self, slot: Slot) -> str:
        self.notes.append(f"fetch {self.name}")
        self._fail("fetch")
        return self.name

    def _fail(self, where: str) -> None:
        if self.error is not None and where == self.where:
            raise self.error

    def shrink(self, error: RuntimeError) -> None:
        self.notes.append(f"shrink {self.name}")
        self.error = None


def do_all(queue: DeviceQueue, tasks: list[Noted]) -> list[str | BaseException]:
    """Do tasks from as many threads, of which the first is launched when all are queued."""
    answers: dict[int, str | BaseException] = {}

    def do(number: int) -> None:
        try:
            answers[number] = queue.do(tasks[number])
        except BaseException as error:  # noqa: BLE001 - compared below
            answers[number] = error

    tasks[0].begin.clear()
    threads = []
    for number in range(len(tasks)):
        threads.append(threading.Thread(target=do, args=(number,)))
        threads[-1].start()
        while queue._inbox.qsize() < number:  # in their order
            pass
    tasks[0].begin.set()
    for thread in threads:
        thread.join()
    return [answers[number] for number in range(len(tasks))]


def queue_of(slots: int = 2) -> DeviceQueue:
    return DeviceQueue(PretendedCuda(), slots)


def test_the_next_block_is_launched_before_the_one_before_it_is_fetched() -> None:
    notes: list[str] = []
    tasks = [Noted(name, notes) for name in "abcd"]
    assert do_all(queue_of(), tasks) == ["a", "b", "c", "d"]
    ways = "launch a, launch b, fetch a, launch c, fetch b, launch d, fetch c, fetch d"
    assert notes == ways.split(", ")


def test_a_slot_is_used_again_when_its_block_was_fetched() -> None:
    notes: list[str] = []
    tasks = [Noted(name, notes) for name in "abcd"]
    do_all(queue_of(), tasks)
    a, b, c, d = (task.slots for task in tasks)
    assert (a == c, b == d, a == b) == (True, True, False)


@pytest.mark.parametrize("where", ["launch", "fetch"])
def test_an_error_reaches_who_asked_and_nobody_else(where: str) -> None:
    notes: list[str] = []
    tasks = [Noted(name, notes, LOST if name == "b" else None) for name in "abc"]
    tasks[1].where = where
    assert do_all(queue_of(), tasks) == ["a", LOST, "c"]


@pytest.mark.parametrize(
    ("where", "way"),
    [
        ("launch", "launch a, launch b, fetch a, shrink b, launch b, fetch b, launch c, fetch c"),
        ("fetch", "launch a, launch b, fetch a, launch c, fetch b, shrink b, launch b, fetch b,"
                  " fetch c"),
    ],
)  # fmt: skip
def test_a_block_that_does_not_fit_is_computed_again_and_none_is_lost(where: str, way: str) -> None:
    notes: list[str] = []
    tasks = [Noted(name, notes, FULL[0] if name == "b" else None) for name in "abc"]
    tasks[1].where = where
    assert do_all(queue_of(), tasks) == ["a", "b", "c"]
    assert notes == way.split(", ")


def test_the_thread_ends_with_its_queue() -> None:
    before = set(threading.enumerate())
    queue = queue_of()
    (thread,) = set(threading.enumerate()) - before
    queue.do(Noted("a", []))
    del queue
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_what_is_computed_waits_for_its_copy_and_its_answer_is_waited_for() -> None:
    device = PretendedCuda()
    slot = Slot(device)
    (there,) = slot.send([np.arange(3, dtype=np.float32)])
    slot.answer(there * 2.0)
    assert device.notes == ["record sent 0", "wait sent 0", "record done 0"]
    assert [answer.tolist() for answer in slot.fetch()] == [[0, 2, 4]]
    assert device.notes[3:] == ["synchronize done 0"]


def test_a_slot_takes_arrays_of_any_size_one_after_another() -> None:
    slot = Slot(PretendedCuda())
    for size in (4, 0, 9, 2):
        arrays: list[NDArray[Any]] = [np.arange(size), np.ones((size, 2), np.uint8)]
        sent = slot.send(arrays)
        assert all(np.array_equal(t.numpy(), a) for t, a in zip(sent, arrays, strict=True))


# --- the numbers


@pytest.mark.parametrize("patches", [0, 1, 31, 32, 33, 96])
def test_in_fp32_the_numbers_are_the_cpus(patches: int, cuda: PretendedCuda) -> None:
    """Those of whole batches to the last bit; the rest is a smaller batch here, filled there."""
    pixels, whole = make_patches(patches, SIDE), patches // 32 * 32
    given = Predictor(make_lively(), gpu(), batch_size=32).predict_logits(pixels)
    known = Predictor(make_lively(), batch_size=32).predict_logits(pixels)
    assert np.array_equal(given[:whole], known[:whole])
    assert given == pytest.approx(known, abs=1e-5)


def test_an_ensemble_gives_its_spread(cuda: PretendedCuda) -> None:
    model, pixels = Ensemble((make_lively(), make_lively(1))), make_patches(40, SIDE)
    given, known = (
        Predictor(model, setting, 8).predict(pixels) for setting in (gpu(), EngineSetting())
    )
    assert np.array_equal(given.logits, known.logits)
    assert given.spread is not None
    assert known.spread is not None
    assert np.array_equal(given.spread, known.spread)


def test_the_features_of_the_chosen_patches_are_compared(cuda: PretendedCuda) -> None:
    pixels, chosen = make_patches(40), np.array([0, 3, 8, 31, 39])
    for compared in (chosen, chosen[:0], np.arange(40)):
        given, known = (
            Predictor(with_domain(), setting, 8).predict(pixels, compared).distance  # whole batches
            for setting in (gpu(), EngineSetting())
        )
        assert given is not None
        assert given.tolist() == known.tolist()  # type: ignore[union-attr]


def test_threads_share_a_gpu(cuda: PretendedCuda) -> None:
    predictor, pixels = Predictor(make_lively(), gpu(), 8), make_patches(80, SIDE)
    blocks = [pixels[start : start + 20] for start in range(0, 80, 20)]
    expected = [predictor(block) for block in blocks]
    found: dict[int, NDArray[np.float32]] = {}
    threads = [
        threading.Thread(target=lambda k=k: found.__setitem__(k, predictor(blocks[k % 4])))
        for k in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[k], expected[k % 4]) for k in range(12))


def test_whole_batches_are_captured_once_and_the_rest_is_not(cuda: PretendedCuda) -> None:
    predictor = Predictor(make_lively(), gpu(), 8)
    predictor(make_patches(20, SIDE))
    predictor(make_patches(17, SIDE))
    notes = [note for note in cuda.notes if note.startswith(("capture", "replay"))]
    assert notes == ["capture 8", "replay", "replay", "replay", "replay"]


def test_a_network_that_cannot_be_captured_is_launched_in_parts(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(forward: object, pixels: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda, "capture", refuse)
    pixels = make_patches(64, SIDE)
    given = Predictor(make_lively(), gpu(), 32)(pixels)
    assert np.array_equal(given, Predictor(make_lively(), batch_size=32)(pixels))
    assert caplog.text.count("not captured as a CUDA graph") == 1


def test_memory_that_cannot_be_pinned_is_ordinary_memory(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(size: int) -> None:
        raise RuntimeError("CUDA error: out of memory")

    predictor, pixels = Predictor(make_lively(), gpu(), 32), make_patches(4, SIDE)
    buffers = predictor.tile_buffers
    assert buffers is not None
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "pin", refuse)
        copied = buffers.copy(pixels)
    assert np.array_equal(copied, pixels)


# --- lower precisions


def test_a_lower_precision_is_that_of_the_weights_but_for_statistics(cuda: PretendedCuda) -> None:
    network = place(make_lively(), gpu(BF16), cuda.device)
    assert isinstance(network, LowerNetwork)
    kinds = {type(part): {p.dtype for p in part.parameters(recurse=False)}
             for part in network.modules() if list(part.parameters(recurse=False))}  # fmt: skip
    assert kinds[nn.Conv2d] == {torch.bfloat16}
    assert kinds.get(nn.BatchNorm2d, {torch.float32}) == {torch.float32}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_users_code_and_scripts_are_not_known() -> None:
    """Torch chooses their precisions step by step, and no graph is captured of them."""
    model = make_lively()
    patches = PatchNetwork(OwnNetwork(nn.Linear(3, 1)), model.normalisation)
    script = torch.jit.script(nn.Linear(3, 1))
    assert not is_known(patches)
    assert not is_known(nn.Sequential(script))
    assert is_known(model.network())


@pytest.mark.parametrize("precision", [BF16, FP16])
def test_a_lower_precision_keeps_its_bound(precision: str, cuda: PretendedCuda) -> None:
    pixels = make_patches(20, SIDE)
    given = Predictor(make_lively(), gpu(precision), 8)(pixels)
    assert np.abs(given - Predictor(make_lively())(pixels)).max() <= gpu(precision).bound


def test_in_an_ensemble_every_member_has_the_lower_precision(cuda: PretendedCuda) -> None:
    network = place(Ensemble((make_lively(), make_lively(1))), gpu(BF16), cuda.device)
    assert isinstance(network, nn.Module)
    assert sum(isinstance(part, LowerNetwork) for part in network.modules()) == 2


def test_what_fp16_makes_infinite_is_computed_in_fp32(cuda: PretendedCuda) -> None:
    model, pixels = make_overflowing(), make_patches(5, 22)
    exact = Predictor(model, batch_size=5)(pixels)
    assert np.isfinite(exact).all()
    assert np.array_equal(Predictor(model, gpu(FP16), 5)(pixels), exact)


def test_no_number_stays_none(cuda: PretendedCuda) -> None:
    broken = make_checkpoint(bias=float("nan"), side_px=22)
    assert np.isnan(Predictor(broken, gpu(), 2)(make_patches(3, 22))).all()


# --- memory and faults


def add_engine(
    monkeypatch: pytest.MonkeyPatch, name: str, wrap: Callable[[Forward], Forward]
) -> None:
    """Add an engine that computes as torch does, with something in between."""

    def place_wrapped(model: Model, setting: EngineSetting, device: torch.device) -> Forward:
        return wrap(place(model, setting, device))

    engine = Engine(
        name, {"cuda": (FP32,)}, lambda model, where: None, ENGINES["torch"].load,
        place=place_wrapped,
    )  # fmt: skip
    monkeypatch.setitem(ENGINES, name, engine)


@pytest.fixture
def narrow(
    request: pytest.FixtureRequest, cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """An engine `narrow` with memory for five patches; gives the sizes that it was asked for."""
    error = getattr(request, "param", FULL[0])
    asked: list[int] = []

    def wrap(forward: Forward) -> Forward:
        def compute(pixels: Tensor) -> Tensor:
            asked.append(len(pixels))
            if len(pixels) > 5:
                raise type(error)(str(error))
            return forward(pixels)

        return compute

    add_engine(monkeypatch, "narrow", wrap)
    return asked


@pytest.mark.parametrize("narrow", FULL, ids=lambda error: str(error)[:30], indirect=True)
def test_a_batch_that_runs_out_of_memory_is_halved_and_remembered(narrow: list[int]) -> None:
    predictor = Predictor(make_lively(), gpu(engine="narrow"), measured=16)
    pixels = make_patches(40, SIDE)
    assert np.array_equal(predictor(pixels), Predictor(make_lively(), batch_size=4)(pixels))
    assert predictor.batch_size == 4
    narrow.clear()
    predictor(pixels)
    assert max(narrow) == 4


def test_a_batch_that_the_user_chose_is_not_changed_in_silence(narrow: list[int]) -> None:
    with pytest.raises(
        EnvironmentFault,
        match="does not hold batches of 8 patches; give a smaller --batch-size, or auto",
    ):
        Predictor(make_lively(), gpu(engine="narrow"), 8)(make_patches(40, SIDE))


def test_the_size_of_batches_is_measured_once(narrow: list[int]) -> None:
    predictor = Predictor(make_lively(), gpu(engine="narrow"))
    assert predictor.settle_batch() == 4
    assert narrow[:3] == [256, 128, 64]
    narrow.clear()
    assert predictor.settle_batch() == 4
    assert narrow == []


def test_a_size_that_was_measured_elsewhere_is_taken(narrow: list[int]) -> None:
    predictor = Predictor(make_lively(), gpu(engine="narrow"), measured=3)
    assert (predictor.settle_batch(), narrow) == (3, [])


def test_what_a_failed_batch_held_is_given_back_before_the_next(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames of an error hold the tensors of the batch that did not fit."""
    held: list[weakref.ref[NDArray[np.float32]]] = []

    def wrap(forward: Forward) -> Forward:
        def compute(pixels: Tensor) -> Tensor:
            activations = np.zeros(pixels.shape, np.float32)
            if not held:
                held.append(weakref.ref(activations))
                raise torch.OutOfMemoryError("out of memory")
            assert held[0]() is None
            return forward(pixels)

        return compute

    add_engine(monkeypatch, "greedy", wrap)
    Predictor(make_lively(), gpu(engine="greedy"), measured=16)(make_patches(8, SIDE))
    assert held


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("CUDA error: an illegal memory access was encountered", GpuLost, "the GPU failed"),
        ("CUDA error: uncorrectable ECC error encountered", GpuLost, "see nvidia-smi"),
        ("CUDA error: device-side assert triggered", GpuLost, "Xid"),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", GpuLost, "EXECUTION_FAILED"),
        ("CUDA error: no kernel image is available", EnvironmentFault, "no kernel image"),
        ("CUDA error: out of memory", EnvironmentFault, "out of memory.*end other programs"),
    ],
)
@pytest.mark.parametrize("is_loading", [True, False])
def test_a_gpu_that_fails_is_told_as_one(
    is_loading: bool,
    text: str,
    kind: type,
    message: str,
    cuda: PretendedCuda,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(pixels: Tensor) -> Tensor:
        raise RuntimeError(text)

    def wrap(forward: Forward) -> Forward:
        return fail(torch.empty(0)) if is_loading else fail  # type: ignore[return-value]

    add_engine(monkeypatch, "failing", wrap)
    if "out of memory" in text and not is_loading:
        message = "does not hold the model and one patch"
    with pytest.raises(EnvironmentFault, match=message) as caught:
        Predictor(make_lively(), gpu(engine="failing"), measured=4)(make_patches(2, SIDE))
    assert caught.type is kind


def test_a_gpu_that_is_lost_while_it_is_captured_is_lost(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(forward: object, pixels: object) -> None:
        raise LOST

    monkeypatch.setattr(cuda, "capture", fail)
    with pytest.raises(GpuLost, match="illegal memory access"):
        Predictor(make_lively(), gpu(), 2)(make_patches(2, SIDE))


def test_a_gpu_that_is_lost_later_is_told_to_who_waits(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA tells of a fault when somebody waits for what caused it."""

    def fail(event: PretendedEvent) -> None:
        raise LOST

    predictor = Predictor(make_lively(), gpu(), 2)
    monkeypatch.setattr(PretendedEvent, "synchronize", fail)
    with pytest.raises(GpuLost, match="illegal memory access"):
        predictor(make_patches(2, SIDE))


def test_an_engine_without_a_gpu_says_so(cuda: PretendedCuda) -> None:
    with pytest.raises(ModelError, match="engine openvino: does not run on a GPU"):
        Predictor(make_lively(), gpu(engine="openvino"))
