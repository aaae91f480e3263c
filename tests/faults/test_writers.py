"""Several writers at once: one product has one, whoever died lets go, and many over one folder do
each slide once.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.builders import (
    PINK,
    SMALL,
    folder_bytes,
    make_training_stores,
    paint_noise,
    write_model,
    write_slide,
)
from tests.faults.injector import Ended, Zygote
from tests.faults.workloads import content
from wsi_pipeline.core.choices import HIDDEN
from wsi_pipeline.store.lock import hold_lock, read_owner

pytestmark = pytest.mark.system

SLIDES = 50
PROCESSES = 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Path:
    """Fifty slides of six patches, a model, labelled stores; and what one process makes of the
    slides, `alone`.
    """
    root = tmp_path_factory.mktemp("writers")
    for number in range(SLIDES):
        pixels = np.clip(
            np.array(PINK) + paint_noise(150, 100, number).astype(np.int64) // 8 - 16, 0, 255
        ).astype(np.uint8)
        write_slide(root / "slides" / f"s{number:02d}.tiff", pixels)
    write_model(root / "m.safetensors")
    make_training_stores(root / "labelled", patients=3, patches=8)
    zygote.warm(tile(root, root / "alone"))
    return root


def tile(base: Path, out: Path) -> tuple[object, ...]:
    return ("tile", base / "slides", "--out", out, "--mpp", "0.5", "--workers", "0")


def infer(base: Path, out: Path) -> tuple[object, ...]:
    model = (
        "--model",
        base / "m.safetensors",
        "--engine",
        "torch",
        "--device",
        "cpu",
        "--workers",
        "0",
    )
    return (
        "infer",
        "--slides",
        base / "slides" / "s00.tiff",
        *model,
        "--results-dir",
        out,
        "--outputs",
        "summary",
    )


def train(base: Path, out: Path) -> tuple[object, ...]:
    return (
        "train",
        base / "labelled",
        "--out",
        out,
        "--arch",
        SMALL,
        "--epochs",
        "1",
        "--device",
        "cpu",
    )


def list_committed(out: Path) -> list[str]:
    """The slides that some process said it had committed, not found."""
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    ended = [event for event in events if event["event"] == "slide ended"]
    return sorted(
        event["slide"] for event in ended if event["state"] == "ok" and not event["already_done"]
    )


def test_eight_processes_over_fifty_slides_commit_each_once(
    base: Path, zygote: Zygote, tmp_path: Path
) -> None:
    ended = zygote.run_all([tile(base, tmp_path / "stores")] * PROCESSES)
    assert {process.code for process in ended} <= {0, 5}, [process.stderr for process in ended]
    said = "".join(process.stderr for process in ended)
    reasons = {
        re.sub(r"s\d\d|process \d+|/\S+", "…", line)
        for line in said.splitlines()
        if "failed:" in line
    }
    assert all("is being written by" in reason for reason in reasons), reasons
    assert list_committed(tmp_path / "stores") == [f"s{number:02d}" for number in range(SLIDES)]
    assert not (tmp_path / "stores" / HIDDEN).exists()
    expected = content(base / "alone")
    found = content(tmp_path / "stores")
    del expected["failures.csv"], found["failures.csv"]  # tells whom else a process met
    assert found == expected


def refuse(ended: Ended, holder: int) -> None:
    assert ended.code == 5
    assert f"is being written by process {holder} on " in ended.stderr
    assert "run the same line again" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", ["tile", "infer", "train"])
def test_the_second_writer_is_told_who_holds_the_product(
    command: str, base: Path, zygote: Zygote, tmp_path: Path
) -> None:
    arguments, target = {
        "tile": (
            (
                *tile(base, tmp_path / "out")[:1],
                base / "slides" / "s00.tiff",
                *tile(base, tmp_path / "out")[2:],
            ),
            "s00.patches.zarr",
        ),
        "infer": (infer(base, tmp_path / "out"), "s00"),
        "train": (train(base, tmp_path / "out" / "model"), "model"),
    }[command]
    (tmp_path / "out").mkdir()
    with hold_lock(tmp_path / "out" / target):
        refuse(zygote.run(arguments), os.getpid())
    assert not (tmp_path / "out" / target).exists()
    assert zygote.run(arguments).code == 0


def test_aggregation_leaves_a_result_alone_that_is_being_written(
    base: Path, zygote: Zygote, tmp_path: Path
) -> None:
    assert zygote.run(infer(base, tmp_path / "results")).code == 0
    before = folder_bytes(tmp_path / "results" / "s00")
    with hold_lock(tmp_path / "results" / "s00"):
        refuse(
            zygote.run(
                ("aggregate", tmp_path / "results", "--threshold", "0.3", "--outputs", "summary")
            ),
            os.getpid(),
        )
        assert folder_bytes(tmp_path / "results" / "s00") == before


HOLD = """
import signal, sys
from pathlib import Path
from wsi_pipeline.store.lock import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


def test_the_lock_of_a_dead_owner_is_taken_over(base: Path, zygote: Zygote, tmp_path: Path) -> None:
    target = tmp_path / "out" / "s00"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        refuse(zygote.run(infer(base, tmp_path / "out")), owner.pid)
        owner.kill()
    assert read_owner(target) is not None, "a killed owner cannot tidy up"
    assert zygote.run(infer(base, tmp_path / "out")).code == 0
    assert not (tmp_path / "out" / HIDDEN).exists()


def test_a_killed_run_holds_no_lock_and_is_taken_up(
    base: Path, zygote: Zygote, tmp_path: Path
) -> None:
    shutil.copytree(base / "alone", tmp_path / "stores")
    shutil.rmtree(tmp_path / "stores" / "s07.patches.zarr")
    (tmp_path / "stores" / HIDDEN / "locks").mkdir(parents=True)
    (tmp_path / "stores" / HIDDEN / "locks" / "s07.patches.zarr.lock").write_text(
        "process 1 on another-machine"
    )
    assert zygote.run(tile(base, tmp_path / "stores")).code == 0
    assert content(tmp_path / "stores") == content(base / "alone")
