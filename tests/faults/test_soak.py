"""Two thousand slides in one run: memory, open files and temporary files stay as they were after
the first few.

Files are counted in a short run too; memory is measured in the long one (`make test-faults`).
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.builders import paint, write_model, write_slide
from tests.faults import by_extent

SLIDES, ALL_SLIDES = 16, 2000
WARM = 300
"""Slides after which every cache is filled."""
MAX_GROWTH_KB = 10.0
"""Per slide, in any process."""
COMMANDS = {
    "tile": ("tile", "slides", "--mpp", "0.5", "--out", "out"),
    "infer": (
        "infer",
        "--slides",
        "slides",
        "--model",
        "m.safetensors",
        "--results-dir",
        "out",
        "--outputs",
        "summary,csv",
        "--engine",
        "torch",
    ),
}


class Sample(NamedTuple):
    """One process at one moment."""

    process: int
    slides_done: int
    memory_kb: int
    open_files: int


def watch(process: subprocess.Popen[bytes], events: Path) -> list[Sample]:
    """Samples of a run's processes until it ends, one round after every second."""
    samples: list[Sample] = []
    while process.poll() is None:
        time.sleep(1.0)
        done = events.read_text().count('"slide ended"') if events.is_file() else 0
        samples += [
            found
            for number in list_tree(process.pid)
            if (found := look_at(number, done)) is not None
        ]
    return samples


def list_tree(process: int) -> list[int]:
    """A process and all below it."""
    try:
        below = [
            int(number)
            for task in Path(f"/proc/{process}/task").iterdir()
            for number in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return [process, *(found for child in below for found in list_tree(child))]


def look_at(process: int, done: int) -> Sample | None:
    folder = Path(f"/proc/{process}")
    try:
        memory = re.search(r"VmRSS:\s+(\d+)", (folder / "status").read_text())
        files = len(list((folder / "fd").iterdir()))
    except OSError:
        return None
    return None if memory is None else Sample(process, done, int(memory[1]), files)


def measure_growth(samples: Sequence[Sample], slides: int) -> dict[int, float]:
    """kB per slide of every process that was there for most of the run, by a straight line through
    its samples.
    """
    late = [sample for sample in samples if sample.slides_done >= WARM]
    growth = {}
    for process in {sample.process for sample in late}:
        done, memory = np.array(
            [(sample.slides_done, sample.memory_kb) for sample in late if sample.process == process]
        ).T
        if done.max() - done.min() > slides / 2:
            growth[process] = float(np.polyfit(done, memory, 1)[0])
    return growth


@pytest.mark.system
@pytest.mark.timeout(3600)
@by_extent
@pytest.mark.parametrize("command", COMMANDS)
def test_slides_without_end(command: str, is_whole: bool, tmp_path: Path) -> None:
    slides = ALL_SLIDES if is_whole else SLIDES
    write_slide(tmp_path / "base.tiff", paint(150, 150))
    write_model(tmp_path / "m.safetensors")
    (tmp_path / "slides").mkdir()
    for number in range(slides):
        os.link(tmp_path / "base.tiff", tmp_path / "slides" / f"s{number:04d}.tiff")
    code = "from wsi_cli.main import wsi; wsi()"
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *COMMANDS[command], "--workers", "1"],
            cwd=tmp_path,
            stdout=said,
            stderr=said,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        )
        samples = watch(process, tmp_path / "out" / "events.jsonl")
    assert process.returncode == 0, (tmp_path / "said").read_text()[-2000:]
    assert f"{slides:,} slides: {slides:,} ok" in (tmp_path / "said").read_text()
    assert not [path for path in (tmp_path / "out").rglob(".*") if path.name != ".zattrs"]
    late = [sample for sample in samples if min(WARM, slides // 2) <= sample.slides_done < slides]
    for number in {sample.process for sample in late}:
        files = [sample.open_files for sample in late if sample.process == number]
        assert max(files) - min(files) <= 12, "files stay open"
    if is_whole:
        growth = measure_growth(samples, slides)
        sys.stdout.write(
            f"{command}: {slides} slides; kB per slide:"
            f" {', '.join(f'{value:.1f}' for value in growth.values())}\n"
        )
        assert len(growth) >= 2, "the driver and a worker"
        assert max(growth.values()) < MAX_GROWTH_KB
