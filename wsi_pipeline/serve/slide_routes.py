"""/api/v1/slides: lists, metrics, regions, pieces of tissue, the map as numbers, the report."""

import io
import logging
from dataclasses import asdict
from importlib.util import find_spec
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from wsi_pipeline.core.errors import DAMAGES, StoreError, WsiError
from wsi_pipeline.core.outcome import (
    SlideSummary,
    describe_counting,
    describe_distance,
    describe_interval,
    list_concerns,
)
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.outputs.pages import CONTENT_POLICY
from wsi_pipeline.outputs.report_html import (
    describe_colours,
    describe_grid,
    describe_overview,
    describe_region,
    describe_slide,
    encode_colours,
    order_regions,
    render_report,
)
from wsi_pipeline.outputs.result import SlideResult
from wsi_pipeline.outputs.tissue import describe_piece
from wsi_pipeline.serve.catalogue import Run, SlideEntry
from wsi_pipeline.serve.errors import JsonAnswer, Refusal
from wsi_pipeline.serve.result_reader import DAMAGED, LoadedResult, require_summary
from wsi_pipeline.serve.schemas import (
    Fault,
    ListedRun,
    LiveBody,
    RegionsBody,
    ResultBody,
    RunBody,
    SlideBody,
    SlideList,
    SlideRow,
    TilesBody,
    TissueBody,
)
from wsi_pipeline.serve.services import (
    Here,
    NamedResult,
    NamedSlide,
    RunName,
    Services,
    find_result,
    tag_version,
)

FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": Fault}
    for status in (400, 401, 403, 404, 405, 408, 409, 413, 415, 421, 422, 429, 503)
}
DEFAULT_REGIONS = 500
MAX_FAILURES, MAX_REASON = 1000, 500
"""Failures of a run in the list, and characters of a reason."""
REPORT_POLICY = f"{CONTENT_POLICY}; sandbox allow-scripts"

router = APIRouter(prefix="/slides", tags=["slides"], responses=FAULTS)
Threshold = Annotated[float | None, Query(ge=0, le=1, description="Instead of the model's own.")]
logger = logging.getLogger(__name__)

Responses = dict[int | str, dict[str, Any]]
UNCHANGED: Responses = {304: {"description": "Unchanged."}}
NPY: Responses = {200: {"content": {"application/octet-stream": {}}}}
HTML: Responses = {200: {"content": {"text/html": {}}}}


@router.get("", summary="All slides with their numbers")
def list_slides(services: Here) -> SlideList:
    """List every slide with its metrics in every run."""
    can_run_jobs = services.jobs is not None
    return SlideList(
        runs=[_list_run(services, run) for run in services.catalogue.runs],
        can_predict=services.predictions is not None,
        can_run_jobs=can_run_jobs,
        can_review=services.reviews is not None,
        can_write_excel=find_spec("xlsxwriter") is not None,
        slides=[
            SlideRow(
                slide_id=entry.slide_id,
                version=entry.version,
                has_file=entry.has_file,
                can_run=can_run_jobs and entry.is_in_folder,
                patient_id=entry.patient_id,
                columns=dict(entry.columns),
                summaries={run_id: result.summary for run_id, result in entry.results.items()},
                concerns={
                    run_id: list_concerns(result.summary)
                    for run_id, result in entry.results.items()
                    if result.summary is not None
                },
            )
            for entry in services.catalogue.entries()
        ],
    )


def _list_run(services: Services, run: Run) -> ListedRun:
    if (live := services.catalogue.live(run)) is None:
        return ListedRun(run_id=run.run_id, name=run.name, live=None)
    figures = asdict(live) | {"failures": [asdict(one) for one in live.failures[:MAX_FAILURES]]}
    for failure in figures["failures"]:
        failure["reason"] = failure["reason"][:MAX_REASON]
    return ListedRun(run_id=run.run_id, name=run.name, live=LiveBody(**figures))


def _describe_run(run: Run) -> RunBody:
    return RunBody(run_id=run.run_id, name=run.name)


@router.get(
    "/{slide_id}",
    response_model=SlideBody,
    responses=UNCHANGED,
    summary="One slide and its results",
)
def describe_one(services: Here, entry: NamedSlide, request: Request) -> Response:
    """Describe a slide: its geometry, and the results of each run."""
    headers = tag_version(request, entry.version)
    loaded, damaged = _load_runs(services, entry)
    info, tiles, note = _open_file(services, entry)
    if not loaded and info is None:
        raise Refusal(404, note or "no such slide")
    first = loaded[0][1].table if loaded else None
    slide = first.slide if first else info
    assert slide is not None
    whole = {"box_l0": list(slide.bounds_l0)}
    body = SlideBody(
        slide_id=entry.slide_id,
        version=entry.version,
        slide=describe_slide(slide) | {"slide_id": entry.slide_id},
        overview=describe_overview(first.thumbnail) if first else whole,
        tiles=tiles,
        tiles_note=note,
        results=[describe_result(run, one) for run, one in loaded],
        damaged_runs=damaged,
        colours=encode_colours(),
        **describe_colours(),
    )
    return JsonAnswer(body.model_dump(mode="json"), headers=headers)


def _load_runs(
    services: Services, entry: SlideEntry
) -> tuple[list[tuple[Run, LoadedResult]], list[RunBody]]:
    """Return the results of every run on a slide, and the runs whose results are damaged.

    Raises Refusal where all are damaged.
    """
    loaded: list[tuple[Run, LoadedResult]] = []
    damaged: list[RunBody] = []
    for run in services.catalogue.runs:
        if (result := entry.results.get(run.run_id)) is None:
            continue
        try:
            loaded.append((run, services.results.load(result)))
        except (Refusal, StoreError) as error:
            logger.warning("%s: left out of %s: %s", run.name, entry.slide_id, error)
            damaged.append(_describe_run(run))
    if damaged and not loaded:
        raise Refusal(422, DAMAGED)
    return loaded, damaged


def _open_file(
    services: Services, entry: SlideEntry
) -> tuple[SlideInfo | None, TilesBody | None, str | None]:
    """Return the facts of the slide's file and its tiles, or the reason why there are none."""
    try:
        opened = services.pixels.open(entry)
    except Refusal as refusal:
        return None, None, str(refusal.detail)
    except WsiError:
        return None, None, "the slide's file cannot be read"
    return opened.info, TilesBody(tile_px=opened.pyramid.tile_px, coarsest=opened.coarsest), None


def describe_result(run: Run, loaded: LoadedResult) -> ResultBody:
    """Return the results of one run on a slide."""
    return ResultBody(
        run_id=run.run_id,
        name=run.name,
        summary=loaded.summary,
        interval=describe_interval(loaded.summary),
        distance=describe_distance(loaded.summary),
        counting=describe_counting(loaded.summary),
        threshold=loaded.heatmap.threshold,
        model_threshold=loaded.model_threshold,
        positive_class=loaded.heatmap.positive_class,
        grid=describe_grid(loaded.table.grid),
        model=loaded.model,
        has_tissue=loaded.table.tissue is not None,
        overview=describe_overview(loaded.table.thumbnail),
    )


@router.get(
    "/{slide_id}/summary",
    response_model=SlideSummary,
    responses=UNCHANGED,
    summary="A slide's numbers, as in summary.json",
)
def show_summary(
    services: Here, entry: NamedSlide, request: Request, run: RunName = None
) -> Response:
    """Show the metrics of the slide, as in summary.json."""
    result = find_result(services, entry, run)
    headers = tag_version(request, result.version)
    return JsonAnswer(asdict(require_summary(result)), headers=headers)


@router.get(
    "/{slide_id}/regions",
    response_model=RegionsBody,
    responses=UNCHANGED,
    summary="Positive regions, strongest first",
)
def show_regions(
    services: Here,
    loaded: NamedResult,
    request: Request,
    threshold: Threshold = None,
    min_area_mm2: Annotated[
        float | None, Query(ge=0, le=1e6, description="Instead of that of the results.")
    ] = None,
    limit: Annotated[
        int | None, Query(ge=0, description="Number of regions, strongest first; 500 by default.")
    ] = None,
) -> Response:
    """List groups of touching positive patches, corners included, strongest first."""
    most = services.settings.limits.regions
    if limit is not None and limit > most:
        raise Refusal(413, f"at most {most:,} regions at a time")
    headers = tag_version(request, loaded.result.digest)
    at = loaded.heatmap.threshold if threshold is None else threshold
    smallest = loaded.heatmap.min_region_mm2 if min_area_mm2 is None else min_area_mm2
    regions = services.results.regions(loaded.result, at, smallest)
    first = order_regions(regions)[: min(DEFAULT_REGIONS, most) if limit is None else limit]
    content = {"threshold": at, "min_area_mm2": smallest, "found": len(regions)}
    shown = [describe_region(region) for region in first]
    return JsonAnswer(content | {"regions": shown}, headers=headers)


@router.get(
    "/{slide_id}/tissue",
    response_model=TissueBody,
    responses=UNCHANGED,
    summary="Pieces of tissue, and what was found on each",
)
def show_pieces(
    services: Here, loaded: NamedResult, request: Request, threshold: Threshold = None
) -> Response:
    """List the pieces of tissue on the glass, what was found on each, and their outlines."""
    headers = tag_version(request, loaded.result.digest)
    pieces = services.results.pieces(loaded.result, threshold)
    return JsonAnswer({"pieces": [describe_piece(piece) for piece in pieces]}, headers=headers)


@router.get(
    "/{slide_id}/map.npy",
    response_class=Response,
    responses=NPY,
    summary="The map of probabilities, as numbers",
)
def send_map(
    loaded: NamedResult,
    request: Request,
    own: Annotated[
        bool, Query(description="The probability of each patch alone, without its neighbours.")
    ] = False,
) -> Response:
    """Send the map as a NumPy file: float32 (rows, cols), NaN where nothing was assessed."""
    headers = tag_version(request, loaded.result.digest)
    headers["Content-Disposition"] = 'attachment; filename="map.npy"'
    stream = io.BytesIO()
    values = loaded.own if own else loaded.heatmap.probability
    np.save(stream, np.ascontiguousarray(values, dtype="<f4"), allow_pickle=False)
    return Response(stream.getvalue(), media_type="application/octet-stream", headers=headers)


@router.get(
    "/{slide_id}/report.html",
    response_class=Response,
    responses=HTML,
    summary="The report of a slide, in one file",
)
def send_report(loaded: NamedResult) -> Response:
    """Send the slide's report as one file."""
    try:
        page = render_report(SlideResult(loaded.table, loaded.heatmap, loaded.summary))
    except DAMAGES as error:
        fault = f"its report cannot be drawn ({error}); infer the slide again"
        raise StoreError(f"{loaded.result.folder}: {fault}") from error
    headers = {
        "Content-Disposition": 'attachment; filename="report.html"',
        "Content-Security-Policy": REPORT_POLICY,
    }
    return Response(page.encode(errors="replace"), media_type="text/html", headers=headers)
