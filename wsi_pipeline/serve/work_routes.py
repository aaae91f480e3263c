"""/api/v1/predict, /api/v1/model and /api/v1/jobs."""

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Path, UploadFile
from starlette.concurrency import run_in_threadpool

from wsi_pipeline.models.model import Model
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.job_queue import InferenceJob, JobQueue
from wsi_pipeline.serve.predicting import PredictionService
from wsi_pipeline.serve.result_reader import describe_model
from wsi_pipeline.serve.schemas import JobBody, JobRequest, PredictionBody
from wsi_pipeline.serve.services import MAX_NAME, Here, Services
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
    """Infer a slide of the served folder, as `wsi infer` does, into the first results folder."""
    jobs = _jobs(services)
    entry = services.catalogue.find(wanted.slide_id)
    if entry is None or not entry.is_in_folder or entry.file is None:
        raise Refusal(404, "no such slide in the served folder")
    return jobs.submit(FoundSlide(entry.slide_id, entry.file), wanted.force)


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


def _predictions(services: Services) -> PredictionService:
    if services.predictions is None:
        raise Refusal(404, "no model is served; start with --model")
    return services.predictions


def _jobs(services: Services) -> JobQueue:
    if services.jobs is None:
        raise Refusal(404, "no jobs here; start with --model, --slides and --results")
    return services.jobs
