"""Runs over many slides: one outcome per slide whatever happens, and the tables that people read.

Everything here is callable from Python; the command line adds nothing but options and printing. Scripts that use worker processes
need the usual `if __name__ == "__main__":` guard.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wsi_pipeline.batch import Progress, SilentProgress, make_absolute, run_batch
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.geometry import PatchSpec
from wsi_pipeline.ingestion.layouts import LayoutOptions, LeftOut, check_regex, find_patches, find_patient
from wsi_pipeline.jobs import disguise
from wsi_pipeline.jobs.inferring import list_stores, make_jobs, tile_for
from wsi_pipeline.jobs.labelling import add_labels
from wsi_pipeline.jobs.model_choice import ModelChoice, Settled, let_go, settle_engine, settle_engine_of
from wsi_pipeline.jobs.room import Room
from wsi_pipeline.jobs.tile import IngestJob, TileJob
from wsi_pipeline.labels.user_mask import list_masks
from wsi_pipeline.models.device import available_cores, choose_device, list_gpus
from wsi_pipeline.models.loading import load_model
from wsi_pipeline.models.model import Model
from wsi_pipeline.operation.events import log_events
from wsi_pipeline.outcome import RunAccount, SlideState
from wsi_pipeline.outputs.run_tables import write_csv, write_failures_csv
from wsi_pipeline.pseudonyms import Pseudonyms
from wsi_pipeline.run_options import InferConfig as InferConfig
from wsi_pipeline.run_options import TileOptions as TileOptions
from wsi_pipeline.run_record import describe_run, write_tables
from wsi_pipeline.scheduling import Crew, Workers, open_crew
from wsi_pipeline.slides.discovery import FoundSlide, find_slides, name_slides
from wsi_pipeline.slides.selection import scale_slides, select_slides
from wsi_pipeline.store.arrays import read_attributes
from wsi_pipeline.store.files import make_folder, remove_dead_asides
from wsi_pipeline.tiling import TileConfig

LEFT_OUT_CSV = "left_out.csv"
MOST_TILERS = 16
"""Processes that tile unless more are asked for: each takes about half a gigabyte."""

logger = logging.getLogger(__name__)


def choose_workers(count: int | None = None, scheduler: str | None = None, device: str = "cpu", **settings: Any) -> Workers:
    """The cluster at `scheduler`, or `count` processes here, or one per GPU where `device` is one, or one.

    `settings` are further fields of Workers; `gpus` among them names the GPUs to use instead of all. Raises ConfigError.
    """
    gpus = tuple(settings.pop("gpus", ()))
    crew = Workers(count=count, scheduler=scheduler, wants_gpu=device != "cpu", **settings)
    if crew.is_elsewhere:
        return replace(crew, threads=max(2, available_cores()))
    has_gpus = choose_device(device).type == "cuda"
    if gpus and not has_gpus:
        raise ConfigError(f"--gpus {','.join(gpus)}: no usable GPU on this machine, or --device cpu; leave it out")
    crew = replace(crew, gpus=(gpus or list_gpus()) if has_gpus else (), wants_gpu=has_gpus)
    return replace(crew, threads=max(2, available_cores() // max(crew.processes, 1)))


def choose_tilers(count: int | None = None, scheduler: str | None = None, **settings: Any) -> Workers:
    """The same for work that is all decoding: one process per core unless `count` says otherwise, for threads share an interpreter."""
    if count is None and scheduler is None and settings.get("cluster", "local") == "local":
        count = min(available_cores(), MOST_TILERS)
    return choose_workers(count, scheduler, **settings)


def tile_slides(
    places: Sequence[Path | str],
    out: Path,
    config: TileConfig,
    *,
    labels: Sequence[Path] | None = (),
    patient_regex: str | None = None,
    options: TileOptions | None = None,
    workers: Workers | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> RunAccount:
    """Cut every slide among `places` (files, folders, patterns, or one sample sheet) into a patch store in `out`.

    `labels` are label files or folders of them, matched to slides by name; None takes the label file that lies beside each slide.
    `patient_regex` says where the patient stands in a slide's file name; without it every slide counts as a patient of its own.
    """
    options = options or TileOptions()
    slides = select_slides(places, options.recursive)
    if labels is None or labels:
        slides = add_labels(slides, labels, options.pseudonyms)
    if patient_regex is not None:
        check_regex(patient_regex)
        slides = [replace(slide, patient_id=find_patient(patient_regex, slide.path.name)) for slide in slides]
    return tile_found(slides, out, config, options=options, workers=workers, force=force, progress=progress)


def tile_found(
    slides: Sequence[FoundSlide],
    out: Path,
    config: TileConfig,
    *,
    options: TileOptions | None = None,
    workers: Workers | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> RunAccount:
    """Cut slides that are already listed, as by a sample sheet."""
    options = options or TileOptions()
    slides = slides if options.mpp_csv is None else scale_slides(slides, options.mpp_csv)
    slides = make_absolute(slides if options.shard is None else options.shard.take(slides))
    masks = () if options.masks is None else tuple(path.absolute() for path in list_masks(options.masks))
    make_folder(out)
    veil, masks = disguise.veil_slides(slides, options.pseudonyms), disguise.disguise_masks(slides, masks, options.pseudonyms)
    slides = disguise.disguise_slides(slides, options.pseudonyms)
    jobs = [TileJob(slide, out.absolute(), config, force, options.codec, masks) for slide in slides]
    suffix = "" if options.shard is None else options.shard.suffix
    parameters = {"tiling": asdict(config), "codec": options.codec.to_json(), "force": force}
    with log_events(out, "tile", len(slides), parameters, suffix) as events:
        batch = run_batch(slides, jobs, workers or choose_tilers(), progress or SilentProgress(), events, options.room, veil)
        write_failures_csv(out, batch.account.outcomes, suffix=suffix)
        remove_dead_asides(out)
        events.run_ended(batch.account, batch.pace.patches_done, batch.seconds)
    return batch.account


@dataclass(frozen=True, slots=True)
class IngestAccount:
    """How taking in a folder of patches ended."""

    run: RunAccount
    left_out: tuple[LeftOut, ...]

    @property
    def patches(self) -> int:
        """Patches in the stores."""
        return sum(outcome.patches for outcome in self.run.outcomes)


def ingest_patches(
    place: Path,
    out: Path,
    spec: PatchSpec,
    *,
    layout: str = "idc",
    options: LayoutOptions | None = None,
    workers: Workers | None = None,
    force: bool = False,
    progress: Progress | None = None,
    room: Room | None = None,
    pseudonyms: Pseudonyms | None = None,
) -> IngestAccount:
    """Take the patches of every patient of a data set into stores in `out`, and list what was left out, with the reason."""
    found = find_patches(place.absolute(), layout, options or LayoutOptions())
    make_folder(out)
    out = out.absolute()
    veil, patients = disguise.veil_patients(found.patients, pseudonyms), disguise.disguise_patients(found.patients, pseudonyms)
    names = name_slides([Path(f"{patient.patient_id.replace('/', '_')}.patches") for patient in patients])
    jobs = [IngestJob(patient, name, out, spec, force, pseudonyms) for name, patient in zip(names, patients, strict=True)]
    slides = [FoundSlide(job.store_name, Path(job.source)) for job in jobs]
    batch = run_batch(slides, jobs, workers or Workers(count=0), progress or SilentProgress(), room=room, veil=veil)
    made = [job.target for job, outcome in zip(jobs, batch.account.outcomes, strict=True) if outcome.state is not SlideState.FAILED]
    left_out = disguise.disguise_left_out(found.left_out, pseudonyms) + [
        LeftOut(*entry) for store in made for entry in read_attributes(store)["left_out"]
    ]
    write_csv(out / LEFT_OUT_CSV, ["file", "reason"], left_out)
    write_failures_csv(out, batch.account.outcomes)
    remove_dead_asides(out)
    return IngestAccount(batch.account, tuple(left_out))


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
    return infer_found(find_slides(places), model, results, config, workers=workers, progress=progress)


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
    return _infer(list_stores(places), True, model, results, config or InferConfig(), workers, progress)


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
    veil, slides = disguise.veil_slides(slides, config.pseudonyms), disguise.disguise_slides(slides, config.pseudonyms)
    tiling = tile_for(loaded, config.tiling)
    suffix = "" if config.shard is None else config.shard.suffix
    with ExitStack() as log:
        with open_crew(workers) as crew:
            choice = _settle(loaded, model, config, workers, crew).choice
            make_folder(results)
            jobs = make_jobs(slides, are_stores, choice, tiling, results, force=config.force, view=config.view, keep=config.keep_patches)
            parameters = _list_parameters(choice, tiling, config, workers)
            told = parameters | {"model": {"architecture": loaded.architecture, "digest": loaded.digest}}
            events = log.enter_context(log_events(results, "infer", len(slides), told, suffix))
            batch = run_batch(slides, jobs, crew, progress or SilentProgress(), events, config.room, veil)
        seconds = {"total": time.perf_counter() - started} | batch.seconds
        write_tables(results, batch, describe_run(batch, loaded, parameters, seconds), suffix)
        events.run_ended(batch.account, batch.patches_predicted, seconds)
    return batch.account


def _settle(loaded: Model, model: Path, config: InferConfig, workers: Workers, crew: Crew) -> Settled:
    """The engine of the whole run: chosen by the device here, or by a worker's where the workers are elsewhere."""
    if not workers.is_elsewhere:
        settled = settle_engine(loaded, model, config.wish, config.terms)
        if workers.processes:
            let_go()
        return settled
    answer: Settled = crew.ask(settle_engine_of, model.resolve(), config.wish, config.terms)
    logger.warning("on the workers: %s", answer.line)
    return answer


def _list_parameters(choice: ModelChoice, tiling: TileConfig, config: InferConfig, workers: Workers) -> dict[str, Any]:
    return {
        "tiling": asdict(tiling),
        **choice.setting.to_json(),
        "batch_size": config.batch_size or "auto",
        "view": config.view.to_json(),
        "keeps_patches": config.keep_patches is not None,
        "workers": workers.to_json(),
    }
