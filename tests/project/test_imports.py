"""Which heavy libraries a command has loaded when it first says something, and at its end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import make_checkpoint, tissue, write_model, write_slide
from tests.commands import PLAIN, run

HEAVY = ("torch", "matplotlib", "distributed", "openvino", "skimage", "scipy", "sklearn", "pyarrow")
CODE = f"""
import atexit, json, os, sys
first = []
def find():
    return [name for name in {HEAVY!r} if name in sys.modules]
class Watched:
    def __init__(self, stream):
        self.stream = stream
    def write(self, text):
        if not first:
            first.append(find())
        return self.stream.write(text)
    def __getattr__(self, name):
        return getattr(self.stream, name)
if __name__ == "__main__":
    sys.stdout, sys.stderr = Watched(sys.stdout), Watched(sys.stderr)
    out = sys.argv.pop(1)
    def tell():
        with open(out, "w") as stream:
            json.dump({{"first": first[0] if first else find(), "end": find()}}, stream)
    atexit.register(tell)
    sys.argv[0] = "wsi"
    from wsi_cli.main import wsi
    wsi()
"""


def watch(folder: Path, *arguments: object) -> dict[str, list[str]]:
    """Run a command in a process of its own; what it had loaded at its first output, and last."""
    script = folder / "watch.py"
    script.write_text(CODE)
    command = [sys.executable, script, folder / "loaded.json", *arguments]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, check=False, cwd=folder, env=os.environ
    )
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, list[str]] = json.loads((folder / "loaded.json").read_text())
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide with its finished results."""
    folder = tmp_path_factory.mktemp("imports")
    write_slide(folder / "slides" / "s.tiff", tissue(200, 200))
    write_model(folder / "m.safetensors", make_checkpoint())
    arguments = ("--model", folder / "m.safetensors", "-o", folder / "results")
    done = run("infer", folder / "slides", *arguments, *PLAIN, "--outputs", "summary")
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("infer", "--help"),
        ("model", "list"),
        ("model", "info", "idc"),
        ("info", "slides/s.tiff"),
    ],
    ids=" ".join,
)
def test_what_needs_no_network_loads_nothing_heavy(arguments: tuple[str, ...], made: Path) -> None:
    assert watch(made, *arguments) == {"first": [], "end": []}


@pytest.mark.parametrize(
    "arguments",
    [("status", "results"), ("verify", "results")],
    ids=" ".join,
)
def test_commands_on_results_load_no_torch(arguments: tuple[str, ...], made: Path) -> None:
    loaded = watch(made, *arguments)
    assert not {*loaded["end"]} & {"torch", "matplotlib", "distributed", "openvino"}


def test_a_run_with_nothing_to_do_loads_neither_torch_nor_dask(made: Path) -> None:
    arguments = ("--model", "m.safetensors", "-o", "results", *PLAIN, "--outputs", "summary")
    loaded = watch(made, "infer", "slides", *arguments)
    assert loaded["first"] == []
    assert not {*loaded["end"]} & {"torch", "matplotlib", "distributed", "openvino", "scipy"}


def test_tiling_loads_no_torch_and_no_matplotlib(made: Path) -> None:
    loaded = watch(made, "tile", "slides", "-o", "stores", "--mpp", 0.5, "--workers", 0)
    assert loaded["first"] == []
    assert not {*loaded["end"]} & {"torch", "matplotlib", "distributed", "openvino"}


@pytest.mark.system
@pytest.mark.parametrize("count", [1, 2])
def test_the_process_that_starts_a_run_never_loads_torch(
    count: int, made: Path, tmp_path: Path
) -> None:
    """Workers compute, so they alone load it; one of them needs no Dask."""
    arguments = ("--model", "m.safetensors", "-o", tmp_path / "results", *PLAIN)
    workers = ("--workers", count, "--outputs", "summary")
    loaded = watch(made, "infer", "slides", *arguments, *workers)
    assert (tmp_path / "results" / "s" / "summary.json").is_file()
    assert ("distributed" in loaded["end"]) is (count > 1)
    assert not {*loaded["end"]} & {"torch", "openvino", "matplotlib"}
