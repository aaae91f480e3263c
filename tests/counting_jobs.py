"""Jobs that only count, and a listener that remembers: what the scheduler's contract is held
against.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.core.errors import EnvironmentFault, SlideError


@dataclass(frozen=True)
class CountPlan:
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class CountJob:
    """Writes one file per block and adds the blocks' numbers up."""

    folder: Path
    blocks: int
    fails_in: str = ""
    is_locked: bool = False

    @contextmanager
    def hold(self) -> Iterator[None]:
        if self.is_locked:
            raise EnvironmentFault("held by another")
        (self.folder / "lock").touch(exist_ok=False)
        yield
        (self.folder / "lock").unlink()

    def prepare(self) -> CountPlan:
        self._fail("prepare")
        return CountPlan(tuple(range(self.blocks)))

    def run_block(self, plan: CountPlan, block: int) -> int:
        if block == 1:
            self._fail("block")
            if self.fails_in == "kill":
                os.kill(os.getpid(), 9)
        (self.folder / str(block)).write_text(str(os.getpid()))
        return block

    def finish(self, plan: CountPlan, reports: Sequence[int]) -> int:
        self._fail("finish")
        assert (self.folder / "lock").exists()
        return sum(reports)

    def _fail(self, place: str) -> None:
        if self.fails_in == place:
            raise SlideError(f"broken in {place}")


class Notes:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.blocks: list[tuple[int, int]] = []
        self.ends: dict[int, object] = {}

    def prepared(self, job: int, plan: CountPlan) -> None:
        assert plan.blocks is not None

    def block_done(self, job: int, report: int) -> None:
        self.blocks.append((job, report))

    def ended(self, job: int, result: object) -> None:
        assert job not in self.ends
        self.ends[job] = result
