"""What benchmarks measure, by hand; and the check of a GPU machine, rehearsed without one."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of the benchmarks, which import one another from their folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("steady")
    del sys.modules["steady"]


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_the_steady_state_is_what_lies_between_the_first_wave_and_the_last(
    threads: int, steady: Any
) -> None:
    """Blocks of 10 patches, one every half second; the first wave took 100 s, the last is slow."""
    count = steady.blocks_needed(threads)
    moments = [100 + 0.5 * number for number in range(count - threads)]
    moments += [moments[-1] + 1.0 * number for number in range(1, threads + 1)]
    ends = [steady.BlockEnd(moment, 10) for moment in moments]
    assert steady.steady_seconds(ends, threads) == pytest.approx(0.05)


@pytest.mark.parametrize("threads", [1, 16])
def test_fewer_than_five_waves_are_no_steady_state(threads: int, steady: Any) -> None:
    count = steady.blocks_needed(threads) - 1
    ends = [steady.BlockEnd(float(number), 10) for number in range(count)]
    with pytest.raises(ValueError, match="too few for"):
        steady.steady_seconds(ends, threads)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        pytest.param(
            "machine,facts",
            "wide_resnet_10_1 fp32 gives the same bits twice",
            marks=pytest.mark.system,
        ),
        pytest.param(  # four minutes
            "commands,models,overlap,training,steps,decoding",
            "fp32: the first epoch's loss as on the CPU",
            marks=[pytest.mark.faults, pytest.mark.timeout(1200)],
        ),
    ],
)
def test_the_check_of_a_gpu_machine_is_rehearsed_without_one(
    sections: str, said: str, tmp_path: Path
) -> None:
    """With little to do; what only a GPU can show is named as left out."""
    line = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--device", "cpu"]
    line += ["--only", sections, "--budget", "3000"]  # of a machine that others use, too
    done = subprocess.run([*line, "--out", str(tmp_path)], capture_output=True, text=True)
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert (done.returncode, found["failed"], found["left_out"]) == (0, [], {}), logs
    assert found["rehearsal"]
    facts = [fact for each in found["sections"].values() for fact in each["facts"]]
    assert {fact["holds"] for fact in facts} == {True, None}
    assert {fact["found"] for fact in facts if fact["holds"] is None} == {"needs a GPU"}
    assert done.stdout == (tmp_path / "gpu_check.txt").read_text()
    assert done.stdout.startswith("a rehearsal on the CPU: ")
    assert f"  ok   {said}" in done.stdout


@pytest.mark.system
def test_without_a_gpu_the_check_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    line = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 5
    assert "no GPU here that torch can use" in done.stderr
    assert "rehearse the check without one by --device cpu" in done.stderr
    assert not (tmp_path / "out").exists()
