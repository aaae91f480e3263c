"""/api/v1/predict, /model and /jobs, and the areas that are drawn for jobs: /slides/…/drawn."""

from dataclasses import replace
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Path, Query, UploadFile
from starlette.concurrency import run_in_threadpool

from wsi_pipeline.labels.corrections import Corrections, remove
from wsi_pipeline.models.model import Model
from wsi_pipeline.outputs.regions import list_polygons
from wsi_pipeline.serve.annotations import RegionFile
from wsi_pipeline.serve.catalogue import SlideEntry
from wsi_pipeline.serve.drawn_areas import DrawnArea, drawn_file, read_region
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.job_queue import UNDER_WAY, InferenceJob, JobQueue
from wsi_pipeline.serve.predicting import PredictionService
from wsi_pipeline.serve.result_reader import describe_model
from wsi_pipeline.serve.schemas import (
    DrawnAreaBody,
    DrawnBody,
    JobBody,
    JobRequest,
    PredictionBody,
)
from wsi_pipeline.serve.services import MAX_NAME, Here, NamedSlide, Services
from wsi_pipeline.serve.slide_routes import FAULTS
from wsi_pipeline.slides.found_slide import FoundSlide

router = APIRouter(responses=FAULTS)
JobName = Annotated[str, Path(max_length=MAX_NAME)]


@router.get("/model", tags=["predict"], summary="The model that predicts")
def show_model(services: Here) -> dict[str, Any]:
    """Show the model's card: training, patches, threshold and scores."""
    return _describe_model(_predictions(services).predictor.model)


@router.post("/predict", tags=["predict"], summary="Predict images")
async def predict(
    services: Here,
    images: Annotated[
        list[UploadFile],
        File(description="PNG or JPEG: patches of the model's size, or larger images."),
    ],
    mpp: Annotated[
        float | None,
        Form(description="µm per pixel; needed to cut images that are not patches on a grid."),
    ] = None,
) -> PredictionBody:
    """Predict images: one probability for a patch, one per patch for a larger image."""
    service = _predictions(services)
    contents = [await image.read() for image in images]
    predicted = await run_in_threadpool(service.predict, contents, mpp)
    counts = (image.grid["rows"] * image.grid["cols"] if image.grid else 1 for image in predicted)
    services.metrics.patches.inc(sum(counts))
    model = service.predictor.model
    return PredictionBody(
        positive_class=model.positive_class,
        threshold=model.terms.alone.count,
        context_um=0.0,
        model=_describe_model(model),
        images=predicted,
    )


def _describe_model(model: Model) -> dict[str, Any]:
    return describe_model(model.to_json()) | {"scores": dict(getattr(model, "scores", {}))}


@router.post(
    "/jobs", status_code=202, response_model=JobBody, tags=["jobs"], summary="Infer a slide"
)
def start_job(services: Here, wanted: JobRequest) -> InferenceJob:
    """Infer a slide of the served folder, as `wsi infer` does, into the first results folder.

    With a region only its patches are computed that the results do not have yet; all others are
    kept. The region joins those that were drawn before, which later runs assess, too.
    """
    jobs = _jobs(services)
    entry = services.catalogue.find(wanted.slide_id)
    if entry is None or not entry.is_in_folder or entry.file is None:
        raise Refusal(404, "no such slide in the served folder")
    area = None if wanted.region is None else _read_region(services, entry, wanted)
    return jobs.submit(FoundSlide(entry.slide_id, entry.file), wanted.force, area)


def _read_region(services: Services, entry: SlideEntry, wanted: JobRequest) -> DrawnArea:
    """Return the area of a request on the slide's own file. Raises Refusal."""
    if wanted.force:
        raise Refusal(422, "force replaces all results, and a region adds to them; give one")
    result = entry.results.get(services.catalogue.runs[0].run_id)
    slide = replace(services.pixels.open(entry).info, slide_id=entry.slide_id)
    model = _predictions(services).predictor.model
    return read_region(wanted.region, _results(services), slide, result, model)


@router.get("/jobs", response_model=list[JobBody], tags=["jobs"], summary="All jobs")
def list_jobs(services: Here) -> list[InferenceJob]:
    """List jobs, oldest first."""
    return _jobs(services).list()


@router.get(
    "/jobs/{job_id}", response_model=JobBody, tags=["jobs"], summary="The progress of a job"
)
def show_job(services: Here, job_id: JobName) -> InferenceJob:
    """Show the progress of a job."""
    if (job := _jobs(services).find(job_id)) is None:
        raise Refusal(404, "no such job")
    return job


@router.delete("/jobs/{job_id}", response_model=JobBody, tags=["jobs"], summary="Cancel a job")
def cancel_job(services: Here, job_id: JobName) -> InferenceJob:
    """Stop a job; finished blocks stay, and the next job for the slide continues there."""
    job = show_job(services, job_id)
    _jobs(services).cancel(job)
    return job


@router.get(
    "/slides/{slide_id}/drawn", tags=["jobs"], summary="Areas drawn for the model to run there"
)
def show_drawn(services: Here, entry: NamedSlide) -> DrawnBody:
    """Show the areas that were drawn on the slide, in which every run assesses it."""
    if not services.catalogue.runs:
        return DrawnBody(version="none", run_id=None, can_write=False, areas=[])
    file = _drawn_on(services, entry)
    return _describe_drawn(services, entry, file, *file.read())


@router.delete(
    "/slides/{slide_id}/drawn/{number}", tags=["jobs"], summary="Remove an area that was drawn"
)
def remove_drawn(
    services: Here,
    entry: NamedSlide,
    number: Annotated[int, Path(ge=0, le=10_000)],
    version: Annotated[str, Query(max_length=64, description="The version that was shown.")],
) -> DrawnBody:
    """Remove an area; results keep its patches until the slide is inferred again.

    409: a job for the slide is under way, or the areas were changed since they were read.
    """
    if _jobs(services).is_under_way(entry.slide_id):
        raise Refusal(409, f"{UNDER_WAY}; cancel it first")
    file = _drawn_on(services, entry)
    after = file.change(version, lambda areas: remove(areas, number))
    return _describe_drawn(services, entry, file, *after)


def _drawn_on(services: Services, entry: SlideEntry) -> RegionFile:
    slide = entry.recorded or services.pixels.open(entry).info
    return drawn_file(_results(services), entry.slide_id, slide)


def _describe_drawn(
    services: Services, entry: SlideEntry, file: RegionFile, areas: Corrections, version: str
) -> DrawnBody:
    mm2_per_px = (file.slide.mpp / 1000) ** 2
    return DrawnBody(
        version=version,
        run_id=services.catalogue.runs[0].run_id,
        can_write=services.jobs is not None and entry.is_in_folder,
        areas=[
            DrawnAreaBody(
                number=number,
                area_mm2=each.area.area * mm2_per_px,
                outline=list_polygons(each.area),
            )
            for number, each in enumerate(areas)
        ],
    )


def _results(services: Services) -> FilePath:
    """Return the first results folder, to which jobs write."""
    return services.catalogue.runs[0].folder


def _predictions(services: Services) -> PredictionService:
    if services.predictions is None:
        raise Refusal(404, "no model is served; start with --model")
    return services.predictions


def _jobs(services: Services) -> JobQueue:
    if services.jobs is None:
        raise Refusal(404, "no jobs here; start with --model, --slides and --results")
    return services.jobs
