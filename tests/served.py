"""A real server in a thread of the tests, with results whose every number is known."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray

from tests.builders import tissue, write_model, write_probabilities, write_slide
from tests.commands import HERE, infer
from wsi_pipeline.core.choices import PREDICTIONS
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.outputs import View
from wsi_pipeline.serve.server import base_url, bind, configure
from wsi_pipeline.serve.services import Services, open_services
from wsi_pipeline.serve.settings import ServeSettings
from wsi_pipeline.slides import open_slide
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.predictions import prepare_predictions
from wsi_pipeline.store.slide_results import RESULT_KIND

TOKEN = "token-of-the-tests"
ALLOWED = {"Authorization": f"Bearer {TOKEN}"}


@contextlib.contextmanager
def run_server(settings: ServeSettings, port: int = 0) -> Iterator[tuple[str, Services]]:
    """A server on a port (0: any free one) until the block ends: its address, and what it works
    with.
    """
    with bind(replace(settings, port=port)) as listener:
        bound = replace(settings, port=listener.getsockname()[1])
        with open_services(bound) as services:
            server = uvicorn.Server(configure(services))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                yield base_url(bound), services
            finally:
                server.should_exit = True
                thread.join(20)
                logging.getLogger("uvicorn.error").handlers.clear()


def serve_all(
    root: Path, runs: Sequence[str] = ("results", "other"), **others: Any
) -> ServeSettings:
    """A server of runs and slides in `root`, and of the model of the first run."""
    return ServeSettings(
        results=tuple(root / run for run in runs),
        slides=root / "slides",
        model=root / f"{runs[0]}.safetensors",
        token=TOKEN,
        device="cpu",
        workers=HERE,
        decoders=1,
        **others,
    )


def connect(url: str, **headers: str) -> httpx.Client:
    """A client that shows the token."""
    return httpx.Client(base_url=url, headers=ALLOWED | headers, timeout=30)


def make_run(
    root: Path, slides: Sequence[str] = ("one", "two"), name: str = "results", seed: int = 0
) -> Path:
    """Slides of 600 × 500 px at 0.5 µm/px in `root/slides`, inferred by a random model into
    `root/name`: 12 × 10 cells of 25 µm.
    """
    for index, slide in enumerate(slides):
        path = root / "slides" / f"{slide}.tiff"
        if not path.exists():
            write_slide(path, tissue(600, 500, seed=index))
    model = root / f"{name}.safetensors"
    if not model.exists():
        from tests.builders import make_checkpoint

        write_model(model, make_checkpoint(seed=seed))
    infer(
        root / "slides", model, root / name, engine="auto", precision="auto"
    )  # as the server computes what is sent to it
    return root / name


def replace_probabilities(
    results: Path,
    slide_id: str,
    probability: NDArray[np.float32],
    context_um: float = 0.0,
    min_region_mm2: float = 0.0,
    has_tissue: bool = True,
) -> None:
    """Put known probabilities (rows, cols) in the place of a slide's predictions, by the commit
    rule; NaN leaves a cell out.
    """
    from wsi_pipeline.outputs.heatmap import Aggregation, build_heatmap
    from wsi_pipeline.outputs.result import SlideResult
    from wsi_pipeline.outputs.summarise import summarise
    from wsi_pipeline.outputs.summary_json import write_summary
    from wsi_pipeline.store.predictions import Predictions
    from wsi_pipeline.store.predictions import write_probabilities as write_shown
    from wsi_pipeline.store.slide_results import open_result

    old = open_result(results / slide_id)
    positions = np.argwhere(~np.isnan(probability)).astype(np.int32)
    table = _take(old.table, positions)
    table = table if has_tissue else replace(table, tissue=None)
    aggregation = Aggregation(context_um=context_um, min_region_mm2=min_region_mm2)
    staging = Staging(
        results / slide_id,
        {"made": "by a test", "values": probability.tobytes().hex(), "has_tissue": has_tissue},
    )
    prepare_predictions(staging, table, {"model": old.attributes["model"], "provenance": {}})
    write_probabilities(staging, table, 0, probability[tuple(positions.T)])
    predictions = Predictions(staging.product / PREDICTIONS)
    heatmap = build_heatmap(predictions, aggregation)
    write_shown(predictions, heatmap.probability[tuple(positions.T)])
    write_summary(
        SlideResult(table, heatmap, summarise(predictions, heatmap)), staging.product
    )  # no pictures: nobody looks at them
    staging.commit(
        RESULT_KIND,
        {"patches": len(positions), "unreadable": 0},
        View(aggregation=aggregation).to_json(),
    )


def _take(table: PatchTable, positions: NDArray[np.int32]) -> PatchTable:
    count = len(positions)
    return replace(
        table,
        positions=positions,
        labels=np.full(count, -1, dtype=np.int8),
        label_fraction=np.full(count, np.nan, dtype=np.float32),
        tissue_fraction=np.ones(count, dtype=np.float32),
        tissue_id=None,
        block_size=max(count, 1),
        quality=None,
    )


def read_level0(slide: Path) -> NDArray[np.uint8]:
    """Every pixel of a slide."""
    reader = open_slide(slide)
    width, height = reader.info.size_l0
    pixels = reader.read(reader.levels[0], 0, 0, width, height)
    reader.close()
    return pixels


def wait_until(condition: object, seconds: float = 20) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
