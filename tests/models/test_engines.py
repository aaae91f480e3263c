"""The contract that every engine keeps, how one is chosen, and what happens where it fails."""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests import ROOT
from tests.builders import make_checkpoint, make_overflowing, make_patches, write_model
from wsi_pipeline.core.choices import BF16, FP16, FP32
from wsi_pipeline.core.errors import ConfigError, EnvironmentFault, ModelError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.models import device, engines
from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.models.batch_sizes import SIZES_MEASURED, choose_cpu_batch, measure_batch
from wsi_pipeline.models.checkpoint import Checkpoint, load_checkpoint
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.engines import ENGINES, list_candidates
from wsi_pipeline.models.engines.engine import EngineFault, Run
from wsi_pipeline.models.engines.torch_eager import fold_batch_norm
from wsi_pipeline.models.model import (
    Model,
    SelfTest,
    compute_reference,
    make_self_test,
    make_test_patches,
)
from wsi_pipeline.models.opening import check_answers, open_first, open_predictor
from wsi_pipeline.models.predictor import Predictor

SIDE, BATCH = 12, 4


def make_lively(seed: int = 0) -> Checkpoint:
    """A small residual network whose batch normalisations have statistics, and whose probabilities
    spread.
    """
    torch.manual_seed(seed)
    network = build_network("wide_resnet_10_1", SIDE)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean, module.running_var = (
                torch.randn_like(module.bias) / 4,
                torch.rand_like(module.bias) + 0.5,
            )
    weights = network.state_dict()
    weights["classifier.weight"] *= 4
    return replace(
        make_checkpoint(),
        architecture="wide_resnet_10_1",
        spec=PatchSpec(SIDE, SIDE, 0.5),
        weights=weights,
    )


def expected(checkpoint: Checkpoint, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The plain eager loop: fp32, NCHW, nothing folded."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255
    with torch.inference_mode():
        return torch.sigmoid(checkpoint.build()((x - 0.5) / 0.25)).numpy()


SETTINGS = [
    pytest.param(
        EngineSetting(name, precision, "cpu"),
        marks=[pytest.mark.system] if name == "torch-compile" else [],
    )
    for name, engine in ENGINES.items()
    for precision in engine.precisions["cpu"]
]


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def opened(request: pytest.FixtureRequest) -> Predictor:
    """Every engine in every precision that it has on a CPU, at a fixed batch, on a model of 12-px
    patches.
    """
    return Predictor(make_lively(), request.param, BATCH)


def test_an_engine_gives_the_probabilities_of_the_plain_loop(opened: Predictor) -> None:
    pixels = make_patches(11, SIDE)
    plain = expected(make_lively(), pixels)
    assert np.ptp(plain) > 0.2
    assert np.abs(opened(pixels) - plain).max() <= opened.setting.bound


def test_an_engine_gives_numbers_of_the_right_kind(opened: Predictor) -> None:
    got = opened(make_patches(3, SIDE))
    assert got.dtype == np.float32
    assert got.shape == (3,)


def test_an_engine_gives_nothing_for_nothing(opened: Predictor) -> None:
    assert opened(make_patches(0, SIDE)).shape == (0,)


def test_an_engine_refuses_patches_of_another_size(opened: Predictor) -> None:
    with pytest.raises(ModelError, match="12 × 12 px"):
        opened(make_patches(2, 50))


def test_the_same_batch_gives_the_same_bits_in_any_order_and_beside_others(
    opened: Predictor,
) -> None:
    pixels = make_patches(10 * BATCH, SIDE)
    blocks = [pixels[start : start + 2 * BATCH] for start in range(0, len(pixels), 2 * BATCH)]
    whole = opened(pixels)
    backwards = [opened(block) for block in reversed(blocks)]
    assert np.array_equal(np.concatenate(backwards[::-1]), whole)
    found: dict[int, NDArray[np.float32]] = {}
    threads = [
        threading.Thread(target=lambda k=k: found.__setitem__(k, opened(blocks[k])))
        for k in range(len(blocks))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(np.concatenate([found[k] for k in range(len(blocks))]), whole)


def test_an_engine_says_nan_where_the_network_gives_no_number() -> None:
    for name in ("torch", "openvino"):
        broken = make_checkpoint(bias=float("nan"), side_px=22)
        assert np.isnan(Predictor(broken, EngineSetting(name), 2)(make_patches(3, 22))).all(), name


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_the_size_of_batches_changes_less_than_1e_5(name: str) -> None:
    pixels = make_patches(30, SIDE)
    one, other = (Predictor(make_lively(), EngineSetting(name), size)(pixels) for size in (1, 16))
    assert np.abs(one - other).max() < 1e-5


def test_folding_leaves_no_batch_norm_behind_a_convolution_and_the_same_outputs() -> None:
    network = build_network(
        "idc_cnn", 22, replace(make_checkpoint().options, batch_norm=True)
    ).eval()
    x = torch.rand(2, 3, 22, 22)
    folded = fold_batch_norm(network)
    nodes = folded.graph.nodes  # type: ignore[union-attr]
    modules = dict(folded.named_modules())
    used = [type(modules[str(node.target)]) for node in nodes if node.op == "call_module"]  # type: ignore[union-attr]
    assert nn.Conv2d in used
    assert nn.BatchNorm2d not in used
    assert torch.allclose(folded(x), network(x), atol=1e-5)


def test_a_network_whose_course_depends_on_its_input_is_left_as_it_is() -> None:
    class Choosy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    network = Choosy()
    assert fold_batch_norm(network) is network


# --- lower precisions


def test_patches_that_fp16_makes_infinite_are_computed_in_fp32() -> None:
    model, pixels = make_overflowing(), make_patches(5, 22)
    exact = Predictor(model, EngineSetting("torch", FP32))(pixels)
    assert np.isfinite(exact).all()
    run = ENGINES["torch"].load(model, EngineSetting("torch", FP16), 32)
    assert not torch.isfinite(run(pixels)).all()
    assert np.array_equal(Predictor(model, EngineSetting("torch", FP16))(pixels), exact)


# --- choosing


@pytest.fixture
def cpu_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that the CPU has these units, and that OpenVINO is or is not installed."""

    def pretend(*flags: str, openvino: bool = True) -> None:
        monkeypatch.setattr(device, "cpu_flags", lambda: frozenset(flags))
        monkeypatch.setitem(
            ENGINES,
            "openvino",
            replace(
                ENGINES["openvino"],
                find_fault=lambda model, place: None if openvino else "not here",
            ),
        )

    return pretend


@pytest.mark.parametrize(
    ("flags", "openvino", "engine", "precision"),
    [
        (["avx2"], True, "openvino", FP32),
        (["avx512_bf16"], True, "openvino", BF16),
        (["amx_bf16", "avx512_bf16"], True, "openvino", BF16),
        (["amx_bf16"], False, "torch", FP32),
        ([], False, "torch", FP32),
    ],
)
def test_auto_reads_the_device(
    flags: list[str], openvino: bool, engine: str, precision: str, cpu_with: Callable[..., None]
) -> None:
    cpu_with(*flags, openvino=openvino)
    first = list_candidates(make_lively(), "cpu")[0]
    assert first.setting == EngineSetting(engine, precision, "cpu")
    assert ("not here" in first.reason) == (not openvino)


@pytest.mark.parametrize(
    ("generation", "precision"), [((9, 0), BF16), ((8, 0), BF16), ((7, 5), FP16), ((6, 1), FP32)]
)
def test_auto_reads_the_gpu(
    generation: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(engines, "gpu_generation", lambda: generation)
    assert [candidate.setting for candidate in list_candidates(make_lively())] == [
        EngineSetting("torch", precision, "cuda")
    ]


def test_the_cpus_units_are_read_from_linux(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nflags\t\t: fpu avx512f amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    )
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "cpuinfo")
    device.cpu_flags.cache_clear()
    assert device.find_bf16_unit() == "amx_bf16"
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "nothing")
    device.cpu_flags.cache_clear()
    assert device.find_bf16_unit() is None
    device.cpu_flags.cache_clear()


@pytest.mark.parametrize(
    ("engine", "precision", "fault"),
    [
        ("tensorrt", "auto", "engine 'tensorrt'; it must be auto or one of torch"),
        ("torch", "int8", "precision 'int8'"),
        ("openvino", "fp16", "openvino: has no fp16 on cpu; it has fp32, bf16"),
        ("auto", "fp16", "no engine has it on this device"),
    ],
)
def test_what_cannot_be_chosen_is_refused(engine: str, precision: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        list_candidates(make_lively(), "cpu", engine, precision)


def test_openvino_runs_on_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "choose_device", lambda name: torch.device("cuda"))
    with pytest.raises(ConfigError, match="does not run on cuda; add --device cpu"):
        list_candidates(make_lively(), "cuda", "openvino")
    assert list_candidates(make_lively(), "auto", "openvino")[0].setting.device == "cpu"


def test_openvino_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"engine openvino: it is not installed; pip install 'wsi-pipeline\[cpu\]'"
    ):
        list_candidates(make_lively(), "cpu", "openvino")
    assert "openvino: it is not installed" in open_predictor(make_lively(), "cpu").line


def test_a_machine_without_a_compiler_is_told_to_install_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ModelError, match=r"no C\+\+ compiler; install g\+\+"):
        list_candidates(make_lively(), "cpu", "torch-compile")


def test_auto_goes_on_to_the_next_engine_where_one_does_not_take_the_model(
    cpu_with: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_with("avx2")

    def refuse(model: Model, setting: EngineSetting, batch_size: int) -> Run:
        raise EngineFault("wide_resnet_10_1: OpenVINO cannot take it (an operation of tomorrow)")

    monkeypatch.setitem(ENGINES, "openvino", replace(ENGINES["openvino"], load=refuse))
    opened = open_predictor(make_lively(), "cpu")
    assert opened.predictor.setting.engine == "torch"
    assert "an operation of tomorrow" in opened.line
    with pytest.raises(ModelError, match="an operation of tomorrow"):
        open_predictor(make_lively(), "cpu", "openvino")


class Odd(nn.Module):
    """Something that OpenVINO cannot take."""

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = torch.special.bessel_j0(x.float())
        return values.mean(dim=(1, 2, 3))


def test_a_network_that_openvino_cannot_convert_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_lively()
    monkeypatch.setattr(Checkpoint, "network", lambda self, **_: Odd())
    with pytest.raises(
        EngineFault,
        match=r"wide_resnet_10_1: OpenVINO cannot take it \(.{5,}\); use --engine torch",
    ):
        Predictor(model, EngineSetting("openvino"))


def test_openvino_leaves_logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "network", lambda self, **_: Odd())
    root = logging.getLogger()
    before = root.level, root.handlers[:], root.filters[:]
    with pytest.raises(EngineFault):
        Predictor(make_lively(), EngineSetting("openvino"))
    assert (root.level, root.handlers, root.filters) == before


@pytest.mark.system
def test_openvino_reports_nothing_to_its_makers() -> None:
    code = (
        "import sys; sys.path.insert(0, '.'); from tests.models.test_engines import *;"
        " Predictor(make_lively(), EngineSetting('openvino'))(make_patches(2, SIDE)); assert"
        " 'openvino' in sys.modules; print([name for name, module in sys.modules.items() if"
        " name.startswith('openvino_telemetry') and module is not None])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# --- the self-test


def test_a_checkpoint_keeps_its_self_test(tmp_path: Path) -> None:
    model = make_lively()
    path = write_model(tmp_path / "m.safetensors", replace(model, self_test=make_self_test(model)))
    loaded = load_checkpoint(path).self_test
    assert loaded is not None
    assert torch.equal(loaded.pixels, make_test_patches(SIDE))
    assert torch.equal(loaded.probability, compute_reference(model, make_test_patches(SIDE)))
    assert not [name for name in load_checkpoint(path).weights if "self_test" in name]


def test_the_drawn_patches_are_of_many_shades() -> None:
    means = make_test_patches(50).float().mean(dim=(1, 2, 3))
    assert means.max() > 200
    assert means.min() < 130


def test_the_self_test_is_part_of_the_digest(tmp_path: Path) -> None:
    model = make_lively()
    made = make_self_test(model)
    other = SelfTest(made.pixels, made.probability + 0.001)
    one = write_model(tmp_path / "1.safetensors", replace(model, self_test=made))
    two = write_model(tmp_path / "2.safetensors", replace(model, self_test=other))
    assert load_checkpoint(one).digest != load_checkpoint(two).digest


def test_a_self_test_for_patches_of_another_size_is_refused(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "m.safetensors",
        replace(make_lively(), self_test=make_self_test(make_checkpoint(side_px=22))),
    )
    with pytest.raises(ModelError, match="self-test has patches of another size"):
        load_checkpoint(path)


def test_answers_that_differ_are_refused_with_model_engine_and_remedy() -> None:
    model = make_lively()
    made = make_self_test(model)
    lying = replace(
        model, digest="0123456789abcdef", self_test=SelfTest(made.pixels, made.probability + 0.001)
    )
    with pytest.raises(
        ModelError,
        match=(
            r"wide_resnet_10_1 0123456789ab: openvino fp32 on the CPU .* 0\.001 .* 0\.0001"
            r" .*--engine torch"
        ),
    ):
        open_predictor(lying, "cpu", "openvino", FP32)
    with pytest.raises(ModelError, match=r"torch fp32 on the CPU .* train or export it again"):
        open_predictor(lying, "cpu", "torch", FP32)


def test_answers_that_are_no_numbers_are_refused() -> None:
    model = make_lively()
    silent = replace(
        model,
        weights={name: tensor * float("nan") for name, tensor in model.weights.items()},
        self_test=make_self_test(model),
    )
    with pytest.raises(ModelError, match="differ by 1"):
        check_answers(Predictor(silent))


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (True, "of its stored self-test"),
        (False, "of its plain network, because the model stores no self-test"),
    ],
)
def test_the_line_says_what_the_answers_were_held_against(stored: bool, said: str) -> None:
    model = make_lively()
    opened = open_predictor(
        replace(model, self_test=make_self_test(model)) if stored else model, "cpu", "torch"
    )
    assert opened.line.startswith("engine torch fp32 on the CPU: within ")
    assert opened.line.endswith(said)


def test_none_of_no_engines_can_be_opened() -> None:
    with pytest.raises(ModelError, match="no engine"):
        open_first(
            [],
            lambda setting: (
                Predictor(make_lively(), setting),
                check_answers(Predictor(make_lively())),
            ),
        )


# --- the size of batches


@pytest.mark.parametrize(("side_px", "batch"), [(12, 32), (50, 32), (100, 8), (224, 1), (2048, 1)])
def test_on_a_cpu_the_batch_is_read_from_a_table(side_px: int, batch: int) -> None:
    assert choose_cpu_batch(side_px) == batch


@pytest.mark.parametrize(
    ("milliseconds", "batch"),
    [
        ((256, 512, 1024, 2048, 4096), 256),  # all at 1,000 patches a second
        ((256, 400, 700, 1390, 2780), 1024),  # 1,463 a second from 1,024 on, 1,473 at the end
        ((256, 512, 1024, 2048, 2048), 4096),
    ],
)
def test_the_smallest_batch_of_the_fastest_is_taken(
    milliseconds: tuple[int, ...], batch: int
) -> None:
    seconds = {size: each / 1000 for size, each in zip(SIZES_MEASURED, milliseconds, strict=True)}
    assert measure_batch(seconds.__getitem__) == batch


FULL = (
    torch.OutOfMemoryError("out of memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)
"""What torch says where a GPU's memory, or memory that is pinned for it, is full."""


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:30])
@pytest.mark.parametrize(("room", "batch"), [(700, 512), (256, 256), (255, 128), (31, 16), (1, 1)])
def test_a_batch_that_does_not_fit_is_halved(room: int, batch: int, error: RuntimeError) -> None:
    def compute(size: int) -> float:
        if size > room:
            raise error
        return 1.0

    assert measure_batch(compute) == batch


def test_a_device_that_holds_not_one_patch_is_the_machines_fault() -> None:
    def compute(size: int) -> float:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(EnvironmentFault, match="does not hold the model and one patch"):
        measure_batch(compute)


def test_what_failed_for_another_reason_is_not_measured_smaller() -> None:
    def compute(size: int) -> float:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measure_batch(compute)


def test_a_setting_tells_itself() -> None:
    assert json.loads(json.dumps(EngineSetting("openvino", BF16).to_json())) == {
        "engine": "openvino",
        "precision": "bf16",
        "device": "cpu",
    }
    assert str(EngineSetting("torch", FP16, "cuda")) == "torch fp16 on a GPU"
