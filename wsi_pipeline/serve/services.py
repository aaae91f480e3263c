"""Everything that requests are answered with, made once per server and closed with it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.models.loading import load_model
from wsi_pipeline.models.opening import open_predictor
from wsi_pipeline.runs import InferOptions
from wsi_pipeline.serve.auth import Door
from wsi_pipeline.serve.catalogue import Catalogue
from wsi_pipeline.serve.decoding import DecoderPool
from wsi_pipeline.serve.job_queue import ENDED, JobQueue
from wsi_pipeline.serve.metrics import Metrics
from wsi_pipeline.serve.predicting import PredictionService
from wsi_pipeline.serve.result_reader import ResultReader
from wsi_pipeline.serve.settings import ServeSettings
from wsi_pipeline.serve.slide_pixels import SlidePixels, TileCache

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Services:
    """What one server works with."""

    settings: ServeSettings
    door: Door
    catalogue: Catalogue
    results: ResultReader
    cache: TileCache
    pixels: SlidePixels
    metrics: Metrics
    predictions: PredictionService | None
    """None without a model."""
    jobs: JobQueue | None
    """None without a model, slides and a results folder."""


@contextmanager
def open_services(settings: ServeSettings) -> Iterator[Services]:
    """Everything a server needs, closed at the end. Raises ModelError, ConfigError or EnvironmentFault before anything is served."""
    for place in (*settings.results, *([settings.slides] if settings.slides else [])):
        if not place.is_dir():
            raise ConfigError(f"{place}: no such folder; check the path")
    limits = settings.limits
    readers = DecoderPool(settings.decoders, limits.slide_memory_bytes, limits.waiting_reads)
    uploads = DecoderPool(1, limits.upload_memory_bytes, limits.predictions)
    cache = TileCache(limits.cache_bytes)
    catalogue = Catalogue(settings.results, settings.slides)
    jobs: JobQueue | None = None
    try:
        jobs = _open_jobs(settings, catalogue)
        services = Services(
            settings=settings,
            door=Door(settings),
            catalogue=catalogue,
            results=ResultReader(),
            cache=cache,
            pixels=SlidePixels(readers, cache, limits, settings.slide_mpp),
            metrics=Metrics(),
            predictions=_open_predictions(settings, uploads),
            jobs=jobs,
        )
        _watch(services, readers, uploads)
        yield services
    finally:
        if jobs is not None:
            jobs.close()
        readers.close()
        uploads.close()


def _open_predictions(settings: ServeSettings, uploads: DecoderPool) -> PredictionService | None:
    if settings.model is None:
        return None
    opened = open_predictor(load_model(settings.model, settings.terms), settings.device)
    logger.info(opened.line)
    return PredictionService(opened.predictor, uploads, settings.limits)


def _open_jobs(settings: ServeSettings, catalogue: Catalogue) -> JobQueue | None:
    if settings.model is None or settings.slides is None or not settings.results:
        return None
    return JobQueue(
        model=settings.model,
        results=settings.results[0],
        options=InferOptions(
            slide_mpp=settings.slide_mpp,
            device=settings.device,
            trust_model=settings.terms.trust,
            positive_class=settings.terms.positive_class,
            workers=settings.workers,
        ),
        capacity=settings.limits.jobs,
        on_end=catalogue.refresh,
    )


def _watch(services: Services, readers: DecoderPool, uploads: DecoderPool) -> None:
    watch, cache, jobs = services.metrics.watch, services.cache, services.jobs
    watch("wsi_tile_cache_bytes", "Bytes of tiles in memory", lambda: cache.used_bytes)
    watch("wsi_tile_cache_hits", "Tiles found in memory", lambda: cache.hits)
    watch("wsi_tile_cache_misses", "Tiles not found in memory", lambda: cache.misses)
    watch(
        "wsi_decoders_replaced",
        "Decoding processes that died or were ended",
        lambda: readers.replaced + uploads.replaced,
    )
    watch("wsi_slides", "Slides served", lambda: len(services.catalogue.entries()))
    if jobs is not None:
        watch(
            "wsi_jobs_under_way",
            "Jobs that wait or run",
            lambda: sum(job.state not in ENDED for job in jobs.list()),
        )
