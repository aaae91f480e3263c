"""Runs over many slides that end in their results, and in the tables that people read.

Beside the slides' results a run leaves its tables, its record, and the page of all slides.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import AUTO, LEAK_WARNING, RAW, SRGB, STORE_SUFFIX
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.options import InferOptions
from wsi_pipeline.core.outcome import RunAccount
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.core.recipe import describe_tool
from wsi_pipeline.counting.site import read_site
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.models.card import ModelFacts
from wsi_pipeline.models.choice import (
    EngineRequest,
    EngineSetting,
    ExternalModelTerms,
    ModelChoice,
    ResolvedEngine,
    read_terms,
)
from wsi_pipeline.models.loading import read_model
from wsi_pipeline.outputs import check_estimate, read_view
from wsi_pipeline.outputs.run_files import (
    read_finished,
    write_failures_csv,
    write_index,
    write_run_json,
    write_slides_tables,
)
from wsi_pipeline.runs.batch import Batch, Interrupted, run_batch
from wsi_pipeline.runs.copied_job import lend_copies
from wsi_pipeline.runs.cutting import read_cutting, read_masks, scale_by_table
from wsi_pipeline.runs.disk_space import DiskSpace
from wsi_pipeline.runs.done import find_done
from wsi_pipeline.runs.events import log_events
from wsi_pipeline.runs.local_copies import LocalCopies
from wsi_pipeline.runs.workers import choose_workers, take_share
from wsi_pipeline.scheduling import WorkerPool, Workers, open_workers
from wsi_pipeline.slides.colour_profile import warn_of_mixture
from wsi_pipeline.slides.fastslide_reader import warn_of_unseen_damage
from wsi_pipeline.slides.found_slide import FoundSlide, name_slides
from wsi_pipeline.stages.infer import InferJob
from wsi_pipeline.stages.part import Sampling
from wsi_pipeline.stages.tile import TileJob
from wsi_pipeline.stages.tile_config import TileConfig
from wsi_pipeline.store.files import make_folder, remove_dead_asides
from wsi_pipeline.store.patches import find_stores

logger = logging.getLogger(__name__)


def read_request(options: InferOptions) -> EngineRequest:
    """Return what is asked for of the computation."""
    engine = "torch-compile" if options.compile else options.engine
    return EngineRequest(options.device, engine, options.precision, options.batch_size)


def read_tiling(options: InferOptions, model: ModelFacts) -> TileConfig:
    """Return how slides are cut for a model: with its patch size, at its scale."""
    return read_cutting(options, model.spec, LabelRules(class_names=model.class_names))


def infer_slides(
    slides: Sequence[FoundSlide],
    model: Path,
    results: Path,
    options: InferOptions | None = None,
    listener: Listener | None = None,
    open_pool: Callable[[Workers], AbstractContextManager[WorkerPool]] = open_workers,
    earlier: RunAccount | None = None,
    *,
    extends: bool = False,
) -> RunAccount:
    """Run a model over slides or patch stores; write each one's results and the tables.

    Labels of stores are copied to their results, for `wsi evaluate`. `open_pool` starts the
    workers, where any work is left for them. With the account of `earlier` runs, tables and
    account are of all runs; they are written also where the user interrupts this one, and
    Interrupted is raised. `extends`: only the drawn areas of the slides are inferred, and join
    their results.
    """
    started = time.perf_counter()
    options, listener = options or InferOptions(), listener or Listener()
    facts = open_model(model, options, listener)
    slides, suffix = take_share(scale_by_table(slides, options), options.shard)
    tiling = read_tiling(options, facts)
    workers = choose_workers(options, options.device)
    copies = LocalCopies.choose(options, workers, slides)
    unsettled = choose_unsettled(facts, model, options)
    jobs = make_jobs(slides, unsettled, tiling, results, options, extends)
    done = find_done(jobs, here=not workers.processes)
    choice: ModelChoice | None = None
    with ExitStack() as log:
        with ExitStack() as work:
            pool: Workers | WorkerPool = workers
            if len(done) < len(jobs):
                pool = work.enter_context(open_pool(workers))
                choice = choose_engine(model, options, listener, workers, pool)
                jobs = make_jobs(slides, choice, tiling, results, options, extends)
            make_folder(results)
            parameters = _list_parameters(choice, tiling, options, workers)
            used = {"architecture": facts.architecture, "digest": facts.digest}
            told = parameters | {"model": used}
            events = log.enter_context(log_events(results, "infer", len(jobs), told, suffix))
            lent = work.enter_context(lend_copies(jobs, copies))
            space, keeps = DiskSpace(options.min_free), earlier is not None
            batch = run_batch(lent, pool, listener, events, space, "slide", done, keeps)
        listener.working_on("writing the tables and the page of all slides")
        seconds = {"total": time.perf_counter() - started} | batch.seconds
        record = describe_run(batch, facts, parameters, seconds)
        account = batch.account.after(earlier)
        account = write_tables(results, account, record, suffix, facts.spec.icc)
        for folder in (results, options.keep_patches):
            if folder is not None and folder.is_dir():
                remove_dead_asides(folder)
        if batch.is_interrupted:
            raise Interrupted(account)
        events.run_ended(account, batch.patches_predicted, seconds)
    return account


def open_model(model: Path, options: InferOptions, listener: Listener) -> ModelFacts:
    """Read what the model states, and say on which terms it runs."""
    listener.working_on("reading the model's card")
    facts = read_model(model, read_terms(options))
    listener.say(describe_model(facts))
    return facts


def choose_unsettled(facts: ModelFacts, model: Path, options: InferOptions) -> ModelChoice:
    """Return the model with the engine as far as it is named; slides may be looked for by it."""
    request, plain = read_request(options), EngineSetting()
    named = {"engine": request.engine, "precision": request.precision, "device": request.device}
    setting = replace(plain, **{name: value for name, value in named.items() if value != AUTO})
    terms = read_terms(options)
    return ModelChoice(model.resolve(), facts.digest, setting, request.batch_size, terms)


def choose_engine(
    model: Path,
    options: InferOptions,
    listener: Listener,
    workers: Workers | None = None,
    pool: WorkerPool | None = None,
) -> ModelChoice:
    """Return the engine of the whole run, chosen by a worker, or here where there is none."""
    listener.working_on("loading the model and checking its answers")
    request = (model.resolve(), read_request(options), read_terms(options))
    if pool and workers and (workers.is_elsewhere or workers.processes):
        answer: ResolvedEngine = pool.call(resolve_engine, *request)
    else:
        answer = resolve_engine(*request)
    where = "on the workers: " if workers and workers.is_elsewhere else ""
    listener.say(f"{where}{answer.line}")
    return answer.choice


def resolve_engine(path: Path, request: EngineRequest, terms: ExternalModelTerms) -> ResolvedEngine:
    """Choose the engine for a model, load it with that and check its answers, in this process.

    Raises ModelError where no engine can run the model, EnvironmentFault without the device.
    """
    from wsi_pipeline.models.opening import resolve_engine as resolve

    return resolve(path, request, terms)


def describe_model(model: ModelFacts) -> str:
    """Return the terms on which a model is run, in one line."""
    terms = model.terms.on_grid
    colours = " in sRGB" if model.spec.icc == SRGB else ""
    return (
        f"model {model.architecture}: patches of {model.spec.side_px} px at"
        f" {model.spec.mpp:g} µm/px{colours}, {model.positive_class} counted from probability"
        f" {terms.count:.3f} on, context {terms.context_um:g} µm"
        f" ({model.threshold_source}){f'; LEAKY: {LEAK_WARNING}' if model.is_leaky else ''}"
    )


def _list_parameters(
    choice: ModelChoice | None, tiling: TileConfig, options: InferOptions, workers: Workers
) -> dict[str, Any]:
    """Return everything that was asked for; no engine where nothing was left to compute."""
    nothing = dict.fromkeys(EngineSetting().to_json())
    return {
        "tiling": asdict(tiling),
        **(nothing if choice is None else choice.setting.to_json()),
        "batch_size": options.batch_size or (choice and choice.measured_batch) or AUTO,
        "view": read_view(options).to_json(),
        "sample": options.sample,
        "seed": options.seed,
        "keeps_patches": options.keep_patches is not None,
        "workers": workers.to_json(),
    }


def describe_run(
    batch: Batch, model: ModelFacts, parameters: Mapping[str, Any], seconds: Mapping[str, float]
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
    results: Path, account: RunAccount, record: Mapping[str, Any], suffix: str, icc: str = RAW
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
    ours = [summary for summary in finished.summaries if summary.slide_id in own]
    warn_of_mixture([summary.colour_profile for summary in ours], icc)
    warn_of_unseen_damage(summary.reader_note for summary in ours)
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
    extends: bool = False,
) -> list[InferJob]:
    """Return a job for every slide or store. Raises ConfigError if stores are to be kept again."""
    keep, view = options.keep_patches, read_view(options).at_site(read_site(results))
    masks = read_masks(options)
    if masks and any(slide.is_store for slide in slides):
        raise ConfigError(
            f"{options.mask}: masks choose patches of slides, and these are patch stores; leave"
            " --mask out"
        )
    if keep is not None and any(slide.is_store for slide in slides):
        raise ConfigError(
            f"{keep}: patches are kept of slides, and these are patch stores already; leave"
            " --keep-patches out"
        )
    sampling = None if options.sample is None else Sampling(options.sample, options.seed)
    if sampling:
        check_estimate(options)
    if sampling and any(slide.is_store for slide in slides):
        raise ConfigError(
            "--sample reads a part of slides, and these are patch stores, which are read whole;"
            " leave it out"
        )
    # As `wsi tile` does without labels: what a model calls its classes is not the store's business.
    plain = replace(tiling, rules=LabelRules())
    kept = [
        None
        if keep is None
        else TileJob(replace(slide, label_file=None), keep.absolute(), plain, masks=masks)
        for slide in slides
    ]
    out, force = results.absolute(), options.force
    is_free = (options.engine, options.precision) == (AUTO, AUTO) and not options.compile
    return [
        InferJob(
            *(slide, out, choice, tiling, slide.is_store, force, view, store, is_free, masks),
            sampling=sampling,
            extends=extends,
        )
        for slide, store in zip(slides, kept, strict=True)
    ]
