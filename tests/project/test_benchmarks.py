"""What benchmarks measure, by hand; and the check of a GPU machine, rehearsed without one."""

import importlib
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
