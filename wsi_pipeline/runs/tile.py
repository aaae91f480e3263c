"""Runs over many slides, or patients, that end in patch stores; without torch."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from wsi_pipeline.core.choices import AUTO, LEFT_OUT_CSV, LOCAL, STORE_SUFFIX
from wsi_pipeline.core.errors import EnvironmentFault, LabelError, StoreError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.limits import available_cores, limited_memory
from wsi_pipeline.core.options import IngestOptions, TileOptions
from wsi_pipeline.core.outcome import RunAccount, SlideOutcome, SlideState, describe_failure
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.labels.discovery import list_label_files, match_beside, match_labels
from wsi_pipeline.labels.rules import read_rules
from wsi_pipeline.labels.tissue_mask import match_mask
from wsi_pipeline.outputs.run_files import write_csv, write_failures_csv
from wsi_pipeline.outputs.tiling_page import TilingCommand, write_tiling_page
from wsi_pipeline.runs.batch import Interrupted, run_batch
from wsi_pipeline.runs.copied_job import lend_copies
from wsi_pipeline.runs.cutting import read_cutting, read_masks, scale_by_table
from wsi_pipeline.runs.disk_space import DiskSpace
from wsi_pipeline.runs.events import log_events
from wsi_pipeline.runs.local_copies import LocalCopies
from wsi_pipeline.runs.workers import choose_workers, take_share
from wsi_pipeline.scheduling import WorkerPool, Workers, open_workers
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.colour_profile import warn_of_mixture
from wsi_pipeline.slides.fastslide_reader import warn_of_unseen_damage
from wsi_pipeline.slides.found_slide import FoundSlide, name_slides
from wsi_pipeline.stages.ingest import IngestJob
from wsi_pipeline.stages.ingest_layouts import (
    LayoutOptions,
    LeftOut,
    check_regex,
    find_patches,
    find_patient,
)
from wsi_pipeline.stages.measure_tiling import count_kept, list_tuned, measure_tiling
from wsi_pipeline.stages.relabel import warn_missing_classes
from wsi_pipeline.stages.tile import TileJob, plan_patches
from wsi_pipeline.stages.tile_config import TileConfig
from wsi_pipeline.store.codecs import PixelCodec
from wsi_pipeline.store.files import make_folder, remove_dead_asides
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.store.zarr_io import read_attributes

logger = logging.getLogger(__name__)

MPP_OF_40X = 0.25
UM_PER_PX_AT_1X = 10.0
"""Scanners call 0.25 µm/px 40x, 0.5 µm/px 20x and 1 µm/px 10x."""
DEFAULT_QUALITY = 90
NO_LABELS = "none"
LOOKED_AT = 50
"""Stores that are looked at for labels, to name the next command."""


def read_tiling(options: TileOptions) -> TileConfig:
    """Return how slides are cut. Raises ConfigError."""
    mpp = MPP_OF_40X if options.mpp is None else options.mpp
    if options.magnification is not None:
        mpp = UM_PER_PX_AT_1X / options.magnification
    side_px = options.patch_size
    spec = PatchSpec(side_px, options.stride or side_px, mpp, options.icc)
    return read_cutting(options, spec, read_rules(options))


def read_pixel_codec(options: TileOptions) -> PixelCodec:
    """Return how pixels are stored."""
    quality = (options.quality or DEFAULT_QUALITY) if options.codec == "jpeg" else None
    return PixelCodec(options.codec, quality)


def tile_slides(
    slides: Sequence[FoundSlide],
    out: Path,
    options: TileOptions | None = None,
    listener: Listener | None = None,
    open_pool: Callable[[Workers], AbstractContextManager[WorkerPool]] = open_workers,
    earlier: RunAccount | None = None,
) -> RunAccount:
    """Cut every slide into a patch store in `out`; the last two arguments as in `infer_slides`."""
    options, listener = options or TileOptions(), listener or Listener()
    tiling, codec = read_tiling(options), read_pixel_codec(options)
    masks = read_masks(options)
    slides = label_slides(slides, options.labels, options.patient_regex, masks)
    slides, suffix = take_share(scale_by_table(slides, options), options.shard)
    workers = choose_workers(options, tiled=max(len(slides), 1))
    copies = LocalCopies.choose(options, workers, slides)
    make_folder(out)
    jobs = [TileJob(slide, out.absolute(), tiling, options.force, codec, masks) for slide in slides]
    parameters = {"tiling": asdict(tiling), "codec": codec.to_json(), "force": options.force}
    with log_events(out, "tile", len(jobs), parameters, suffix) as events:
        space, keeps = DiskSpace(options.min_free), earlier is not None
        with open_pool(workers) as pool, lend_copies(jobs, copies) as lent:
            batch = run_batch(lent, pool, listener, events, space, keeps_account=keeps)
        account = batch.account.after(earlier)
        write_failures_csv(out, account.outcomes, suffix=suffix)
        remove_dead_asides(out)
        made = _list_made(jobs, batch.account)
        warn_of_mixture([slide.colour_profile for slide in made], tiling.spec.icc)
        warn_of_unseen_damage(slide.reader_note for slide in made)
        if batch.is_interrupted:
            raise Interrupted(account)
        events.run_ended(account, batch.pace.patches_done, batch.seconds)
    warn_missing_classes(job.target for job in jobs if job.slide.label_file)
    return account


@dataclass(frozen=True, slots=True)
class TilingPages:
    """The folder for pages of a dry run, and the words of their command lines."""

    out: Path
    words: Callable[[FoundSlide], Sequence[str]]


def preview_tiling(
    slides: Sequence[FoundSlide],
    options: TileOptions | None = None,
    pages: TilingPages | None = None,
) -> RunAccount:
    """Return how many patches each slide would give, as outcomes; write nothing but `pages`."""
    options = options or TileOptions()
    masks = read_masks(options)
    slides, _ = take_share(scale_by_table(slides, options), options.shard)
    if pages is not None:
        make_folder(pages.out)
    look = partial(_preview_slide, options=options, masks=masks, pages=pages)
    with limited_memory(), ThreadPoolExecutor(available_cores(), "look") as pool:
        return RunAccount(tuple(pool.map(look, slides)))


def _preview_slide(
    slide: FoundSlide, options: TileOptions, masks: Sequence[Path], pages: TilingPages | None
) -> SlideOutcome:
    """Return what a slide would give; its faults are its own."""
    config, path = read_tiling(options), str(slide.path)
    mask = match_mask(slide.path.stem, masks) if masks else None
    scale = config.scale_of(slide)
    opened = (slide.path, slide.slide_id, scale, config.reader, config.spec.icc)
    try:
        with closing(open_slide(*opened)) as reader:
            if pages is None:
                table, _ = plan_patches(reader, config, mask_file=mask)
                patches, where = table.patches, ""
            else:
                measures = measure_tiling(reader, config, mask)
                given = {name: getattr(options, name) for name in list_tuned()}
                given |= {"tissue": config.tissue.detector, "drop": list(config.quality.drop)}
                defaults = {name: getattr(TileOptions(), name) for name in given}
                defaults |= {"tissue": LOCAL, "drop": []}
                command = TilingCommand(pages.words(slide), given, defaults)
                where = f"  →  {write_tiling_page(measures, command, pages.out)}"
                patches = count_kept(measures, config)
    except Exception as error:  # noqa: BLE001 - the batch boundary: a fault is the slide's own
        return describe_failure(slide.slide_id, path, error)
    state = SlideState.OK if patches else SlideState.ZERO
    return SlideOutcome(slide.slide_id, path, state, f"{patches:,} patches{where}", patches)


def _list_made(jobs: Sequence[TileJob], account: RunAccount) -> list[SlideInfo]:
    """Return each slide that has a store."""
    failed = {each.path for each in account.outcomes if each.state is SlideState.FAILED}
    ended = {each.path for each in account.outcomes} - failed
    targets = [job.target for job in jobs if str(job.slide.path) in ended]
    return [SlideInfo.from_json(read_attributes(target)["slide"]) for target in targets]


def find_classes(out: Path) -> set[int]:
    """Return the classes, 0 and 1, of which the stores in a folder have patches.

    Where the first of them have none, the others are not looked at.
    """
    found: set[int] = set()
    for number, path in enumerate(sorted(out.glob(f"*{STORE_SUFFIX}"))):
        if len(found) == 2 or (number >= LOOKED_AT and not found):
            break
        with suppress(StoreError, EnvironmentFault):  # said with its slide
            labels = PatchStore(path).labels
            found |= {*np.unique(labels[labels >= 0]).tolist()}
    return found


def label_slides(
    slides: Sequence[FoundSlide],
    labels: Sequence[Path | str] = (),
    patient_regex: str | None = None,
    masks: Sequence[Path] = (),
) -> list[FoundSlide]:
    """Return the slides with their label files, and with the patients that their names tell.

    Without `labels`, a slide that has no label file takes the one beside it, if there is one; an
    image called `*_mask` may be of tissue and is taken only where `labels` ask for it. `masks` are
    of tissue.
    """
    named = [str(place) for place in labels]
    if not named and not all(slide.label_file for slide in slides):
        files = _match([slide.path for slide in slides], None, masks, is_mask_taken=False)
        slides = [
            slide if slide.label_file else replace(slide, label_file=file)
            for slide, file in zip(slides, files, strict=True)
        ]
    elif named and named != [NO_LABELS]:
        beside = named == [AUTO]
        places = None if beside else [Path(place) for place in labels]
        slides = add_labels(slides, places, masks)
    if patient_regex is None:
        return list(slides)
    check_regex(patient_regex)
    return [
        replace(slide, patient_id=find_patient(patient_regex, slide.path.name)) for slide in slides
    ]


@dataclass(frozen=True, slots=True)
class IngestAccount:
    """The account of ingesting a folder of patches."""

    run: RunAccount
    left_out: tuple[LeftOut, ...]

    @property
    def patches(self) -> int:
        """Patches in the stores."""
        return sum(outcome.patches for outcome in self.run.outcomes)


def ingest_patches(
    place: Path, out: Path, options: IngestOptions, listener: Listener | None = None
) -> IngestAccount:
    """Write every patient's patches into a store in `out`, and list the files left out."""
    spec = PatchSpec(options.patch_size, options.patch_size, options.mpp)
    listener = listener or Listener()
    listener.working_on(f"listing the files of {place.name}")
    terms = LayoutOptions(options.patient_regex, options.class_names)
    found = find_patches(place.absolute(), options.layout, terms)
    make_folder(out)
    out = out.absolute()
    patients = [patient.patient_id.replace("/", "_") for patient in found.patients]
    names = name_slides([Path(f"{patient}.patches") for patient in patients])
    jobs = [
        IngestJob(patient, name, out, spec, options.force)
        for name, patient in zip(names, found.patients, strict=True)
    ]
    count, space = options.workers, DiskSpace(options.min_free)
    workers = count if isinstance(count, Workers) else Workers(count=count)
    batch = run_batch(jobs, workers, listener, None, space, noun="patient")
    made = [
        job.target
        for job, outcome in zip(jobs, batch.account.outcomes, strict=True)
        if outcome.state is not SlideState.FAILED
    ]
    left_out = found.left_out + [
        LeftOut(*entry) for store in made for entry in read_attributes(store)["left_out"]
    ]
    write_csv(out / LEFT_OUT_CSV, ["file", "reason"], left_out)
    write_failures_csv(out, batch.account.outcomes)
    remove_dead_asides(out)
    return IngestAccount(batch.account, tuple(left_out))


def add_labels(
    slides: Sequence[FoundSlide], labels: Sequence[Path] | None, masks: Sequence[Path] = ()
) -> list[FoundSlide]:
    """Return the slides with their label files, matched by name; None takes those beside a slide.

    Raises LabelError where one file could belong to several slides.
    """
    found = _match([slide.path for slide in slides], labels, masks)
    pairs = list(zip(slides, found, strict=True))
    for path, count in Counter(found).items():
        if path is not None and count > 1:
            names = ", ".join(str(slide.path) for slide, file in pairs if file == path)
            raise LabelError(
                f"{path}: could be the labels of {count} slides ({names}); say which in a sample"
                " sheet, with --sheet"
            )
    without = [slide.slide_id for slide, file in pairs if file is None]
    if without:
        shown = ", ".join(without[:5])
        logger.warning("no label file for %d of %d slides: %s", len(without), len(slides), shown)
    return [replace(slide, label_file=file) for slide, file in pairs]


def _match(
    slides: Sequence[Path],
    labels: Sequence[Path] | None,
    masks: Sequence[Path],
    is_mask_taken: bool = True,
) -> tuple[Path | None, ...]:
    """Return the label file of each slide, and say what was taken by the beginning of a name."""
    if labels is None:
        matches = match_beside(slides, masks, is_mask_taken)
    else:
        others = {path.absolute() for path in (*slides, *masks)}
        files = [path for path in list_label_files(labels) if path.absolute() not in others]
        stems, suffixes = [path.stem for path in slides], [path.suffix for path in slides]
        matches = match_labels(stems, files, suffixes)
    for note in matches.notes:
        logger.warning(note)
    return matches.files
