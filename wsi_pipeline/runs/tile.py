"""Runs over many slides, or patients, that end in patch stores; without torch."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from wsi_pipeline.core.choices import AUTO, LEFT_OUT_CSV
from wsi_pipeline.core.errors import ConfigError, LabelError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.outcome import RunAccount, SlideState
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.labels.discovery import find_beside, list_label_files, match_labels
from wsi_pipeline.labels.mask import list_masks
from wsi_pipeline.labels.rules import LabelOptions
from wsi_pipeline.outputs.run_files import write_csv, write_failures_csv
from wsi_pipeline.runs.batch import run_batch
from wsi_pipeline.runs.disk_space import DEFAULT_MIN_FREE, DiskSpace
from wsi_pipeline.runs.events import log_events
from wsi_pipeline.runs.workers import RunOptions
from wsi_pipeline.scheduling import Workers
from wsi_pipeline.slides.quality import QualityParameters
from wsi_pipeline.slides.selection import FoundSlide, name_slides, scale_slides
from wsi_pipeline.slides.tissue import TissueParameters
from wsi_pipeline.stages.ingest import IngestJob
from wsi_pipeline.stages.ingest_layouts import (
    LayoutOptions,
    LeftOut,
    check_regex,
    find_patches,
    find_patient,
)
from wsi_pipeline.stages.tile import TileConfig, TileJob
from wsi_pipeline.store.codecs import PixelCodec
from wsi_pipeline.store.files import make_folder, remove_dead_asides
from wsi_pipeline.store.zarr_io import read_attributes

logger = logging.getLogger(__name__)

MPP_OF_40X = 0.25
UM_PER_PX_AT_1X = 10.0
"""Scanners call 0.25 µm/px 40x, 0.5 µm/px 20x and 1 µm/px 10x."""
DEFAULT_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class TileOptions(LabelOptions, RunOptions):
    """Options of `wsi tile`, named like the command's."""

    mpp: float | None = None
    """µm per patch pixel; None: that of `magnification`, or 0.25."""
    magnification: float | None = None
    patch_size: int = 50
    stride: int | None = None
    """None: the patch size."""
    min_tissue: float = 0.5
    mask_mpp: float = 8.0
    min_object: float = 20_000.0
    max_hole: float = 20_000.0
    mask: Path | None = None
    max_pen: float = 0.1
    min_sharpness: float | None = None
    drop: Sequence[str] = ()
    slide_mpp: float | None = None
    mpp_csv: Path | None = None
    allow_upsample: bool = False
    reader: str = AUTO
    codec: str = "none"
    quality: int | None = None
    labels: Sequence[Path | str] = ()
    """Label files or folders of them, matched by name; "auto": the file beside each slide."""
    patient_regex: str | None = None
    """Finds the patient in a slide's file name; None: every slide is a patient of its own."""

    def __post_init__(self) -> None:
        RunOptions.__post_init__(self)
        if self.magnification is not None and self.mpp is not None:
            raise ConfigError("--mpp and --magnification say the same; give one of them")
        if self.magnification is not None and not self.magnification > 0:
            raise ConfigError(
                f"a magnification of {self.magnification:g} cannot be; 40 means 0.25 µm/px"
            )
        if self.quality is not None and self.codec != "jpeg":
            raise ConfigError("--quality belongs to --codec jpeg")

    @property
    def tiling(self) -> TileConfig:
        """How a slide is cut. Raises ConfigError."""
        mpp = MPP_OF_40X if self.mpp is None else self.mpp
        if self.magnification is not None:
            mpp = UM_PER_PX_AT_1X / self.magnification
        return TileConfig(
            spec=PatchSpec(self.patch_size, self.stride or self.patch_size, mpp),
            tissue=TissueParameters(
                mask_mpp=self.mask_mpp,
                min_object_um2=self.min_object,
                max_hole_um2=self.max_hole,
                min_tissue=self.min_tissue,
            ),
            slide_mpp=self.slide_mpp,
            allow_upsample=self.allow_upsample,
            rules=self.label_rules(),
            quality=QualityParameters(
                self.max_pen, self.min_sharpness, tuple(sorted({*self.drop}))
            ),
            reader=self.reader,
        )

    @property
    def pixel_codec(self) -> PixelCodec:
        """How pixels are stored."""
        quality = (self.quality or DEFAULT_QUALITY) if self.codec == "jpeg" else None
        return PixelCodec(self.codec, quality)


def tile_slides(
    slides: Sequence[FoundSlide],
    out: Path,
    options: TileOptions | None = None,
    listener: Listener | None = None,
) -> RunAccount:
    """Cut every slide into a patch store in `out`."""
    options, listener = options or TileOptions(), listener or Listener()
    tiling, codec = options.tiling, options.pixel_codec
    workers = options.choose_workers(is_tiling=True)
    slides = label_slides(slides, options.labels, options.patient_regex)
    slides = scale_slides(slides, options.mpp_csv) if options.mpp_csv else slides
    slides = options.take_share(slides)
    masks = [path.absolute() for path in list_masks(options.mask)] if options.mask else []
    make_folder(out)
    jobs = [
        TileJob(slide, out.absolute(), tiling, options.force, codec, tuple(masks))
        for slide in slides
    ]
    parameters = {"tiling": asdict(tiling), "codec": codec.to_json(), "force": options.force}
    with log_events(out, "tile", len(slides), parameters, options.suffix) as events:
        batch = run_batch(slides, jobs, workers, listener, events, options.disk_space)
        write_failures_csv(out, batch.account.outcomes, suffix=options.suffix)
        remove_dead_asides(out)
        events.run_ended(batch.account, batch.pace.patches_done, batch.seconds)
    return batch.account


def label_slides(
    slides: Sequence[FoundSlide],
    labels: Sequence[Path | str] = (),
    patient_regex: str | None = None,
) -> list[FoundSlide]:
    """Return the slides with their label files, and with the patients that their names tell."""
    if labels:
        beside = [str(place) for place in labels] == [AUTO]
        slides = add_labels(slides, None if beside else [Path(place) for place in labels])
    if patient_regex is None:
        return list(slides)
    check_regex(patient_regex)
    return [
        replace(slide, patient_id=find_patient(patient_regex, slide.path.name)) for slide in slides
    ]


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """Options of `wsi ingest`, named like the command's."""

    mpp: float
    """µm per pixel of the patches."""
    layout: str = "idc"
    patient_regex: str | None = None
    class_names: tuple[str, str] | None = None
    patch_size: int = 50
    workers: int | Workers = 0
    min_free: int = DEFAULT_MIN_FREE
    force: bool = False


@dataclass(frozen=True, slots=True)
class IngestAccount:
    """How ingesting a folder of patches ended."""

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
    found = find_patches(
        place.absolute(),
        options.layout,
        LayoutOptions(options.patient_regex, options.class_names),
    )
    make_folder(out)
    out = out.absolute()
    names = name_slides(
        [Path(f"{patient.patient_id.replace('/', '_')}.patches") for patient in found.patients]
    )
    jobs = [
        IngestJob(patient, name, out, spec, options.force)
        for name, patient in zip(names, found.patients, strict=True)
    ]
    slides = [FoundSlide(job.store_name, job.patient.folder) for job in jobs]
    count = options.workers
    workers = count if isinstance(count, Workers) else Workers(count=count)
    batch = run_batch(
        slides, jobs, workers, listener, None, DiskSpace(options.min_free), noun="patient"
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


def add_labels(slides: Sequence[FoundSlide], labels: Sequence[Path] | None) -> list[FoundSlide]:
    """Return the slides with their label files, matched by name; None takes those beside a slide.

    Raises LabelError where one file could belong to several slides.
    """
    files = list_label_files(labels) if labels else []
    found = [
        find_beside(slide.path) if labels is None else match_labels(slide.path.stem, files)
        for slide in slides
    ]
    for path, count in Counter(found).items():
        if path is not None and count > 1:
            names = ", ".join(
                str(slide.path) for slide, file in zip(slides, found, strict=True) if file == path
            )
            raise LabelError(
                f"{path}: could be the labels of {count} slides ({names}); say which in a sample"
                " sheet, with --sheet"
            )
    without = [slide.slide_id for slide, file in zip(slides, found, strict=True) if file is None]
    if without and (labels is None or labels):
        shown = ", ".join(without[:5])
        logger.warning("no label file for %d of %d slides: %s", len(without), len(slides), shown)
    return [replace(slide, label_file=file) for slide, file in zip(slides, found, strict=True)]
