"""WSInfer 0.6.1 as a peer: its commands, started offline in an environment of its own.

That release wants older libraries than it asks for:

    python -m venv PEER
    PEER/bin/pip install wsinfer==0.6.1 'zarr<3' 'numpy<2' 'numcodecs<0.16' 'tifffile<2025.5' \
        'tiffslide<3' 'pandas<3' 'scikit-image<0.25' 'torch<2.15' 'torchvision<0.30' \
        openslide-python openslide-bin
"""

import os
import re
import subprocess
import time
from pathlib import Path

BATCHES_DONE = re.compile(rb"\| (\d+)/(\d+) \[")
"""In its progress bar: batches that are predicted, and all of the slide."""
REGISTRY = "wsinfer-zoo-registry.json"
PACKAGES = ("wsinfer", "torch", "torchvision", "openslide-python", "tiffslide", "numpy", "pandas")
VERSIONS = (
    "import sys, importlib.metadata as found;"
    "print(', '.join(f'{name} {found.version(name)}' for name in sys.argv[1:]))"
)


class Wsinfer:
    """The commands of one installation, for a model exported by `wsi export --to torchscript`."""

    def __init__(self, executable: Path, folder: Path, batch_size: int) -> None:
        """`folder` holds the exported model, and gets a home folder with an empty model zoo."""
        self._bin = executable.parent
        self._model = folder / "exported"
        self._batch_size = batch_size
        write_empty_zoo(folder / "home")
        home = [f"HOME={folder / 'home'}", "HF_HUB_OFFLINE=1"]
        self._command = ["env", "-u", "PYTHONPATH", *home, str(executable)]
        self.help = [*self._command, "--help"]
        """It has no command that describes a model; the nearest lists those of its zoo."""
        self.list_models = [*self._command[:-1], str(self._bin / "wsinfer-zoo"), "ls"]

    def describe_versions(self) -> str:
        """Return what is installed there."""
        command = ["env", "-u", "PYTHONPATH", str(self._bin / "python"), "-c", VERSIONS, *PACKAGES]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def run(self, slides: Path, out: Path) -> list[str]:
        """Return the command that predicts the slides in a folder: one loader process per core."""
        model = ["-c", "config.json", "-p", "torchscript_model.pt"]
        places = [name if name[0] == "-" else str(self._model / name) for name in model]
        cores = len(os.sched_getaffinity(0))
        speed = ["--batch-size", str(self._batch_size), "--num-workers", str(cores)]
        return [*self._command, "run", "-i", str(slides), "-o", str(out), *places, *speed]

    def has_predicted(self, errors: bytes, patches: int) -> bool:
        """Return whether so many patches of a slide are predicted, or all, by its progress bar."""
        done = [(int(some), int(every)) for some, every in BATCHES_DONE.findall(errors)]
        return any(
            some and (some == every or some * self._batch_size >= patches) for some, every in done
        )

    @staticmethod
    def count_patches(out: Path) -> int:
        """Return the number of rows in its tables."""
        tables = (out / "model-outputs-csv").glob("*.csv")
        return sum(table.read_bytes().count(b"\n") - 1 for table in tables)


def write_empty_zoo(home: Path) -> None:
    """Write a registry of no models as if it had been downloaded: WSInfer imports no other way."""
    zoo = home / ".wsinfer-zoo"
    known = zoo / ".cache" / "huggingface" / "download"
    known.mkdir(parents=True)
    (zoo / REGISTRY).write_text('{"models": {}}')
    (known / f"{REGISTRY}.metadata").write_text(f"{'0' * 40}\nempty\n{time.time()}\n")
