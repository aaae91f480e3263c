"""Everything that requests are answered with, and how a request finds it.

The services are opened once per server and closed with it. Names in requests are looked up in
tables; a name that is in no table does not exist.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Path, Query, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.concurrency import run_in_threadpool

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.options import InferOptions
from wsi_pipeline.models.loading import load_model
from wsi_pipeline.models.opening import open_predictor
from wsi_pipeline.serve.annotations import TruthReader
from wsi_pipeline.serve.auth import TokenAuth
from wsi_pipeline.serve.catalogue import Catalogue, Result, SlideEntry
from wsi_pipeline.serve.decoding import DecoderPool
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.job_queue import ENDED, JobQueue
from wsi_pipeline.serve.predicting import PredictionService
from wsi_pipeline.serve.result_reader import LoadedResult, ResultReader
from wsi_pipeline.serve.reviews import ReviewService
from wsi_pipeline.serve.settings import ServeSettings
from wsi_pipeline.serve.slide_pixels import SlidePixels, TileCache
from wsi_pipeline.serve.training_queue import TrainingQueue

BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
MAX_NAME = 200
logger = logging.getLogger(__name__)


class Metrics:
    """Metrics of one server for Prometheus.

    Requests are counted by route, never by path, which holds slide names.
    """

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        labels = ("route", "method", "status")
        self._requests = Counter("wsi_requests", "Requests answered", labels, registry=own)
        self._seconds = Histogram(
            "wsi_request_seconds", "Time to answer", ["route"], registry=own, buckets=BUCKETS_S
        )
        self.patches = Counter("wsi_predicted_patches", "Patches predicted", registry=own)

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a metric that is read each time the metrics are asked for."""
        Gauge(name, text, registry=self.registry).set_function(read)


@dataclass(frozen=True)
class Services:
    """Parts that one server works with."""

    settings: ServeSettings
    auth: TokenAuth
    catalogue: Catalogue
    results: ResultReader
    cache: TileCache
    pixels: SlidePixels
    metrics: Metrics
    predictions: PredictionService | None
    """None without a model."""
    jobs: JobQueue | None
    """None without a model, slides and a results folder."""
    reviews: ReviewService | None = None
    """None where nobody reviews."""
    training: TrainingQueue | None = None
    """None where nobody reviews."""
    truths: TruthReader = field(default_factory=TruthReader)


@contextmanager
def open_services(settings: ServeSettings) -> Iterator[Services]:
    """Open everything that a server needs, and close it at the end.

    Raises ModelError, ConfigError or EnvironmentFault before anything is served.
    """
    for place in (*settings.results, settings.slides):
        if place is not None and not place.is_dir():
            raise ConfigError(f"{place}: no such folder; check the path")
    limits = settings.limits
    readers = DecoderPool(settings.decoders, limits.slide_memory_bytes, limits.waiting_reads)
    uploads = DecoderPool(1, limits.upload_memory_bytes, limits.predictions)
    cache = TileCache(limits.cache_bytes)
    catalogue = Catalogue(settings.results, settings.slides)
    with closing(readers), closing(uploads), _open_jobs(settings, catalogue) as jobs:
        services = Services(
            settings=settings,
            auth=TokenAuth(settings),
            catalogue=catalogue,
            results=ResultReader(),
            cache=cache,
            pixels=SlidePixels(readers, cache, limits, settings.slide_mpp),
            metrics=Metrics(),
            predictions=_open_predictions(settings, uploads, has_jobs=jobs is not None),
            jobs=jobs,
            reviews=None if settings.reviewer is None else ReviewService(settings),
            training=None if settings.reviewer is None else TrainingQueue(settings.reviewer),
        )
        _watch(services, readers, uploads)
        yield services


def _open_predictions(
    settings: ServeSettings, uploads: DecoderPool, has_jobs: bool
) -> PredictionService | None:
    if settings.model is None:
        return None
    # The GPUs are those of the workers that run jobs; this process would hold memory of the first.
    device = "cpu" if has_jobs else settings.device
    opened = open_predictor(load_model(settings.model, settings.terms), device)
    logger.info(opened.line)
    return PredictionService(opened.predictor, uploads, settings.limits)


def _open_jobs(
    settings: ServeSettings, catalogue: Catalogue
) -> AbstractContextManager[JobQueue | None]:
    if settings.model is None or settings.slides is None or not settings.results:
        return nullcontext()
    options = InferOptions(
        slide_mpp=settings.slide_mpp,
        device=settings.device,
        trust_model=settings.terms.trust,
        positive_class=settings.terms.positive_class,
        workers=settings.workers,
    )
    results, capacity = settings.results[0], settings.limits.jobs
    return closing(JobQueue(settings.model, results, options, capacity, catalogue.refresh))


def _watch(services: Services, readers: DecoderPool, uploads: DecoderPool) -> None:
    watch, cache, jobs = services.metrics.watch, services.cache, services.jobs
    watch("wsi_tile_cache_bytes", "Bytes of tiles in memory", lambda: cache.used_bytes)
    watch("wsi_tile_cache_hits", "Tiles found in memory", lambda: cache.hits)
    watch("wsi_tile_cache_misses", "Tiles not found in memory", lambda: cache.misses)
    ended = "Decoding processes that died or were ended"
    watch("wsi_decoders_replaced", ended, lambda: readers.replaced + uploads.replaced)
    watch("wsi_slides", "Slides served", lambda: len(services.catalogue.entries()))
    if jobs is not None:
        text = "Jobs that wait or run"
        watch(
            "wsi_jobs_under_way", text, lambda: sum(job.state not in ENDED for job in jobs.list())
        )


async def get_services(request: Request) -> Services:
    """Return the services of this server."""
    # Async, because FastAPI would otherwise call it in a thread, for which every request waits.
    services: Services = request.app.state.services
    return services


Here = Annotated[Services, Depends(get_services)]


async def find_entry(
    services: Here, slide_id: Annotated[str, Path(max_length=MAX_NAME)]
) -> SlideEntry:
    """Return the slide that a path names. Raises Refusal."""
    find = services.catalogue.find
    is_fast = services.catalogue.is_fresh
    entry = find(slide_id) if is_fast else await run_in_threadpool(find, slide_id)
    if entry is None:
        raise Refusal(404, "no such slide")
    return entry


NamedSlide = Annotated[SlideEntry, Depends(find_entry)]
RunName = Annotated[
    str | None,
    Query(alias="run", max_length=MAX_NAME, description="A run; else the first that has it."),
]


def find_result(services: Services, entry: SlideEntry, run_id: str | None) -> Result:
    """Return the slide's results in a run, or in the first run that has it. Raises Refusal."""
    for run in services.catalogue.runs:
        if run_id in (None, run.run_id) and (result := entry.results.get(run.run_id)) is not None:
            return result
    raise Refusal(404, "no such results")


def load_result(services: Here, entry: NamedSlide, run: RunName = None) -> LoadedResult:
    """Return the slide's whole results. Raises Refusal, or StoreError where they are damaged."""
    return services.results.load(find_result(services, entry, run))


NamedResult = Annotated[LoadedResult, Depends(load_result)]


class Unchanged(Exception):
    """The client has this version already."""


def tag_version(request: Request, version: str) -> dict[str, str]:
    """Return the header that names a version. Raises Unchanged where the client has it."""
    tag = f'"{version}"'
    known = request.headers.get("if-none-match", "").split(",")
    if tag in [one.strip().removeprefix("W/") for one in known]:
        raise Unchanged(tag)
    return {"ETag": tag}
