"""What training does differently on a GPU, without one: fakes, and tensors without values."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.builders import make_patches, make_training_stores
from tests.pretended_gpus import elsewhere, refuse_cuda
from wsi_pipeline.core.errors import EnvironmentFault, GpuLost
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.models.outlines import NetworkOptions
from wsi_pipeline.training import captured_step, ranks
from wsi_pipeline.training.augment import NO_AUGMENTATION, Augmentation, turn
from wsi_pipeline.training.captured_step import CapturedStep
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.faults import explained, predict_in_parts
from wsi_pipeline.training.fit import FitJob, fit_here, make_fabric
from wsi_pipeline.training.learner import Learner
from wsi_pipeline.training.optimise import Optimisation, Steps, TwoClasses
from wsi_pipeline.training.run import train
from wsi_pipeline.training.split import SplitChoice

SIDE = 16
QUICK = TrainConfig(
    architecture="wide_resnet_10_1", epochs=2, batch_size=16, device="cpu", precision="fp32"
)
EVERYTHING = Augmentation(affine=1.0, hed=0.05)


# --- augmentation


def test_every_symmetry_is_that_of_rot90_and_flip() -> None:
    x = torch.arange(16 * 3 * 25, dtype=torch.float32).view(16, 3, 5, 5)
    x = x.to(memory_format=torch.channels_last)
    turned = turn(x, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    quarters, mirrored = (torch.randint(0, most, (16,), generator=generator) for most in (4, 2))
    for patch, found, quarter, mirror in zip(x, turned, quarters, mirrored, strict=True):
        expected = torch.rot90(patch, int(quarter), dims=(1, 2))
        assert torch.equal(found, expected.flip(2) if mirror else expected)
    assert turned.is_contiguous(memory_format=torch.channels_last)


def test_no_augmentation_waits_for_a_value_on_the_device() -> None:
    """Tensors of the device `meta` have no values: an operation that needs one is refused."""
    pixels = torch.empty((6, 3, SIDE, SIDE), device="meta")
    changed = EVERYTHING.apply(pixels, torch.Generator().manual_seed(0))
    assert (changed.shape, changed.device.type) == (pixels.shape, "meta")
    with pytest.raises(RuntimeError, match="nonzero"):
        pixels[pixels > 0]  # as the turns did before


# --- the captured step


class FakeGraphs:
    """Recordings on the CPU, which replay as CUDA graphs do: into the memory of the recording."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        self.weights, self.recorded, self.replayed, self.eager = weights, 0, 0, 0

    def compute(self, step: Callable[[], Tensor]) -> Tensor:
        self.eager += 1
        return step()

    def record(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.recorded += 1
        loss = torch.zeros(())
        kept = [torch.zeros_like(weight) for weight in self.weights]
        for weight, gradient in zip(self.weights, kept, strict=True):
            weight.grad = gradient

        def replay() -> None:
            self.replayed += 1
            loss.copy_(step())
            for weight, gradient in zip(self.weights, kept, strict=True):
                assert weight.grad is not None
                gradient.copy_(weight.grad)

        return replay, loss


def make_learner(config: TrainConfig) -> Learner:
    fabric = make_fabric(config)
    fabric.launch()
    torch.manual_seed(0)
    network = build_network(config.architecture, SIDE, NetworkOptions(dropout=0.2))
    even = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Learner(network, config, Steps(8, 8), even, fabric, TwoClasses())


def learn(learner: Learner, sizes: list[int]) -> tuple[list[float], dict[str, Tensor]]:
    """Take a step on a batch of each size; the losses, and the state."""
    torch.manual_seed(1)
    pixels = torch.from_numpy(make_patches(sum(sizes), SIDE))
    labels = torch.arange(sum(sizes)) % 2
    batches = zip(pixels.split(sizes), labels.split(sizes), strict=True)
    draws = torch.Generator().manual_seed(2)
    losses = [float(learner.learn(learner.prepare(x, draws), own)) for x, own in batches]
    return losses, {name: each.clone() for name, each in learner.state().tensors.items()}


@pytest.mark.parametrize(
    "optimisation",
    [Optimisation(), Optimisation(ema=0.9, l1=1e-5, clip_norm=0.5, optimizer="sgd")],
    ids=["plain", "everything"],
)
def test_a_captured_step_is_the_step(optimisation: Optimisation) -> None:
    """Also around a smaller batch, which is computed as it comes."""
    config = replace(QUICK, optimisation=optimisation)
    sizes = [8, 8, 8, 8, 8, 5, 8, 8]
    plain, captured = make_learner(config), make_learner(config)
    weights = list(captured._network.parameters())
    graphs = FakeGraphs(weights)
    captured._descend = CapturedStep(captured._measure_gradients, weights, graphs)
    (losses, state), (others, other) = learn(plain, sizes), learn(captured, sizes)
    assert (graphs.eager, graphs.recorded, graphs.replayed) == (4, 1, 4)
    assert losses == others
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_a_network_that_cannot_be_captured_is_computed_as_it_comes() -> None:
    class Refusing(FakeGraphs):
        def record(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
            self.recorded += 1
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    learner, plain = make_learner(QUICK), make_learner(QUICK)
    weights = list(learner._network.parameters())
    graphs = Refusing(weights)
    learner._descend = CapturedStep(learner._measure_gradients, weights, graphs)
    sizes = [8] * 6
    assert learn(learner, sizes)[0] == learn(plain, sizes)[0]
    assert (graphs.recorded, graphs.eager) == (1, 6)


def test_memory_that_a_recording_lacks_is_not_taken_for_a_network_that_cannot_be_captured() -> None:
    class Full(FakeGraphs):
        def record(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    learner = make_learner(QUICK)
    weights = list(learner._network.parameters())
    learner._descend = CapturedStep(learner._measure_gradients, weights, Full(weights))
    with pytest.raises(torch.OutOfMemoryError):
        learn(learner, [8] * (captured_step.WARM_UP + 1))


def test_the_running_average_is_torchs_own() -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    learner = make_learner(replace(QUICK, optimisation=Optimisation(ema=0.75)))
    average = get_ema_multi_avg_fn(0.75)
    torchs = AveragedModel(learner._network, multi_avg_fn=average, use_buffers=True)
    for seed in range(3):
        learn(learner, [8 + seed])
        torchs.update_parameters(learner._network)
    for name, value in learner._average.state().items():  # type: ignore[union-attr]
        assert torch.equal(value, torchs.state_dict()[name]), name


# --- memory and other faults

FULL = (
    torch.OutOfMemoryError("out of memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:30])
def test_memory_that_runs_out_in_training_is_one_line_with_the_remedy(
    error: RuntimeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(learner: Learner, x: Tensor, labels: Tensor) -> Tensor:
        raise type(error)(str(error))

    monkeypatch.setattr(Learner, "learn", fail)
    stores = make_training_stores(tmp_path / "stores")
    with pytest.raises(EnvironmentFault) as caught:
        train([stores], tmp_path / "model", QUICK, SplitChoice(val_patients=("p1",)))
    assert str(caught.value) == (
        "the GPU's memory does not hold the network and a batch of 16 patches; give a smaller"
        " --batch-size, --cache memory or a smaller network, or end what else is on the GPU"
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA error: an illegal memory access was encountered", GpuLost),
        ("CUDA error: uncorrectable ECC error encountered", GpuLost),
        ("CUDA error: no kernel image is available", EnvironmentFault),
        ("std::bad_alloc", EnvironmentFault),
        ("mat1 and mat2 shapes cannot be multiplied", RuntimeError),
    ],
)
def test_a_fault_in_training_is_told_for_what_it_is(text: str, kind: type) -> None:
    with pytest.raises((EnvironmentFault, RuntimeError)) as caught, explained(QUICK):
        raise RuntimeError(text)
    assert caught.type is kind


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:30])
def test_validation_batches_that_do_not_fit_are_halved(error: RuntimeError) -> None:
    asked: list[int] = []

    def predict(batch: Tensor) -> Tensor:
        asked.append(len(batch))
        if len(batch) > 3:
            raise type(error)(str(error))
        return batch * 2

    found = predict_in_parts(predict, torch.arange(10))
    assert found.tolist() == [*range(0, 20, 2)]
    assert asked == [10, 5, 3, 2, 5, 3, 2]


def test_one_patch_that_does_not_fit_is_the_fault_itself() -> None:
    def predict(batch: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        predict_in_parts(predict, torch.arange(4))


# --- several GPUs


class Elsewhere:
    """A process that is started, with a CPU in the place of a GPU."""

    def __init__(self, *given: object) -> None:
        pass

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], checkpoint: Any, job: FitJob) -> "Elsewhere":
        with elsewhere():
            self.answer = function(checkpoint, replace(job, config=on_cpu(job)))
        return self

    def result(self) -> Any:
        return self.answer


def on_cpu(job: FitJob) -> TrainConfig:
    return replace(job.config, device="cpu", devices=1)


@pytest.mark.usefixtures("plots_left_out")
def test_the_process_that_starts_others_never_touches_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_cuda(monkeypatch)
    started: list[int] = []

    def start(rank: object, given: tuple[Any, ...], count: int) -> None:
        started.append(count)
        job = replace(given[1], config=on_cpu(given[1]))
        with elsewhere():
            fabric = make_fabric(job.config)
            fabric.launch()
            fit_here(fabric, job, Listener())

    monkeypatch.setattr(ranks, "start_processes", start)
    monkeypatch.setattr(ranks, "ProcessPoolExecutor", Elsewhere)
    config = replace(QUICK, epochs=1, device="cuda", devices=2, augmentation=NO_AUGMENTATION)
    stores = make_training_stores(tmp_path / "stores")
    trained = train([stores], tmp_path / "model", config, SplitChoice(val_patients=("p1",)))
    assert started == [2]
    assert trained.model.is_file()


def test_more_gpus_than_there_are_is_refused_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_cuda(monkeypatch)
    config = replace(QUICK, device="cuda", devices=3)
    stores = make_training_stores(tmp_path / "stores")
    with pytest.raises(EnvironmentFault, match="3 GPUs: this machine has 2; give fewer"):
        train([stores], tmp_path / "model", config, SplitChoice(val_patients=("p1",)))
    assert not (tmp_path / "model").exists()


def test_all_processes_take_the_cache_for_which_all_have_room() -> None:
    from wsi_pipeline.training.fit import agree_on_cache

    class Reducing:
        """The first process's part of two: the other has room for less."""

        device = torch.device("cpu")

        def all_reduce(self, rank: Tensor, reduce_op: str) -> Tensor:
            assert reduce_op == "max"
            return torch.maximum(rank, torch.tensor(1))

    assert agree_on_cache(Reducing(), "device") == "memory"  # type: ignore[arg-type]
    assert agree_on_cache(Reducing(), "stores") == "stores"  # type: ignore[arg-type]


def test_validation_and_inference_compute_alike_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32 in either, by the settings that torch lets others read."""
    from wsi_pipeline.models.device import compute_exactly

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        compute_exactly()
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cudnn.allow_tf32 is False
        assert torch.backends.cuda.matmul.allow_tf32 is False
    finally:
        torch.set_float32_matmul_precision(before)
