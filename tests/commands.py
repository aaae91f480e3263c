"""Commands and runs as tests start them: in this process, with the plain loop and PyTorch unless a test's fact is about another way."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from wsi_cli.main import wsi

from wsi_pipeline.core.outcome import RunAccount
from wsi_pipeline.outputs.style import View
from wsi_pipeline.runs import InferConfig, infer_slides, infer_stores
from wsi_pipeline.scheduling import Workers

HERE = Workers(count=0)
PLAIN = ("--engine", "torch", "--precision", "fp32", "--device", "cpu")
"""How `wsi infer` computes where a test says nothing else: what it would choose by itself depends on the machine."""
SUMMARY = View(formats=("summary",))
"""The outputs of a run whose pictures nobody looks at."""


def run(*arguments: object, **options: Any) -> Result:
    """Run `wsi` with arguments in this process; `options` are those of click's runner."""
    return CliRunner().invoke(wsi, [str(argument) for argument in arguments], **options)


def infer(
    places: Path | list[Path],
    model: Path,
    results: Path,
    *,
    workers: Workers = HERE,
    engine: str = "torch",
    precision: str = "fp32",
    view: View = SUMMARY,
    **options: Any,
) -> RunAccount:
    """Infer slides, or stores where the first place is one or a folder of them; `options` are further fields of InferConfig."""
    places = [places] if isinstance(places, Path) else places
    config = InferConfig(device="cpu", engine=engine, precision=precision, view=view, **options)
    start = infer_stores if _holds_stores(places[0]) else infer_slides
    return start(places, model, results, config, workers=workers)


def _holds_stores(place: Path) -> bool:
    return place.suffix == ".zarr" or any(place.glob("*.zarr"))


def spawn(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start `wsi` as a process of its own that sees no GPU; what it prints can be read."""
    return subprocess.Popen(
        [sys.executable, "-c", "from wsi_cli.main import wsi; wsi()", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""} | (environment or {}),
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a background job ignores it
    )
