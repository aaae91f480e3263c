"""The speed of a GPU machine: its ceilings, the models, everything together, decoders."""

import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import imagecodecs
import numpy as np
import torch
from gpu_report import Report
from inference import Bench, write_model
from numpy.typing import NDArray
from slide_maker import make_slide
from torch.utils.flop_counter import FlopCounterMode
from torchvision.io import ImageReadMode, decode_jpeg

from wsi_pipeline.models.opening import make_random_checkpoint, open_predictor
from wsi_pipeline.runs.checks import read_gpus
from wsi_pipeline.runs.reading_speed import draw_tissue
from wsi_pipeline.slides.jpeg_tiles import decode_jpeg as decode_as_slides

SECONDS = 1.5
TILE_PX = 256
MATMUL = {"cuda": 8192, "cpu": 256}


def rate_of(run: Callable[[], object], amount: float, seconds: float = SECONDS) -> float:
    """Return the amount per second of a function that is called again and again."""
    run()
    finish()
    started, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - started < seconds:
        run()
        finish()
        calls += 1
    return amount * calls / (time.perf_counter() - started)


def finish() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_machine(report: Report) -> None:
    """Measure what nothing on this device can exceed: matrix products and copies."""
    name = "CPU" if report.is_rehearsal else torch.cuda.get_device_name(0)
    report.measure("device", name)
    report.measure("nvidia-smi", read_gpus())
    with report.part("matrix product"):
        report.measure("bf16 matrix product, TFLOP/s", measure_matmul(report.device) / 1e12)
    with report.part("copies"):
        block = torch.zeros((4096, 50, 50, 3), dtype=torch.uint8)
        there = torch.empty_like(block, device=report.device)
        pinned = block if report.is_rehearsal else block.pin_memory()
        rate = rate_of(lambda: there.copy_(pinned, non_blocking=True), block.numel(), 0.5)
        report.measure("pinned memory to the device, GB/s", rate / 1e9)
        slow = rate_of(lambda: there.copy_(block), block.numel(), 0.5)
        report.measure("pageable memory to the device, GB/s", slow / 1e9)


def measure_matmul(device: str) -> float:
    """Return operations per second of a large product in bf16."""
    side = MATMUL[device]
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return rate_of(lambda: a @ b, 2 * side**3, 0.5)


def measure_models(report: Report) -> None:
    """Measure patches per second of each model, and the share of the matrix product's speed."""
    peak = measure_matmul(report.device)
    names = ["wide_resnet_10_1"] if report.is_rehearsal else ["idc_cnn", "wide_resnet_16_2"]
    for name in names if report.is_rehearsal else [*names, "wide_resnet_16_8"]:
        with report.part(name):
            predictor = open_predictor(make_random_checkpoint(name), report.device).predictor
            block = np.zeros((64 if report.is_rehearsal else 4096, 50, 50, 3), np.uint8)
            rate = rate_of(lambda: predictor(block), len(block), SECONDS)  # noqa: B023 - at once
            share = rate * count_operations(name) / peak
            found = {"patches/s": rate, "share of the product": share}
            report.measure(name, found | {"batch": predictor.batch_size})
    if not report.is_rehearsal:
        report.measure("most memory, MiB", torch.cuda.max_memory_allocated() / 2**20)


def count_operations(architecture: str) -> float:
    """Return the floating-point operations of one patch."""
    network = make_random_checkpoint(architecture).build().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 50, 50))
    return float(counter.get_total_flops())


def measure_overlap(report: Report) -> None:
    """Measure `wsi infer` end to end against reading and computing, logits compared first."""
    names = ("wide_resnet_10_1",) if report.is_rehearsal else ("idc_cnn", "wide_resnet_16_8")
    side = 3000 if report.is_rehearsal else 24_000
    slide = report.work / "overlap.tiff"
    make_slide(slide, side, side, tissue=0.4)
    for name in names:
        with report.part(name):
            folder = report.work / f"overlap {name}"
            folder.mkdir()
            model = write_model(folder / "model.safetensors", name)
            found = Bench(slide, model, folder, is_cold=False).compare(rounds=1)
            report.state(f"{name}: both ways give the same logits", True, found.logits)
            report.measure(name, found._asdict())
            if not report.is_rehearsal:
                goal = f"{name}: wsi infer takes at most 1.3 of {found.bound}"
                report.state(goal, found.ratio <= 1.3, f"{found.ratio:.2f}")


def measure_decoders(report: Report) -> None:
    """Measure decoders of JPEG tiles on the device beside the CPU's, and compare their pixels."""
    count = 32 if report.is_rehearsal else 2048
    tiles = draw_tiles(count)
    expected = [decode_on_cpu(tile) for tile in tiles[:16]]
    with report.part("CPU"):
        one = rate_of(lambda: [decode_on_cpu(tile) for tile in tiles[:32]], 32, 0.5)
        report.measure("the CPU, one thread, tiles/s", one)
    with report.part("torchvision"):
        sent = [torch.frombuffer(bytearray(tile), dtype=torch.uint8) for tile in tiles]

        def decode(some: list[torch.Tensor]) -> list[torch.Tensor]:
            found: Any = decode_jpeg(some, mode=ImageReadMode.RGB, device=report.device)
            return list(found)

        report.measure("torchvision, tiles/s", rate_of(lambda: decode(sent), count))
        given = [tile.permute(1, 2, 0).cpu().numpy() for tile in decode(sent[:16])]
        report.measure("torchvision, difference of pixels", compare(given, expected))
    with report.part("nvImageCodec"):
        if report.is_rehearsal or find_spec("nvidia.nvimgcodec") is None:
            report.leave_out("nvImageCodec (nvidia-nvimgcodec-cu13) is installed")
            return
        for is_fancy in (False, True):
            measure_nvimgcodec(report, tiles, expected, is_fancy)


def decode_on_cpu(tile: bytes) -> NDArray[np.uint8]:
    """Return the pixels as slides are read, RGB (256, 256, 3)."""
    return decode_as_slides(tile, None, True, (TILE_PX, TILE_PX))


def measure_nvimgcodec(
    report: Report, tiles: list[bytes], expected: list[NDArray[np.uint8]], is_fancy: bool
) -> None:
    """Measure nvImageCodec, with and without the smooth upsampling of chroma that libjpeg does."""
    codec: Any = import_module("nvidia.nvimgcodec")
    options = f":fancy_upsampling={int(is_fancy)}"
    decoder = codec.Decoder(options=options)
    name = f"nvImageCodec, {'fancy' if is_fancy else 'plain'} upsampling"
    report.measure(f"{name}, tiles/s", rate_of(lambda: decoder.decode(tiles), len(tiles)))
    given = [np.asarray(tile.cpu()) for tile in decoder.decode(tiles[:16])]
    report.measure(f"{name}, difference of pixels", compare(given, expected))


def draw_tiles(count: int) -> list[bytes]:
    """Return whole JPEG streams of tissue, chroma halved, like tiles with their shared tables."""
    tissue = draw_tissue(4 * TILE_PX)
    drawn = [
        bytes(
            imagecodecs.jpeg8_encode(
                np.ascontiguousarray(tissue[y : y + TILE_PX, x : x + TILE_PX]),
                level=87,
                subsampling="420",
            )
        )
        for y in range(0, 4 * TILE_PX, TILE_PX)
        for x in range(0, 4 * TILE_PX, TILE_PX)
    ]
    return [drawn[number % len(drawn)] for number in range(count)]


def compare(given: list[NDArray[np.uint8]], expected: list[NDArray[np.uint8]]) -> dict[str, float]:
    """Return the largest difference of a value of a pixel, and the share of values that differ."""
    apart = np.abs(np.stack(given).astype(int) - np.stack(expected).astype(int))
    return {"largest": float(apart.max()), "share": float((apart > 0).mean())}
