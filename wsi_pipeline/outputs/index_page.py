"""index.html: one page with every picture, every file and the table of slides; it opens from the file, without a network."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, select_autoescape

from wsi_pipeline.core.choices import (
    AGGREGATE_JSON,
    COMPARISON_CSV,
    EVALUATION_CSV,
    EVALUATION_HTML,
    FAILURES_CSV,
    INDEX_HTML,
    MANIFEST,
    RUN_JSON,
    SLIDES_CSV,
    SLIDES_PARQUET,
)
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.outputs import dicom_source, gallery_png, heatmap_png, overlay_png
from wsi_pipeline.outputs.run_tables import Finished, read_finished
from wsi_pipeline.store.files import write_file
from wsi_pipeline.store.manifest import is_product

RUN_FILES = (
    SLIDES_CSV,
    SLIDES_PARQUET,
    FAILURES_CSV,
    RUN_JSON,
    AGGREGATE_JSON,
    EVALUATION_HTML,
    EVALUATION_CSV,
    COMPARISON_CSV,
)
PICTURES = {
    overlay_png.FILE_NAME: "on the slide",
    heatmap_png.FILE_NAME: "probability; grey: not assessed",
    gallery_png.FILE_NAME: "most and least probable patches, and a random sample",
}
NOT_FOR_PEOPLE = (MANIFEST, dicom_source.SOURCE_JSON)


def write_index(results: Path, finished: Finished | None = None) -> Path:
    """Write the page for a results folder, of which `finished` was read; returns its path. Raises StoreError where it is none."""
    finished = finished or read_finished(results)
    if is_product(results):
        raise StoreError(f"{results}: is one slide's folder; give the results folder above it")
    if not finished.summaries and not finished.damaged and not (results / SLIDES_CSV).exists():
        raise StoreError(f"{results}: holds no results; make some with `wsi infer`")
    environment = Environment(
        loader=PackageLoader("wsi_pipeline.outputs"), autoescape=select_autoescape()
    )
    environment.filters["path"] = quote
    page = environment.get_template("index.html").render(
        name=results.resolve().name,
        slides=[
            (summary, _list_outputs(results / summary.slide_id))
            for summary in _sort(finished.summaries)
        ],
        states=sorted({summary.state.value for summary in finished.summaries}),
        damaged=finished.damaged,
        files=[name for name in RUN_FILES if (results / name).exists()],
        pictures=PICTURES,
    )
    write_file(results / INDEX_HTML, page.encode())
    return results / INDEX_HTML


def _list_outputs(folder: Path) -> list[str]:
    """Everything that a slide's folder holds for people: pictures first, then the rest by name."""
    found = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in NOT_FOR_PEOPLE and not path.name.startswith(".")
    )
    return [name for name in PICTURES if name in found] + [
        name for name in found if name not in PICTURES
    ]


def _sort(summaries: Sequence[SlideSummary]) -> list[SlideSummary]:
    """Most positive tissue first."""
    return sorted(summaries, key=lambda summary: (-summary.positive_mm2, summary.slide_id))
