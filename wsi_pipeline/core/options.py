"""Options of the commands and of the Python API: each is declared here once, with its help.

A field is an option of the same name (`patch_size` is `--patch-size`), its annotation the type and
its help the documentation. Options of training are in `training_options`, those of pseudonyms in
`pseudonym_options`, of the server in `serve_options`.
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import (
    AUTO,
    CLUSTERS,
    CODECS,
    COLORMAPS,
    COLOURS,
    DEVICES,
    ENGINE_NAMES,
    LAYOUT_NAMES,
    ON_REQUEST,
    ORIGINS,
    OUTPUT_GROUPS,
    OUTSIDE,
    PRECISIONS,
    PRIORITIES,
    QUALITY_FLAGS,
    RAW,
    READER_NAMES,
    TISSUE_DETECTORS,
)
from wsi_pipeline.core.errors import ConfigError

INPUT, SCALE, TISSUE, LABELS = "Input", "Scale", "Tissue", "Labels"
TRAINING, NETWORK, AUGMENTATION = "Training", "Network", "Augmentation"
COMPUTE, OUTPUT, OPERATION = "Compute", "Output", "Operation"
PANELS = (
    *(None, INPUT, SCALE, TISSUE, LABELS, TRAINING, NETWORK, AUGMENTATION),
    *(COMPUTE, OUTPUT, OPERATION),
)
"""Panels of the help, in their order."""

DEFAULT_MIN_FREE = 1_000_000_000
"""Bytes."""
CLASSES = "NEGATIVE POSITIVE"
PNG = OUTPUT_GROUPS["png"]
FORMATS_HELP = (
    f"Formats, with commas: png ({', '.join(PNG)}),"
    f" {', '.join(name for name in OUTPUT_GROUPS['all'] if name not in PNG)}; all: all of these."
    f" Only where named: {', '.join(f'{name} ({note})' for name, note in ON_REQUEST.items())}."
)


def option(default: Any, panel: str | None, text: str, **facts: Any) -> Any:
    """Return the field of an option with its help; it must be given where `default` is MISSING.

    `facts` are `metavar`, `choices`, `low` and `high` (of a number), `flag` (another name than the
    field's), `flags` (further names), `path` (a key of the commands' table of paths), `typed` (the
    default as it is typed) and `parse` (a key of their table of parsers).
    """
    return field(default=default, metadata={"panel": panel, "help": text, **facts})


# An option takes two or three lines, not one for each of its facts.
# fmt: off


@dataclass(frozen=True, kw_only=True)
class ForceOptions:
    """Options of commands that write."""

    force: bool = option(False, OPERATION, "Overwrite existing results.")


@dataclass(frozen=True, kw_only=True)
class SheetOptions:
    """A sample sheet."""

    sheet: Path | None = option(None, INPUT,
        "Sample sheet: a slide per line with the columns wsi, mpp, patient_id, labels, mask, split,"
        " label; any further column is kept with the slide.", metavar="CSV", path="file")


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Options of the device that networks run on."""

    device: str = option(
        AUTO, COMPUTE, "Where networks run; auto: a GPU where there is one.", choices=DEVICES)


@dataclass(frozen=True, kw_only=True)
class ExternalModelOptions:
    """Terms for a model that runs code of its maker."""

    trust_model: str | None = option(None, INPUT,
        "Trust an external model whose torchscript_model.pt (TorchScript is code) has this digest,"
        " or a network of your own whose file has it.", metavar="sha256:…")
    arch: str | None = option(None, INPUT,
        "The file and function that a network of your own was trained with, once more.",
        metavar="FILE.py:FUNCTION")
    positive_class: str | None = option(None, INPUT,
        "Positive class of an external model. [default: the last of two]",
        metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class SlideScaleOptions:
    """The scale of slides whose files do not say it, or say it wrong."""

    slide_mpp: float | None = option(
        None, SCALE, "µm per pixel of the slides themselves; overrules what the files say.",
        metavar="UM_PER_PX")


@dataclass(frozen=True, kw_only=True)
class TissueOptions:
    """Options of finding tissue, and of faults of patches."""

    min_tissue: float = option(
        0.5, TISSUE, "Keep a patch if at least this fraction of it is tissue (0: keep all).",
        low=0, high=1)
    tissue: str | None = option(None, TISSUE,
        "How tissue is found: by density over the slide's own glass, in each place (local), or by"
        " one threshold of saturation (otsu). [default: local, and what otsu made is taken]",
        choices=TISSUE_DETECTORS)
    mask: Path | None = option(None, TISSUE,
        "Where to look, per slide: images (above 0 is tissue) or regions of any label format, named"
        " like the slides. What lies outside is not assessed.", metavar="DIR")
    mask_mpp: float = option(
        8.0, TISSUE, "Scale at which tissue is looked for.", metavar="UM_PER_PX")
    min_object: float = option(
        20_000.0, TISSUE, "Smaller pieces of tissue are dust, in µm².", metavar="UM2")
    max_hole: float = option(
        20_000.0, TISSUE, "Smaller holes belong to the tissue, in µm².", metavar="UM2")
    closing: float = option(48.0, TISSUE,
        "Gaps in tissue up to about twice this wide are closed, as in fat.", metavar="UM")
    min_width: float = option(32.0, TISSUE,
        "Without colour, what is narrower than twice this is a hair or a line; local only.",
        metavar="UM")
    min_density: float = option(0.12, TISSUE,
        "Optical density from which on anything is tissue; paler, it needs a colour or a texture;"
        " local only.", metavar="OD")
    max_pen: float = option(
        0.1, TISSUE, "Flag a patch if more than this fraction of it is pen ink.", low=0, high=1)
    max_fold: float = option(0.1, TISSUE,
        "Flag a patch if more than this fraction of it is folded; local only.", low=0, high=1)
    max_bubble: float = option(0.5, TISSUE,
        "Flag a patch if more than this fraction of it lies in a bubble; local only.",
        low=0, high=1)
    min_sharpness: float | None = option(None, TISSUE,
        "Flag patches below this variance of the Laplacian (brightness 0 to 255, at 1 µm/px) as"
        " blurred. [default: not measured]", metavar="VARIANCE")
    drop: Sequence[str] = option(
        (), TISSUE, "Leave out patches with this flag. May be repeated.",
        choices=tuple(QUALITY_FLAGS))


@dataclass(frozen=True, kw_only=True)
class CutOptions(SlideScaleOptions, TissueOptions):
    """Options of where and how slides are cut, for storing and for inference."""

    allow_upsample: bool = option(
        False, SCALE, "Cut finer than the scan, which adds pixels but no detail.")
    mpp_csv: Path | None = option(None, SCALE,
        "µm per pixel of single slides, columns wsi and mpp; overrules the files and --slide-mpp.",
        metavar="CSV", path="file")
    reader: str = option(AUTO, SCALE,
        "Reader of slides: tiff decodes the tiles of TIFF and SVS itself, several times as fast"
        " and with the same pixels; auto: the fastest that knows the file.",
        choices=(AUTO, *READER_NAMES))


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Options of making labels from drawn regions and label images."""

    label_map: Path | None = option(
        None, LABELS, "What drawn classes mean; see docs/guides/labels.md.", metavar="YAML")
    map_classes: Sequence[str] = option((), LABELS,
        "Meaning of one drawn class or value: a class, ignore or hole. May be repeated.",
        flag="--map", metavar="DRAWN=MEANING")
    min_label_area: float = option(
        0.5, LABELS, "A patch has a class if at least this share of its area has it, above 0 to 1.")
    outside: str | None = option(
        None, LABELS, "Class of tissue over which nothing is drawn. [default: unknown]",
        choices=OUTSIDE)
    priority: str | None = option(
        None, LABELS, "Which class wins where both are drawn. [default: positive]",
        choices=PRIORITIES)
    label_origin: str = option(AUTO, LABELS,
        "Where coordinates count from: the slide's corner or the scanned area's; auto: as the"
        " format has it.", choices=ORIGINS)
    strict: bool = option(
        False, LABELS, "Refuse invalid polygons instead of mending and counting them.")
    class_names: tuple[str, str] | None = option(
        None, LABELS, "What the two classes are called. [default: negative positive]",
        metavar=CLASSES)
    positive_value: int = option(
        200, LABELS, "Pixel value of the positive class in label images.", low=0, high=255)
    negative_value: int = option(
        100, LABELS, "Pixel value of the negative class in label images.", low=0, high=255)


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The processes that run blocks."""

    workers: int | Any | None = option(None, COMPUTE,
        "Worker processes; 0: a plain loop in this process. [default: one per GPU, or one; to tile"
        " one per core, 16 at most]", low=0, metavar="N", flags=("--num-workers", "-n"))
    """From Python also `Workers`."""
    gpus: str | None = option(
        None, COMPUTE, "GPUs to use, such as 0,2, by their numbers or UUIDs. [default: all]",
        metavar="LIST")
    scheduler: str | None = option(None, COMPUTE,
        "Use a running Dask scheduler, such as tls://host:8786, or the file that `dask scheduler"
        " --scheduler-file` wrote.", metavar="ADDRESS|FILE")
    tls_ca_file: Path | None = option(
        None, COMPUTE, "Certificate authority of a scheduler at tls://.", metavar="PEM")
    tls_cert: Path | None = option(
        None, COMPUTE, "Our certificate for a scheduler at tls://.", metavar="PEM")
    tls_key: Path | None = option(None, COMPUTE, "The key of that certificate.", metavar="PEM")
    cluster: str = option("local", COMPUTE,
        "Which worker processes are started: on this machine, as Slurm jobs, or by dask-cuda.",
        choices=CLUSTERS)
    slurm_config: Path | None = option(
        None, COMPUTE, "What a Slurm job asks for; see docs/guides/servers.md.", metavar="YAML")
    dashboard: bool = option(False, COMPUTE, "Show Dask's dashboard at 127.0.0.1:8787.")

    def __post_init__(self) -> None:
        tls = (self.tls_ca_file, self.tls_cert, self.tls_key)
        if any(tls) and not all(tls):
            raise ConfigError("--tls-ca-file, --tls-cert and --tls-key belong together")


@dataclass(frozen=True, kw_only=True)
class SpaceOptions:
    """Options of the disk space to keep free."""

    min_free: int = option(DEFAULT_MIN_FREE, OPERATION,
        "Bytes to keep free on the disk: no slide or block starts if less would be left.",
        metavar="SIZE", parse="bytes", typed="1GB")


@dataclass(frozen=True, kw_only=True)
class RunOptions(WorkerOptions, ForceOptions, SpaceOptions):
    """Options of runs over many slides."""

    shard: str | None = option(
        None, OPERATION, "Take only every N-th slide, from the I-th on: one share of an array job.",
        metavar="I/N")
    stage: Path | None = option(None, OPERATION,
        "A folder on a local disk, for slides on a slow share: the next slide is copied there while"
        " the present one runs, and the copy deleted afterwards.", metavar="DIR", path="made")


@dataclass(frozen=True, kw_only=True)
class TileOptions(CutOptions, LabelOptions, RunOptions):
    """Options of `wsi tile`."""

    mpp: float | None = option(
        None, SCALE, "µm per patch pixel; 0.25 is what scanners call 40x. [default: 0.25]",
        metavar="UM_PER_PX")
    magnification: float | None = option(
        None, SCALE, "The same as --mpp, by the scanner's word: 40 is 0.25 µm/px, 20 is 0.5.",
        metavar="X")
    patch_size: int = option(50, SCALE, "Side of a patch in pixels.", low=1, metavar="PX")
    stride: int | None = option(
        None, SCALE, "Distance between patches in pixels. [default: the patch size]",
        low=1, metavar="PX")
    labels: Sequence[str | Path] = option((), LABELS,
        "What is known of the slides: files of QuPath and other programs, label images, or folders"
        " of them, matched by name; see docs/guides/labels.md; none: no labels. [default: the label"
        " file beside each slide, where there is one; auto says which slides have none]",
        metavar="auto|none|FILE|DIR")
    patient_regex: str | None = option(None, INPUT,
        "Where the patient stands in a slide's file name; the part in parentheses. [default: every"
        " slide is a patient of its own]", metavar="REGEX")
    icc: str = option(RAW, SCALE,
        "Colours: raw, as they stand in the file, or srgb, by the slide's own colour profile (ICC,"
        " perceptual); slides without a profile stay as they are.", choices=COLOURS)
    codec: str = option("none", OUTPUT, "How pixels are stored; jpeg is lossy.", choices=CODECS)
    quality: int | None = option(None, OUTPUT, "Of --codec jpeg. [default: 90]", low=1, high=100)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.magnification is not None and self.mpp is not None:
            raise ConfigError("--mpp and --magnification say the same; give one of them")
        if self.magnification is not None and not self.magnification > 0:
            raise ConfigError(
                f"a magnification of {self.magnification:g} cannot be; 40 means 0.25 µm/px"
            )
        if self.quality is not None and self.codec != "jpeg":
            raise ConfigError("--quality belongs to --codec jpeg")


@dataclass(frozen=True, kw_only=True)
class IngestOptions(ForceOptions, SpaceOptions):
    """Options of `wsi ingest`."""

    mpp: float = option(MISSING, SCALE,
        "µm per pixel of the patches. Image files do not say; the public IDC set is at 4, because"
        " its patches were cut from 40x scans reduced 16 times (16 × 0.25).", metavar="UM_PER_PX")
    layout: str = option("idc", INPUT, "How the data set lies on disk.", choices=LAYOUT_NAMES)
    patient_regex: str | None = option(None, INPUT,
        "Layout folders: where the patient stands in a file's path; the part in parentheses.",
        metavar="REGEX")
    class_names: tuple[str, str] | None = option(
        None, LABELS, "What the classes are called; for folders, the folders' names.",
        metavar=CLASSES)
    patch_size: int = option(50, SCALE, "Side of a patch in pixels.", low=1, metavar="PX")
    workers: int | Any = option(
        0, COMPUTE, "Worker processes; 0: a plain loop in this one.", low=0, metavar="N")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Options of the outputs and their look."""

    outputs: str = option("all", OUTPUT, FORMATS_HELP, metavar="NAMES")
    colormap: str = option(
        COLORMAPS[0], OUTPUT, "Colours of heatmap and overlay.", choices=COLORMAPS)
    alpha: float = option(
        0.6, OUTPUT, "Opacity of the map in overlay.png where the probability is 1, 0 to 1.",
        low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class InferOptions(ExternalModelOptions, OutputOptions, CutOptions, DeviceOptions, RunOptions):
    """Options of `wsi infer`."""

    sample: int | None = option(None, INPUT,
        "Estimate the share of positive patches by so many of each slide, drawn in squares over"
        " its tissue, with an interval; the same line without it goes on to the whole slide.",
        low=1, metavar="N")
    seed: int = option(0, INPUT, "Random seed of --sample.", low=0, high=2**31 - 1, metavar="N")
    keep_patches: Path | None = option(
        None, OUTPUT, "Also write the slides' patch stores there, or read them where they are.",
        metavar="DIR", path="made")
    engine: str = option(AUTO, COMPUTE,
        "What computes the network; auto: openvino on a CPU where it is installed (the extra"
        " called cpu), else torch. Results of different engines are never mixed.",
        choices=(AUTO, *ENGINE_NAMES))
    compile: bool = option(False, COMPUTE, "The same as --engine torch-compile.")
    precision: str = option(AUTO, COMPUTE,
        "Numbers that it is computed in; auto: bf16 or fp16 where the device has units for it,"
        " else fp32.", choices=(AUTO, *PRECISIONS))
    batch_size: int | None = option(None, COMPUTE,
        "Patches that the network takes at once; auto: a small number on a CPU, on a GPU what it"
        " computes fastest and has memory for.", metavar="N|auto", parse="batch size", typed=AUTO)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compile and self.engine not in (AUTO, "torch-compile"):
            raise ConfigError(
                f"--compile is --engine torch-compile, and --engine {self.engine} is another; give"
                " one of them"
            )
        if self.sample is not None and self.keep_patches is not None:
            raise ConfigError(
                "--sample reads a part of the slides, and --keep-patches stores all; give one of"
                " them"
            )


@dataclass(frozen=True, kw_only=True)
class AggregateOptions(OutputOptions, ForceOptions):
    """Options of `wsi aggregate`."""

    threshold: float | str = option("count", None,
        "Probability from which on a patch is positive: the model's own for counting (count) or for"
        " finding (detect), or a number.", flags=("-t",), metavar="count|detect|NUMBER",
        parse="threshold")
    context: float | None = option(None, None,
        "Average each patch's logit with its neighbours', by a Gaussian of this standard deviation"
        " in µm; none: each patch alone. [default: the model's own]",
        metavar="UM|none", parse="context", flags=("--smooth",))
    prevalence: float | None = option(None, None,
        "Share of positive patches that is known of this cohort; shifts logits by the difference in"
        " log-odds to the model's validation patients.", metavar="SHARE")
    min_region_mm2: float = option(
        0.0, None, "Positive areas smaller than this do not count.", low=0, metavar="MM2")
