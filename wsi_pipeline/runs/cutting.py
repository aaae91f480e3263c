"""The cutting of a run's slides, by the options that tiling and inference share."""

from collections.abc import Sequence
from pathlib import Path

from wsi_pipeline.core.choices import LOCAL
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.options import CutOptions
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.labels.tissue_mask import list_masks
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.slides.quality import QualityParameters
from wsi_pipeline.slides.sheet import scale_slides
from wsi_pipeline.slides.tissue import TissueParameters
from wsi_pipeline.stages.tile_config import TileConfig


def read_cutting(options: CutOptions, spec: PatchSpec, rules: LabelRules) -> TileConfig:
    """Return how slides are cut into patches of a size and scale. Raises ConfigError."""
    return TileConfig(
        spec=spec,
        tissue=TissueParameters(
            detector=options.tissue or LOCAL,
            min_width_um=options.min_width,
            sure_density=options.min_density,
            closing_radius_um=options.closing,
            mask_mpp=options.mask_mpp,
            min_object_um2=options.min_object,
            max_hole_um2=options.max_hole,
            min_tissue=options.min_tissue,
        ),
        slide_mpp=options.slide_mpp,
        allow_upsample=options.allow_upsample,
        rules=rules,
        quality=QualityParameters(
            max_pen=options.max_pen,
            max_fold=options.max_fold,
            max_bubble=options.max_bubble,
            min_sharpness=options.min_sharpness,
            drop=tuple(sorted({*options.drop})),
        ),
        reader=options.reader,
        takes_otsu=options.tissue is None,
    )


def read_masks(options: CutOptions) -> tuple[Path, ...]:
    """Return the masks that are given. Raises LabelError where a place holds none."""
    return tuple(path.absolute() for path in list_masks(options.mask)) if options.mask else ()


def scale_by_table(slides: Sequence[FoundSlide], options: CutOptions) -> Sequence[FoundSlide]:
    """Return the slides with the scales of --mpp-csv. Raises ConfigError."""
    return scale_slides(slides, options.mpp_csv) if options.mpp_csv else slides
