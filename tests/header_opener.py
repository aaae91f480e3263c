"""A limited process that opens and plans the slides that it is told, for tests of what they may do
to it.

It knows nothing of the other tests, whose libraries would take most of the memory that it may have.
"""

import os
import resource
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests import ROOT
from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.stages.tile import plan_patches
from wsi_pipeline.stages.tile_config import TileConfig

MEMORY_BYTES = 3 * 1024**3 // 2
DEADLINE_S = 5.0


class Answer(NamedTuple):
    """What came of one file."""

    state: str
    """"hang" and "crash" are of the process."""
    seconds: float
    peak_bytes: int


class Opener:
    """The limited process, anew after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, path: Path) -> Answer:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        started = time.monotonic()
        process.stdin.write(os.fsencode(path) + b"\n")
        process.stdin.flush()
        is_ready = select.select([process.stdout], [], [], DEADLINE_S)[0]
        line = process.stdout.readline().decode() if is_ready else ""
        seconds = time.monotonic() - started
        if not line:
            self.close()
            return Answer("crash" if is_ready else "hang", seconds, 0)
        state, peak = line.split()
        return Answer(state, seconds, int(peak))

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.header_opener"]
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=null, cwd=ROOT
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None


def open_and_plan(path: Path) -> str:
    try:
        reader = open_slide(path)
        table, _ = plan_patches(reader, TileConfig(spec=PatchSpec(mpp=0.5)))
        if table.patches:
            block = SlidePatches(reader, table.grid, table.positions, table.block_size).read_block(
                0
            )
            return "read" if block.readable.all() else "damaged"
        reader.close()
    except SlideError:
        return "refused"
    except MemoryError:
        return "memory"
    return "zero"


def peak_bytes() -> int:
    # Not what getrusage says, which counts what the parent had when this process was forked off.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    print("ready", file=answers, flush=True)
    for line in sys.stdin.buffer:
        state = open_and_plan(Path(os.fsdecode(line[:-1])))
        print(state, peak_bytes(), file=answers, flush=True)


if __name__ == "__main__":
    main()
