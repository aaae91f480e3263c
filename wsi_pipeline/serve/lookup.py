"""From names in a request to what they stand for; whatever is in no table is not there."""

from typing import Annotated

from fastapi import Depends, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.serve.catalogue import Result, Run, SlideEntry
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.result_reader import LoadedResult
from wsi_pipeline.serve.services import Services

MAX_NAME = 200


async def get_services(request: Request) -> Services:
    """What this server works with."""  # async, for otherwise every request waits for a thread to tell it
    services: Services = request.app.state.services
    return services


Here = Annotated[Services, Depends(get_services)]


async def find_entry(
    services: Here, slide_id: Annotated[str, Path(max_length=MAX_NAME)]
) -> SlideEntry:
    """The slide that a path names. Raises Refusal."""
    catalogue = services.catalogue
    entry = (
        catalogue.find(slide_id)
        if catalogue.is_fresh
        else await run_in_threadpool(catalogue.find, slide_id)
    )
    if entry is None:
        raise Refusal(404, "no such slide")
    return entry


NamedSlide = Annotated[SlideEntry, Depends(find_entry)]
RunName = Annotated[
    str | None,
    Query(
        alias="run",
        max_length=MAX_NAME,
        description="Which results folder; the first that has the slide.",
    ),
]


def find_result(services: Services, entry: SlideEntry, run_id: str | None) -> tuple[Run, Result]:
    """The slide's results in a run, or in the first run that has it. Raises Refusal."""
    for run in services.catalogue.runs:
        if run_id in (None, run.run_id) and (result := entry.results.get(run.run_id)) is not None:
            return run, result
    raise Refusal(404, "no such results")


def require_summary(result: Result) -> SlideSummary:
    """The figures of results. Raises Refusal where these are damaged."""
    if result.summary is None:
        raise Refusal(422, "the results are damaged; infer the slide again")
    return result.summary


def load_result(
    services: Here, entry: NamedSlide, run: RunName = None
) -> tuple[Result, LoadedResult]:
    """The slide's results, whole. Raises Refusal, or StoreError where they are damaged."""
    _, result = find_result(services, entry, run)
    require_summary(result)
    return result, services.results.load(result)


NamedResult = Annotated[tuple[Result, LoadedResult], Depends(load_result)]


def match_etag(request: Request, response_headers: dict[str, str], version: str) -> Response | None:
    """The answer where the client already has this version; else None, and the tag is among the headers."""
    tag = f'"{version}"'
    response_headers["ETag"] = tag
    if tag in [
        one.strip().removeprefix("W/")
        for one in request.headers.get("if-none-match", "").split(",")
    ]:
        return Response(status_code=304, headers={"ETag": tag})
    return None
