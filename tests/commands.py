"""Commands and runs as tests start them: in this process, with the plain loop and PyTorch unless a
test's fact is about another way.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wsi_cli.progress
from click.testing import CliRunner, Result
from wsi_cli.main import wsi

from wsi_pipeline.core.options import InferOptions, TileOptions
from wsi_pipeline.core.outcome import RunAccount
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.outputs import View
from wsi_pipeline.outputs.heatmap import Aggregation
from wsi_pipeline.runs.infer import infer_slides, list_stores
from wsi_pipeline.runs.tile import read_tiling, tile_slides
from wsi_pipeline.scheduling import Workers
from wsi_pipeline.slides.selection import find_slides
from wsi_pipeline.stages.tile_config import TileConfig

wsi_cli.progress.PATIENCE_S = 3600.0
"""How fast a machine is changes nothing that a command prints in tests."""
HERE = Workers(count=0)
PLAIN = ("--engine", "torch", "--precision", "fp32", "--device", "cpu")
"""How `wsi infer` computes where a test says nothing else: what it would choose by itself depends
on the machine.
"""
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
    workers: int | Workers = 0,
    engine: str = "torch",
    precision: str = "fp32",
    view: View = SUMMARY,
    listener: Listener | None = None,
    **options: Any,
) -> RunAccount:
    """Infer slides, or stores where the first place is one or a folder of them; `options` are
    further fields of InferOptions.
    """
    places = [places] if isinstance(places, Path) else places
    found = list_stores(places) if _holds_stores(places[0]) else find_slides(places)
    chosen = plain_options(
        workers=workers, engine=engine, precision=precision, view=view, **options
    )
    return infer_slides(found, model, results, chosen, listener)


def plain_options(view: View = SUMMARY, **options: Any) -> InferOptions:
    """Options of `wsi infer` on the CPU; `view` says which outputs are made and how they look."""
    assert view.aggregation == Aggregation()
    settings: dict[str, Any] = {"device": "cpu", "engine": "torch", "precision": "fp32"}
    settings |= {"colormap": view.plot_style.colormap, "alpha": view.plot_style.alpha}
    return InferOptions(outputs=",".join(view.formats), **settings | {"workers": 0} | options)


def tile(
    places: Sequence[Path], out: Path, config: TileConfig | None = None, **options: Any
) -> RunAccount:
    """Tile slides in this process, cut as a configuration says; `options` are further fields of
    TileOptions.
    """
    cut = config or TileConfig()
    settings: dict[str, Any] = {
        "workers": 0,
        "class_names": cut.rules.class_names,
        "mpp": cut.spec.mpp,
        "patch_size": cut.spec.side_px,
        "stride": cut.spec.stride_px,
        "min_tissue": cut.tissue.min_tissue,
        "tissue": cut.tissue.detector,
        "closing": cut.tissue.closing_radius_um,
        "min_width": cut.tissue.min_width_um,
        "min_density": cut.tissue.sure_density,
        "min_object": cut.tissue.min_object_um2,
        "slide_mpp": cut.slide_mpp,
        "mask_mpp": cut.tissue.mask_mpp,
        "max_hole": cut.tissue.max_hole_um2,
        "allow_upsample": cut.allow_upsample,
        "reader": cut.reader,
        "drop": cut.quality.drop,
        "max_pen": cut.quality.max_pen,
        "max_fold": cut.quality.max_fold,
        "max_bubble": cut.quality.max_bubble,
        "min_sharpness": cut.quality.min_sharpness,
    }
    chosen = TileOptions(**settings | options)
    assert config is None or read_tiling(chosen) == config
    return tile_slides(find_slides(places), out, chosen)


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
