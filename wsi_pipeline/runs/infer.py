"""Runs over many slides that end in their results, and in the tables that people read.

Beside the slides' results a run leaves its tables, its record, and the page of all slides.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import STORE_SUFFIX
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.outcome import RunAccount
from wsi_pipeline.core.recipe import describe_tool
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.models.loading import ExternalModelTerms, load_model
from wsi_pipeline.models.model import Model
from wsi_pipeline.models.opening import (
    EngineRequest,
    ModelChoice,
    ResolvedEngine,
    resolve_engine,
    resolve_engine_for,
    unload,
)
from wsi_pipeline.outputs.index_page import write_index
from wsi_pipeline.outputs.run_tables import (
    read_finished,
    write_failures_csv,
    write_run_json,
    write_slides_tables,
)
from wsi_pipeline.outputs.style import View
from wsi_pipeline.runs.batch import Batch, Progress, SilentProgress, make_absolute, run_batch
from wsi_pipeline.runs.disk_space import DiskSpace
from wsi_pipeline.runs.events import log_events
from wsi_pipeline.runs.workers import choose_workers
from wsi_pipeline.scheduling import WorkerPool, Workers, open_workers
from wsi_pipeline.slides.discovery import FoundSlide, find_slides, name_slides
from wsi_pipeline.slides.selection import Shard
from wsi_pipeline.stages.infer import InferJob
from wsi_pipeline.stages.patch_plan import TileConfig
from wsi_pipeline.stages.tile import TileJob
from wsi_pipeline.store.files import make_folder, remove_dead_asides
from wsi_pipeline.store.patches import find_stores

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InferConfig:
    """How slides are inferred, apart from the model."""

    tiling: TileConfig = field(default_factory=TileConfig)
    """Its patch size, stride and scale are those of the model, whatever is said here."""
    device: str = "auto"
    engine: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    """None: as the device has it."""
    force: bool = False
    view: View = field(default_factory=View)
    """What is made of the predictions."""
    terms: ExternalModelTerms = field(default_factory=ExternalModelTerms)
    """For models that wsi did not train."""
    shard: Shard | None = None
    """The share of the slides that this run takes."""
    keep_patches: Path | None = None
    """Folder for the patch stores of the slides, written on the way or read where they are there."""
    disk_space: DiskSpace = field(default_factory=DiskSpace)
    """What is to stay free on the disk."""

    @property
    def engine_request(self) -> EngineRequest:
        """What is asked for of the computation."""
        return EngineRequest(self.device, self.engine, self.precision, self.batch_size)


def infer_slides(
    places: Sequence[Path],
    model: Path,
    results: Path,
    config: InferConfig | None = None,
    *,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> RunAccount:
    """Run a model over every slide among `places` and write the results of each, and the tables of the run."""
    return infer_found(
        find_slides(places), model, results, config, workers=workers, progress=progress
    )


def infer_found(
    slides: Sequence[FoundSlide],
    model: Path,
    results: Path,
    config: InferConfig | None = None,
    *,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> RunAccount:
    """Run a model over slides that are already listed, as by a sample sheet."""
    return _infer(slides, False, model, results, config or InferConfig(), workers, progress)


def infer_stores(
    places: Sequence[Path],
    model: Path,
    results: Path,
    config: InferConfig | None = None,
    *,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> RunAccount:
    """Run a model over patch stores instead of slides; labels in the stores go along, for `wsi evaluate`."""
    return _infer(
        list_stores(places), True, model, results, config or InferConfig(), workers, progress
    )


def _infer(
    slides: Sequence[FoundSlide],
    are_stores: bool,
    model: Path,
    results: Path,
    config: InferConfig,
    workers: Workers | None,
    progress: Progress | None,
) -> RunAccount:
    started = time.perf_counter()
    loaded = load_model(model, config.terms)
    workers = workers or choose_workers(device=config.device)
    slides = make_absolute(slides if config.shard is None else config.shard.take(slides))
    tiling = tile_for(loaded, config.tiling)
    suffix = "" if config.shard is None else config.shard.suffix
    with ExitStack() as log:
        with open_workers(workers) as pool:
            choice = _resolve_engine(loaded, model, config, workers, pool).choice
            make_folder(results)
            jobs = make_jobs(
                slides,
                are_stores,
                choice,
                tiling,
                results,
                force=config.force,
                view=config.view,
                keep=config.keep_patches,
            )
            parameters = _list_parameters(choice, tiling, config, workers)
            told = parameters | {
                "model": {"architecture": loaded.architecture, "digest": loaded.digest}
            }
            events = log.enter_context(log_events(results, "infer", len(slides), told, suffix))
            batch = run_batch(
                slides, jobs, pool, progress or SilentProgress(), events, config.disk_space
            )
        seconds = {"total": time.perf_counter() - started} | batch.seconds
        account = write_tables(
            results, batch.account, describe_run(batch, loaded, parameters, seconds), suffix
        )
        for folder in (results, config.keep_patches):
            if folder is not None and folder.is_dir():
                remove_dead_asides(folder)
        events.run_ended(account, batch.patches_predicted, seconds)
    return account


def _resolve_engine(
    loaded: Model, model: Path, config: InferConfig, workers: Workers, pool: WorkerPool
) -> ResolvedEngine:
    """The engine of the whole run: chosen by the device here, or by a worker's where the workers are elsewhere."""
    if not workers.is_elsewhere:
        resolved = resolve_engine(loaded, model, config.engine_request, config.terms)
        if workers.processes:
            unload()
        return resolved
    answer: ResolvedEngine = pool.ask(
        resolve_engine_for, model.resolve(), config.engine_request, config.terms
    )
    logger.warning("on the workers: %s", answer.line)
    return answer


def _list_parameters(
    choice: ModelChoice, tiling: TileConfig, config: InferConfig, workers: Workers
) -> dict[str, Any]:
    return {
        "tiling": asdict(tiling),
        **choice.setting.to_json(),
        "batch_size": config.batch_size or "auto",
        "view": config.view.to_json(),
        "keeps_patches": config.keep_patches is not None,
        "workers": workers.to_json(),
    }


def describe_run(
    batch: Batch, model: Model, parameters: Mapping[str, Any], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """What was asked for, by which versions, and how long each stage took."""
    return {
        "model": model.to_json(),
        "seed": dict(model.training).get("parameters", {}).get("seed"),
        "parameters": parameters,
        "patches_predicted": batch.patches_predicted,
        "seconds": seconds,
        "tool": describe_tool(),
    }


def write_tables(
    results: Path, account: RunAccount, record: Mapping[str, Any], suffix: str
) -> RunAccount:
    """failures.csv and run.json of this run, the tables and the page of all finished slides.

    Returns the account, in which a slide has failed whose results cannot be read back.
    """
    finished = read_finished(results)
    account = account.with_failures(finished.damaged)
    own = {outcome.slide_id for outcome in account.outcomes}
    for failure in finished.damaged:
        logger.warning("%s", failure.message)
    write_failures_csv(
        results,
        [
            *account.outcomes,
            *(failure for failure in finished.damaged if failure.slide_id not in own),
        ],
        suffix,
    )
    outcomes = [asdict(outcome) for outcome in account.outcomes]
    write_run_json(
        results, {"account": account.closing_line, "outcomes": outcomes, **record}, suffix
    )
    write_slides_tables(results, finished.summaries)
    write_index(results, finished)
    return account


def list_stores(places: Sequence[Path]) -> list[FoundSlide]:
    """Return the patch stores among `places`, by the names that their results will carry."""
    stores = find_stores(list(places))
    names = name_slides(
        [store.with_name(store.name.removesuffix(STORE_SUFFIX) + ".zarr") for store in stores]
    )
    return [FoundSlide(name, store) for name, store in zip(names, stores, strict=True)]


def tile_for(model: Model, tiling: TileConfig) -> TileConfig:
    """Return how slides are cut for a model."""
    return TileConfig(
        spec=model.spec,
        tissue=tiling.tissue,
        slide_mpp=tiling.slide_mpp,
        allow_upsample=tiling.allow_upsample,
        rules=LabelRules(class_names=model.class_names),
    )


def make_jobs(
    slides: Sequence[FoundSlide],
    are_stores: bool,
    choice: ModelChoice,
    tiling: TileConfig,
    results: Path,
    *,
    force: bool,
    view: View,
    keep: Path | None,
) -> list[InferJob]:
    """Return a job for every slide, or store; with `keep` it leaves a store in that folder. Raises ConfigError."""
    if keep is not None and are_stores:
        raise ConfigError(
            f"{keep}: patches are kept of slides, and these are patch stores already; leave"
            " --keep-patches out"
        )
    # As `wsi tile` does without labels: what a model calls its classes is not the store's business.
    plain = replace(tiling, rules=LabelRules())
    kept = [
        None if keep is None else TileJob(replace(slide, label_file=None), keep.absolute(), plain)
        for slide in slides
    ]
    return [
        InferJob(slide, results.absolute(), choice, tiling, are_stores, force, view, store)
        for slide, store in zip(slides, kept, strict=True)
    ]
