"""Facts that have to be right on a GPU: numbers, memory, faults, and the commands themselves."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch
from gpu_report import WSI, Report, last_lines, run_wsi
from numpy.typing import NDArray
from slide_maker import make_slide

from wsi_pipeline.core.choices import AUTO, RUN_JSON
from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.core.options import InferOptions
from wsi_pipeline.models.batch_sizes import give_memory_back
from wsi_pipeline.models.checkpoint import Checkpoint, save_checkpoint
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.device import compute_exactly
from wsi_pipeline.models.engines import ENGINES
from wsi_pipeline.models.model import make_self_test
from wsi_pipeline.models.opening import make_random_checkpoint, open_predictor
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.store.slide_results import open_result

GIB = 1024**3
SMALL, LARGE = "wide_resnet_10_1", "wide_resnet_16_8"
BF16_BOUND = 0.03
KEPT_MIB = 256
"""Memory beside the model that a process may keep after batches were measured."""
ASSERTS = """
import torch
from wsi_pipeline.core.errors import GpuLost
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.engines import ENGINES
from wsi_pipeline.models.engines.engine import Engine
from wsi_pipeline.models.opening import make_random_checkpoint
from wsi_pipeline.models.predictor import Predictor
import numpy as np
def run(pixels):
    return torch.zeros(4, device="cuda")[torch.full((len(pixels),), 9, device="cuda")]
ENGINES["breaking"] = Engine(
    "", {"cuda": ("fp32",)}, lambda m, d: None, lambda m, s, b: run, place=lambda m, s, d: run
)
try:
    setting = EngineSetting("breaking", "fp32", "cuda")
    Predictor(make_random_checkpoint(), setting, 2)(np.zeros((2, 50, 50, 3), "u1"))
except GpuLost as error:
    print("lost:", error)
"""
PREPARES = """
import sys
from pathlib import Path
from wsi_pipeline.core.options import InferOptions
from wsi_pipeline.models.choice import EngineSetting, ModelChoice
from wsi_pipeline.models.loading import read_model
from wsi_pipeline.runs.infer import read_tiling
from wsi_pipeline.slides.selection import find_slides
from wsi_pipeline.stages.infer import InferJob
slide, model, results = map(Path, sys.argv[1:])
facts = read_model(model)
choice = ModelChoice(model, facts.digest, EngineSetting("torch", "bf16", "cuda"))
job = InferJob(find_slides([slide])[0], results, choice, read_tiling(InferOptions(), facts))
with job.hold():
    blocks = len(job.prepare().blocks)
torch = sys.modules.get("torch")
print(blocks, "blocks,", "CUDA" if torch and torch.cuda.is_initialized() else "no CUDA")
"""


def draw_patches(count: int) -> NDArray[np.uint8]:
    """Return random patches, (count, 50, 50, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, 50, 50, 3), dtype=np.uint8)


def check_computing(report: Report) -> None:
    """State what the networks compute, and what becomes of faults."""
    with report.part("agreement"):
        for architecture in (SMALL,) if report.is_rehearsal else ("idc_cnn", LARGE):
            check_agreement(report, architecture)
    with report.part("fp16 beyond its range"):
        check_overflow(report)
    with report.part("exact fp32"):
        check_exactness(report)
    with report.part("memory"):
        check_memory(report)
    with report.part("a broken context"):
        check_lost(report)


def check_lost(report: Report) -> None:
    """State that a context that broke is known as one, in a process of its own."""
    fact = "an assertion on the GPU is GpuLost"
    if report.is_rehearsal:
        report.leave_out(fact)
        return
    done = subprocess.run([sys.executable, "-c", ASSERTS], capture_output=True, text=True)
    found = done.stdout or done.stderr[-200:]
    report.state(fact, found.startswith("lost:"), found)


def check_agreement(report: Report, architecture: str) -> None:
    """State that each precision is within its bound of the CPU, and repeats its bits."""
    model, pixels = make_random_checkpoint(architecture), draw_patches(96)
    expected = Predictor(model)(pixels)
    for precision in ENGINES["torch"].precisions[report.device]:
        setting = EngineSetting("torch", precision, report.device)
        predictor = Predictor(model, setting, 64)
        given = predictor(pixels)
        apart, name = float(np.abs(given - expected).max()), f"{architecture} {precision}"
        report.state(
            f"{name} is within {setting.bound:g} of the CPU", apart <= setting.bound, apart
        )
        report.state(f"{name} gives the same bits twice", np.array_equal(given, predictor(pixels)))
    opened = open_predictor(replace(model, self_test=make_self_test(model)), report.device)
    report.measure(f"engine of {architecture}", opened.line)


def check_overflow(report: Report) -> None:
    """State that logits beyond fp16 are computed in fp32, and are not taken for certain."""
    model, pixels = make_random_checkpoint("idc_cnn"), draw_patches(8)
    weights = {name: tensor.clone() for name, tensor in model.weights.items()}
    weights["classifier.6.weight"] *= 1e7
    large = replace(model, weights=weights)
    expected = Predictor(large).predict_logits(pixels)
    setting = EngineSetting("torch", "fp16", report.device)
    given = Predictor(large, setting, 8).predict_logits(pixels)
    is_near = bool(np.isfinite(given).all()) and np.allclose(given, expected, rtol=1e-3)
    report.state("infinite logits of fp16 are computed in fp32", is_near, given[:2])


def check_exactness(report: Report) -> None:
    """State that fp32 is not rounded to TF32, and that others can read the setting."""
    compute_exactly()
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    found = (a.to(report.device) @ b.to(report.device)).cpu().double()
    apart = float((found - a.double() @ b.double()).abs().max())
    report.state("a product of fp32 is exact to 1e-4 (TF32: 2e-2)", apart < 1e-4, apart)
    is_off = torch.backends.cudnn.allow_tf32 is False
    report.state("torch.backends.cudnn.allow_tf32 can be read, and is off", is_off)


@contextmanager
def little_memory(gib: float) -> Iterator[None]:
    """Let this process take so much of the GPU's memory, for the block."""
    give_memory_back()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def check_memory(report: Report) -> None:
    """State that memory is given back, and that batches shrink where it is short."""
    facts = (
        "memory is given back after batches were measured",
        "short memory gives smaller batches and the same answers",
        "a batch that was named and does not fit is refused",
        "no memory for the model is the machine's fault",
    )
    if report.is_rehearsal:
        for fact in facts:
            report.leave_out(fact)
        return
    model, setting = make_random_checkpoint(LARGE), EngineSetting("torch", "bf16", "cuda")
    pixels = draw_patches(2048)
    free = Predictor(model, setting)
    report.measure("batch", free.settle_batch())
    kept = (torch.cuda.memory_reserved() - torch.cuda.memory_allocated()) / 2**20
    report.state(facts[0], kept < KEPT_MIB, f"{kept:.0f} MiB beside the model")
    expected = free(pixels)
    del free
    with little_memory(1.2):
        tight = Predictor(model, setting)
        apart = float(np.abs(tight(pixels) - expected).max())
        report.state(facts[1], apart <= 0.01, f"batches of {tight.batch_size}, {apart:.1g} apart")
        del tight
        report.state(facts[2], *refuse(model, setting, pixels, 2048))
    with little_memory(0.02):
        report.state(facts[3], *refuse(model, setting, pixels, None))


def refuse(
    model: Checkpoint, setting: EngineSetting, pixels: NDArray[np.uint8], batch: int | None
) -> tuple[bool, str]:
    """Return whether a prediction is refused as the machine's fault, and what is said."""
    try:
        Predictor(model, setting, batch)(pixels)
    except EnvironmentFault as error:
        return True, str(error)
    return False, "it was computed"


def check_commands(report: Report) -> None:
    """State what `wsi` does on this machine, process by process."""
    side = 3000 if report.is_rehearsal else 12_000
    slide, model = report.work / "slides" / "synthetic.tiff", report.work / "model.safetensors"
    slide.parent.mkdir()
    make_slide(slide, side, side, tissue=0.4)
    made = make_random_checkpoint(SMALL if report.is_rehearsal else "idc_cnn")
    save_checkpoint(replace(made, self_test=make_self_test(made)), model)
    with report.part("preparing a slide"):
        code = [sys.executable, "-c", PREPARES, str(slide), str(model), str(report.work / "plan")]
        done = subprocess.run(code, capture_output=True, text=True)
        is_free = done.stdout.strip().endswith("no CUDA")
        report.state("a slide is prepared without CUDA", is_free, done.stdout or done.stderr[-200:])
    with report.part("agreement of runs"):
        check_runs(report, slide, model)
    with report.part("the process that starts a run"):
        check_parent(report, slide, model)
    with report.part("names of GPUs"):
        check_names(report, slide, model)
    with report.part("wsi doctor"):
        done = run_wsi("doctor", "--model", model, "--out", report.work, "--seconds", 2)
        told = [" ".join(line[5:].split()) for line in done.stdout.splitlines()]
        report.state("wsi doctor ends with 0", done.returncode == 0, last_lines(done))
        report.measure(
            "doctor", [line for line in told if line.startswith(("GPU", "reading", "ex"))]
        )


def list_arguments(slide: Path, model: Path, results: Path, device: str) -> list[str]:
    """Return the arguments of a run of `wsi infer`."""
    places = ["--slides", str(slide), "--model", str(model), "-o", str(results)]
    return ["infer", *places, "--device", device, "--outputs", "summary"]


def check_runs(report: Report, slide: Path, model: Path) -> None:
    """State that a run's answers are those of the CPU, and the same in a plain loop."""
    batch = ["--batch-size", "500"]
    ways = {
        "cpu": ["--engine", "torch", "--precision", "fp32"],
        "worker": batch,
        "loop": [*batch, "--workers", "0"],
        "auto": [],
    }
    found: dict[str, NDArray[np.float32]] = {}
    for name, options in ways.items():
        device = "cpu" if name == "cpu" else report.device
        done = run_wsi(*list_arguments(slide, model, report.work / name, device), *options)
        report.state(f"wsi infer, {name}", done.returncode == 0, last_lines(done))
        found[name] = open_result(report.work / name / slide.stem).probability
    apart = float(np.nanmax(np.abs(found["worker"] - found["cpu"])))
    report.state("wsi infer agrees with the CPU", apart <= BF16_BOUND, apart)
    same = np.array_equal(found["worker"], found["loop"], equal_nan=True)
    report.state("a worker and a plain loop give the same bits", same)
    told = json.loads((report.work / "auto" / RUN_JSON).read_text())["parameters"]["batch_size"]
    is_told = told == AUTO if report.is_rehearsal else isinstance(told, int)
    report.state("run.json names the batch size that was measured", is_told, told)


def check_parent(report: Report, slide: Path, model: Path) -> None:
    """State that the process that starts a run leaves CUDA alone, and outlives its worker."""
    results = report.work / "killed"
    # Several names of one slide make a run that is long enough to be watched.
    slides = report.work / "many"
    slides.mkdir()
    for number in range(3):
        (slides / f"{number}.tiff").symlink_to(slide)
    line = [*WSI, *list_arguments(slides, model, results, report.device)]
    process = psutil.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    opened: set[str] = set()
    is_killed = False
    while process.poll() is None:
        opened |= list_devices(process.pid)
        if not is_killed and list(results.glob(".wsi/staging/*/blocks/*.json")):
            with suppress(psutil.NoSuchProcess, ValueError):
                children = process.children(recursive=True)
                max(children, key=lambda child: child.memory_info().rss).kill()
                is_killed = True
        time.sleep(0.05)
    said = process.stdout.read().strip().splitlines()[-1:]
    report.state("the process that starts a run leaves CUDA alone", not opened, sorted(opened))
    ended = f"killed {is_killed}, exit code {process.returncode}: {said}"
    report.state("the work of a killed worker is done by another", process.returncode == 0, ended)


def list_devices(pid: int) -> set[str]:
    """Return the files of CUDA that a process has open."""
    with suppress(OSError):
        links = [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()]
        return {link.name for link in links if link.name.startswith("nvidia-uvm")}
    return set()


def check_names(report: Report, slide: Path, model: Path) -> None:
    """State which GPUs a run takes, and which it refuses."""
    arguments = list_arguments(slide, model, report.work / "named", "cuda")
    hidden = run_wsi(*arguments, CUDA_VISIBLE_DEVICES="")
    fact = "--device cuda without a visible GPU is exit code 5"
    report.state(fact, hidden.returncode == 5, last_lines(hidden))
    if report.is_rehearsal:
        report.leave_out("--gpus takes a UUID, and refuses a number that is none")
        return
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    uuid = subprocess.run(query, capture_output=True, text=True).stdout.split()[0]
    named = run_wsi(*arguments, "--gpus", uuid)
    report.state("--gpus takes a UUID", named.returncode == 0, last_lines(named))
    refused = run_wsi(*arguments, "--gpus", "99")
    is_refused = refused.returncode == 1 and "not among the GPUs" in refused.stderr
    report.state("--gpus refuses a number that is none", is_refused, last_lines(refused))
    assert InferOptions().gpus is None
