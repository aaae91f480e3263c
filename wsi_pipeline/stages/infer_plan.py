"""From slides and a model to the jobs that infer them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.models.model import Model
from wsi_pipeline.outputs.style import View
from wsi_pipeline.slides.discovery import FoundSlide, name_slides
from wsi_pipeline.stages.infer import InferJob
from wsi_pipeline.stages.infer_and_keep import KeepJob
from wsi_pipeline.stages.model_choice import ModelChoice
from wsi_pipeline.stages.patch_plan import TileConfig
from wsi_pipeline.stages.tile import TileJob
from wsi_pipeline.store.patches import SUFFIX, find_stores


def list_stores(places: Sequence[Path]) -> list[FoundSlide]:
    """The patch stores among `places`, by the names that their results will carry."""
    stores = find_stores(list(places))
    names = name_slides(
        [store.with_name(store.name.removesuffix(SUFFIX) + ".zarr") for store in stores]
    )
    return [FoundSlide(name, store) for name, store in zip(names, stores, strict=True)]


def tile_for(model: Model, tiling: TileConfig) -> TileConfig:
    """How slides are cut for a model."""
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
) -> list[InferJob | KeepJob]:
    """A job for every slide, or store; with `keep` one that leaves a store in that folder. Raises ConfigError."""
    jobs = [
        InferJob(slide, results.absolute(), choice, tiling, are_stores, force, view)
        for slide in slides
    ]
    if keep is None:
        return list(jobs)
    if are_stores:
        raise ConfigError(
            f"{keep}: patches are kept of slides, and these are patch stores already; leave"
            " --keep-patches out"
        )
    # As `wsi tile` does without labels: what a model calls its classes is not the store's business.
    plain, folder = replace(tiling, rules=LabelRules()), keep.absolute()
    return [
        KeepJob(job, TileJob(replace(job.slide, label_file=None), folder, plain)) for job in jobs
    ]
