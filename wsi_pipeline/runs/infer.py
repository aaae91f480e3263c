"""Runs over many slides that end in their results, and in the tables that people read.

Beside the slides' results a run leaves its tables, its record, and the page of all slides.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import AUTO, LEAK_WARNING, STORE_SUFFIX
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.options import InferOptions
from wsi_pipeline.core.outcome import RunAccount
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.core.recipe import describe_tool
from wsi_pipeline.counting.site import read_site
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.models.choice import EngineRequest, ModelChoice, ResolvedEngine, read_terms
from wsi_pipeline.models.loading import load_model
from wsi_pipeline.models.model import Model
from wsi_pipeline.models.opening import resolve_engine, resolve_engine_for, unload
from wsi_pipeline.outputs import read_view
from wsi_pipeline.outputs.run_files import (
    read_finished,
    write_failures_csv,
    write_index,
    write_run_json,
    write_slides_tables,
)
from wsi_pipeline.runs.batch import Batch, run_batch
from wsi_pipeline.runs.disk_space import DiskSpace
from wsi_pipeline.runs.events import log_events
from wsi_pipeline.runs.workers import choose_workers, take_share
from wsi_pipeline.scheduling import WorkerPool, Workers, open_workers
from wsi_pipeline.slides.found_slide import FoundSlide, name_slides
from wsi_pipeline.slides.tissue import TissueParameters
from wsi_pipeline.stages.infer import InferJob
from wsi_pipeline.stages.tile import TileConfig, TileJob
from wsi_pipeline.store.files import make_folder, remove_dead_asides
from wsi_pipeline.store.patches import find_stores

logger = logging.getLogger(__name__)


def read_request(options: InferOptions) -> EngineRequest:
    """Return what is asked for of the computation."""
    engine = "torch-compile" if options.compile else options.engine
    return EngineRequest(options.device, engine, options.precision, options.batch_size)


def read_tiling(options: InferOptions, model: Model) -> TileConfig:
    """Return how slides are cut for a model: with its patch size, at its scale."""
    return TileConfig(
        spec=model.spec,
        tissue=TissueParameters(min_tissue=options.min_tissue),
        slide_mpp=options.slide_mpp,
        allow_upsample=options.allow_upsample,
        rules=LabelRules(class_names=model.class_names),
    )


def infer_slides(
    slides: Sequence[FoundSlide],
    model: Path,
    results: Path,
    options: InferOptions | None = None,
    listener: Listener | None = None,
) -> RunAccount:
    """Run a model over slides or patch stores; write each one's results and the tables.

    Labels of stores are copied to their results, for `wsi evaluate`.
    """
    started = time.perf_counter()
    options, listener = options or InferOptions(), listener or Listener()
    loaded = open_model(model, options, listener)
    workers = choose_workers(options, options.device)
    (slides, suffix), tiling = take_share(slides, options.shard), read_tiling(options, loaded)
    with ExitStack() as log:
        with open_workers(workers) as pool:
            choice = choose_engine(loaded, model, options, listener, workers, pool)
            make_folder(results)
            jobs = make_jobs(slides, choice, tiling, results, options)
            parameters = _list_parameters(choice, tiling, options, workers)
            used = {"architecture": loaded.architecture, "digest": loaded.digest}
            told = parameters | {"model": used}
            events = log.enter_context(log_events(results, "infer", len(jobs), told, suffix))
            batch = run_batch(jobs, pool, listener, events, DiskSpace(options.min_free))
        listener.working_on("writing the tables and the page of all slides")
        seconds = {"total": time.perf_counter() - started} | batch.seconds
        record = describe_run(batch, loaded, parameters, seconds)
        account = write_tables(results, batch.account, record, suffix)
        for folder in (results, options.keep_patches):
            if folder is not None and folder.is_dir():
                remove_dead_asides(folder)
        events.run_ended(account, batch.patches_predicted, seconds)
    return account


def open_model(model: Path, options: InferOptions, listener: Listener) -> Model:
    """Load the model, and say on which terms it runs."""
    listener.working_on("loading the model")
    loaded = load_model(model, read_terms(options))
    listener.say(describe_model(loaded))
    return loaded


def choose_engine(
    loaded: Model,
    model: Path,
    options: InferOptions,
    listener: Listener,
    workers: Workers | None = None,
    pool: WorkerPool | None = None,
) -> ModelChoice:
    """Return the engine of the whole run, chosen here or by a worker on another machine."""
    listener.working_on("choosing the engine and checking its answers")
    request = (read_request(options), read_terms(options))
    if pool and workers and workers.is_elsewhere:
        answer: ResolvedEngine = pool.call(resolve_engine_for, model.resolve(), *request)
        listener.say(f"on the workers: {answer.line}")
        return answer.choice
    resolved = resolve_engine(loaded, model, *request)
    listener.say(resolved.line)
    if workers and workers.processes:
        unload()
    return resolved.choice


def describe_model(model: Model) -> str:
    """Return the terms on which a model is run, in one line."""
    terms = model.terms.on_grid
    return (
        f"model {model.architecture}: patches of {model.spec.side_px} px at"
        f" {model.spec.mpp:g} µm/px, {model.positive_class} counted from probability"
        f" {terms.count:.3f} on, context {terms.context_um:g} µm"
        f" ({model.threshold_source}){f'; LEAKY: {LEAK_WARNING}' if model.is_leaky else ''}"
    )


def _list_parameters(
    choice: ModelChoice, tiling: TileConfig, options: InferOptions, workers: Workers
) -> dict[str, Any]:
    return {
        "tiling": asdict(tiling),
        **choice.setting.to_json(),
        "batch_size": options.batch_size or AUTO,
        "view": read_view(options).to_json(),
        "keeps_patches": options.keep_patches is not None,
        "workers": workers.to_json(),
    }


def describe_run(
    batch: Batch, model: Model, parameters: Mapping[str, Any], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Return the request, the versions, and the time of each stage."""
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
    others = [failure for failure in finished.damaged if failure.slide_id not in own]
    write_failures_csv(results, [*account.outcomes, *others], suffix)
    outcomes = [asdict(outcome) for outcome in account.outcomes]
    whole = {"account": account.closing_line, "outcomes": outcomes, **record}
    write_run_json(results, whole, suffix)
    write_slides_tables(results, finished.summaries)
    write_index(results, finished)
    return account


def list_stores(places: Sequence[Path]) -> list[FoundSlide]:
    """Return the patch stores among `places`, by the names that their results will carry."""
    stores = find_stores(list(places))
    names = name_slides(
        [store.with_name(store.name.removesuffix(STORE_SUFFIX) + ".zarr") for store in stores]
    )
    return [
        FoundSlide(name, store, is_store=True) for name, store in zip(names, stores, strict=True)
    ]


def make_jobs(
    slides: Sequence[FoundSlide],
    choice: ModelChoice,
    tiling: TileConfig,
    results: Path,
    options: InferOptions,
) -> list[InferJob]:
    """Return a job for every slide or store. Raises ConfigError if stores are to be kept again."""
    keep, view = options.keep_patches, read_view(options).at_site(read_site(results))
    if keep is not None and any(slide.is_store for slide in slides):
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
    out, force = results.absolute(), options.force
    return [
        InferJob(slide, out, choice, tiling, slide.is_store, force, view, store)
        for slide, store in zip(slides, kept, strict=True)
    ]
