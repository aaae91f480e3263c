"""Runs over many slides, or patients, that end in patch stores. Nothing here needs torch, and none of it is loaded."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from wsi_pipeline.core.choices import LEFT_OUT_CSV
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.outcome import RunAccount, SlideState
from wsi_pipeline.labels.user_mask import list_masks
from wsi_pipeline.outputs.run_tables import write_csv, write_failures_csv
from wsi_pipeline.runs.batch import Progress, SilentProgress, make_absolute, run_batch
from wsi_pipeline.runs.disk_space import DiskSpace
from wsi_pipeline.runs.events import log_events
from wsi_pipeline.runs.workers import choose_tilers
from wsi_pipeline.scheduling import Workers
from wsi_pipeline.slides.discovery import FoundSlide, name_slides
from wsi_pipeline.slides.selection import Shard, scale_slides, select_slides
from wsi_pipeline.stages.ingest_layouts import (
    LayoutOptions,
    LeftOut,
    check_regex,
    find_patches,
    find_patient,
)
from wsi_pipeline.stages.patch_plan import TileConfig
from wsi_pipeline.stages.tile import IngestJob, TileJob, add_labels
from wsi_pipeline.store.codecs import PixelCodec
from wsi_pipeline.store.files import make_folder, remove_dead_asides
from wsi_pipeline.store.zarr_io import AS_THEY_ARE, read_attributes


@dataclass(frozen=True, slots=True)
class TileOptions:
    """Which slides are tiled and how their stores are written, apart from how a slide is cut."""

    recursive: bool = False
    """Go into folders within folders."""
    mpp_csv: Path | None = None
    """Table of slides' µm per pixel, which overrules the files."""
    masks: Path | None = None
    """Folder of masks (or one mask) that say where the tissue is."""
    codec: PixelCodec = AS_THEY_ARE
    shard: Shard | None = None
    """The share of the slides that this run takes."""
    disk_space: DiskSpace = field(default_factory=DiskSpace)
    """What is to stay free on the disk."""


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

    `labels` are label files or folders of them, matched to slides by name; None takes the label
    file that lies beside each slide.
    `patient_regex` says where the patient stands in a slide's file name; without it every slide
    counts as a patient of its own.
    """
    options = options or TileOptions()
    slides = list_labelled(places, labels, patient_regex, options.recursive)
    return tile_found(
        slides, out, config, options=options, workers=workers, force=force, progress=progress
    )


def list_labelled(
    places: Sequence[Path | str],
    labels: Sequence[Path] | None = (),
    patient_regex: str | None = None,
    recursive: bool = False,
) -> list[FoundSlide]:
    """Return the slides among `places`, with their label files and patients as `tile_slides`."""
    slides = select_slides(places, recursive)
    if labels is None or labels:
        slides = add_labels(slides, labels)
    if patient_regex is None:
        return slides
    check_regex(patient_regex)
    return [
        replace(slide, patient_id=find_patient(patient_regex, slide.path.name)) for slide in slides
    ]


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
    masks = (
        ()
        if options.masks is None
        else tuple(path.absolute() for path in list_masks(options.masks))
    )
    make_folder(out)
    jobs = [TileJob(slide, out.absolute(), config, force, options.codec, masks) for slide in slides]
    suffix = "" if options.shard is None else options.shard.suffix
    parameters = {"tiling": asdict(config), "codec": options.codec.to_json(), "force": force}
    with log_events(out, "tile", len(slides), parameters, suffix) as events:
        batch = run_batch(
            slides,
            jobs,
            workers or choose_tilers(),
            progress or SilentProgress(),
            events,
            options.disk_space,
        )
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
    disk_space: DiskSpace | None = None,
) -> IngestAccount:
    """Take the patches of every patient of a data set into stores in `out`, and list what was left out, with the reason."""
    found = find_patches(place.absolute(), layout, options or LayoutOptions())
    make_folder(out)
    out = out.absolute()
    names = name_slides(
        [Path(f"{patient.patient_id.replace('/', '_')}.patches") for patient in found.patients]
    )
    jobs = [
        IngestJob(patient, name, out, spec, force)
        for name, patient in zip(names, found.patients, strict=True)
    ]
    slides = [FoundSlide(job.store_name, Path(job.source)) for job in jobs]
    batch = run_batch(
        slides,
        jobs,
        workers or Workers(count=0),
        progress or SilentProgress(),
        disk_space=disk_space,
    )
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
