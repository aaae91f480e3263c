"""The commands that the fault sweep disturbs, each with what it starts from and what it must end
in.
"""

import csv
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet
import yaml
from PIL import Image

from tests.builders import (
    PINK,
    SMALL,
    folder_bytes,
    make_training_stores,
    paint_noise,
    write_model,
    write_slide,
)
from tests.faults.injector import Ended, Fault, Zygote
from wsi_pipeline.core.choices import HIDDEN, MANIFEST
from wsi_pipeline.store.manifest import check_whole

CHEAP = ("--outputs", "summary,csv,parquet,geojson,ome-zarr")
TRAIN = ("--epochs", "1", "--arch", SMALL, "--device", "cpu")
DIFFERS = {"run.json", "events.jsonl", "history.csv", "wsi.log"}
"""What tells the time, and so differs between two runs."""


@dataclass(frozen=True)
class Workload:
    """One command over one folder."""

    name: str
    base: Path
    """Holds `inputs`, what the folder looks like before the command (`start`), and the folder
    itself (`out`).
    """
    arguments: tuple[object, ...]
    before: tuple[object, ...] = ()
    """The command that makes what this one starts from."""

    @property
    def start(self) -> Path:
        """The folder before the command."""
        return self.base / f"{self.name}-start"

    @property
    def out(self) -> Path:
        """The folder that the command writes to, and whose operations are watched."""
        return self.base / "out"

    def prepare(self, zygote: Zygote) -> Ended:
        """Make what the command starts from, and run it once, undisturbed; every operation is
        listed.
        """
        self.start.mkdir()
        if self.before:
            self.reset()
            zygote.warm(self.before)
            self.start.rmdir()
            self.out.rename(self.start)
        self.reset()
        return zygote.warm(self.arguments, Fault("count"), self.out)

    def reset(self) -> None:
        """Put the folder back to how it was before the command."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self.start, self.out)


def make_inputs(base: Path) -> None:
    """A tiny slide, a model, and labelled stores."""
    pixels = np.clip(
        np.array(PINK) + paint_noise(210, 160).astype(np.int64) // 8 - 16, 0, 255
    ).astype(np.uint8)
    write_slide(base / "inputs" / "slides" / "s.tiff", pixels)
    write_model(base / "inputs" / "m.safetensors")
    make_training_stores(base / "inputs" / "labelled", patients=3, patches=8)


def list_workloads(base: Path) -> dict[str, Workload]:
    """The commands, by name."""
    inputs, out = base / "inputs", base / "out"
    model = (
        "--model",
        inputs / "m.safetensors",
        "--engine",
        "torch",
        "--device",
        "cpu",
        "--workers",
        "0",
    )
    infer = ("infer", "--slides", inputs / "slides", *model, "--results-dir", out / "results")
    kept = (
        "infer",
        "--slides",
        inputs / "slides",
        *model,
        "--results-dir",
        out / "results",
        "--keep-patches",
        out / "stores",
        *CHEAP,
    )
    every = [
        Workload(
            "tile",
            base,
            ("tile", inputs / "slides", "--out", out / "stores", "--mpp", "0.5", "--workers", "0"),
        ),
        Workload("infer", base, (*infer, *CHEAP)),
        Workload("infer with every picture", base, infer),
        Workload("infer, patches kept", base, kept),
        Workload(
            "aggregate",
            base,
            ("aggregate", out / "results", "--threshold", "0.9", *CHEAP),
            before=(*infer, *CHEAP),
        ),
        Workload(
            "train",
            base,
            (
                "train",
                inputs / "labelled",
                "--out",
                out / "model",
                "--epochs",
                "1",
                "--arch",
                SMALL,
                "--device",
                "cpu",
            ),
        ),
        Workload(
            "store export",
            base,
            ("store", "export", inputs / "labelled" / "p0.patches.zarr", "--out", out / "png"),
        ),
    ]
    return {workload.name: workload for workload in every}


def content(folder: Path) -> dict[str, bytes]:
    """Every file below, but for those that tell the time, and work under way."""
    return {name: held for name, held in folder_bytes(folder).items() if is_told(Path(name))}


def is_told(path: Path) -> bool:
    return path.name not in DIFFERS and ".tfevents." not in path.name and HIDDEN not in path.parts


def digest_state(folder: Path) -> str:
    """A folder's state: every file and its bytes, whichever process wrote it at whatever time."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = re.sub(
            r"[0-9a-f]{32}\.partial|\.\d+$|tfevents\..*", "*", path.relative_to(folder).as_posix()
        )
        is_compared = path.is_file() and path.name not in DIFFERS and path.suffix != ".lock"
        digest.update(name.encode() + b"\0" + (path.read_bytes() if is_compared else b"") + b"\0")
    return digest.hexdigest()


def visible_products(folder: Path) -> Iterator[Path]:
    """Every folder that claims to be a finished product."""
    for path in sorted(folder.rglob(MANIFEST)):
        if HIDDEN not in path.parts:
            yield path.parent


def find_broken(folder: Path) -> list[str]:
    """What is under a final name and is not whole: the reason of each."""
    products = list(visible_products(folder))
    for product in products:
        manifest = check_whole(product)
        found = {
            path.relative_to(product).as_posix() for path in product.rglob("*") if path.is_file()
        } - {MANIFEST}
        assert found == {*manifest.files}, product
    loose = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and HIDDEN not in path.parts
        and not any(path.is_relative_to(product) for product in products)
    ]
    return [f"{path}: {reason}" for path in loose if (reason := judge(path))]


def judge(path: Path) -> str | None:
    """What is wrong with a file that belongs to no product; None where it is whole, or its name
    says that it is not.
    """
    if path.name.startswith("."):
        return None
    try:
        JUDGES.get(path.suffix, refuse)(path.read_bytes())
    except Exception as error:  # noqa: BLE001 - whatever is raised, the file cannot be read
        return f"{type(error).__name__}: {error}"
    return None


def refuse(held: bytes) -> None:
    raise ValueError("nobody expected such a file here")


def read_csv(held: bytes) -> None:
    rows = list(csv.reader(io.StringIO(held.decode())))
    assert held.endswith(b"\n")
    assert len({len(row) for row in rows}) == 1


def read_events(held: bytes) -> None:
    for line in held.split(b"\n")[:-1]:
        if line:
            (
                json.loads(line) if line.endswith(b"}") else None
            )  # a killed run leaves half a line, and readers pass it over


def read_html(held: bytes) -> None:
    assert held.rstrip().endswith(b"</html>")


JUDGES: dict[str, Callable[[bytes], object]] = {
    ".csv": read_csv,
    ".html": read_html,
    ".json": json.loads,
    ".jsonl": read_events,
    ".log": bytes.decode,
    ".parquet": lambda held: pyarrow.parquet.read_table(io.BytesIO(held)),
    ".png": lambda held: Image.open(io.BytesIO(held)).load(),
    ".yaml": lambda held: yaml.safe_load(held)["mode"],  # the last of its settings
}
