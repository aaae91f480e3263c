"""index.html: one page with every heatmap and the table of slides; it opens from the file, without a network."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, select_autoescape

from wsi_pipeline.errors import StoreError
from wsi_pipeline.outcome import SlideSummary
from wsi_pipeline.outputs import heatmap_png, overlay_png
from wsi_pipeline.outputs.run_tables import FAILURES_CSV, RUN_JSON, SLIDES_CSV, read_summaries
from wsi_pipeline.store.commit import is_product
from wsi_pipeline.store.files import write_file

INDEX_HTML = "index.html"


def write_index(results: Path) -> Path:
    """Write the page for a results folder; returns its path. Raises StoreError where it is none."""
    summaries, damaged = read_summaries(results)
    if is_product(results):
        raise StoreError(f"{results}: is one slide's folder; give the results folder above it")
    if not summaries and not damaged and not (results / SLIDES_CSV).exists():
        raise StoreError(f"{results}: holds no results; make some with `wsi infer`")
    environment = Environment(loader=PackageLoader("wsi_pipeline.outputs"), autoescape=select_autoescape())
    environment.filters["path"] = quote
    page = environment.get_template("index.html").render(
        name=results.resolve().name,
        slides=_sort(summaries),
        damaged=damaged,
        files=[name for name in (SLIDES_CSV, FAILURES_CSV, RUN_JSON) if (results / name).exists()],
        overlay=overlay_png.FILE_NAME,
        heatmap=heatmap_png.FILE_NAME,
    )
    write_file(results / INDEX_HTML, page.encode())
    return results / INDEX_HTML


def _sort(summaries: Sequence[SlideSummary]) -> list[SlideSummary]:
    """Most positive tissue first."""
    return sorted(summaries, key=lambda summary: (-summary.positive_mm2, summary.slide_id))
