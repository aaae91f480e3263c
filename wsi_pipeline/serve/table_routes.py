"""/api/v1/tables: the metrics of many slides as one file."""

from typing import Any

from fastapi import APIRouter, Response

from wsi_pipeline.core.csv_io import format_csv
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.outputs.run_files import format_workbook, tabulate_slides
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.schemas import TableRequest
from wsi_pipeline.serve.services import Here, Services
from wsi_pipeline.serve.slide_routes import FAULTS

router = APIRouter(prefix="/tables", tags=["slides"], responses=FAULTS)
CSV_TYPE = "text/csv; charset=utf-8"
XLSX_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
CSV: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {}}}}
XLSX: dict[int | str, dict[str, Any]] = {200: {"content": {XLSX_TYPE: {}}}}


@router.post("/csv", response_class=Response, responses=CSV, summary="All slides as CSV")
def send_csv(services: Here, wanted: TableRequest) -> Response:
    """Send the metrics of slides in one run as CSV, with the columns of slides.csv.

    It begins with a byte order mark, by which Excel knows UTF-8.
    """
    text = format_csv(*_tabulate(services, wanted))
    return _send(text.encode("utf-8-sig", errors="replace"), "slides.csv", CSV_TYPE)


@router.post(
    "/xlsx", response_class=Response, responses=XLSX, summary="All slides as an Excel workbook"
)
def send_workbook(services: Here, wanted: TableRequest) -> Response:
    """Send the same as an Excel workbook."""
    try:
        content = format_workbook(*_tabulate(services, wanted))
    except ConfigError as error:
        raise Refusal(404, str(error)) from error
    return _send(content, "slides.xlsx", XLSX_TYPE)


def _tabulate(services: Services, wanted: TableRequest) -> tuple[list[str], list[list[Any]]]:
    types, rows = tabulate_slides(_find_summaries(services, wanted))
    return list(types), [[row[name] for name in types] for row in rows]


def _find_summaries(services: Services, wanted: TableRequest) -> list[SlideSummary]:
    """Return the summaries that are asked for. Raises Refusal for a run or slide that is not."""
    if wanted.run_id not in {run.run_id for run in services.catalogue.runs}:
        raise Refusal(404, "no such results")
    known = {
        entry.slide_id: result.summary
        for entry in services.catalogue.entries()
        if (result := entry.results.get(wanted.run_id)) is not None and result.summary is not None
    }
    names = list(known) if wanted.slide_ids is None else wanted.slide_ids
    try:
        return [known[name] for name in names]
    except KeyError as error:
        raise Refusal(404, "one of the slides has no results in this run") from error


def _send(content: bytes, name: str, media_type: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=media_type, headers=headers)
