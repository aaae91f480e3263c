"""The settings of cutting slides, and the recipe of what is made of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import LOCAL, OTSU, SRGB
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import MAX_MPP, MIN_MPP, PatchSpec
from wsi_pipeline.core.recipe import file_sha256
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.labels import label_recipe
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.slides.base import UserScale
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.slides.quality import QualityParameters
from wsi_pipeline.slides.tissue import TissueParameters
from wsi_pipeline.store.commit import Staging

DETECTOR = "detector"
SEEN_BY_LOCAL = {"fold", "bubble"}
"""Flags that no other detector looks for."""
MADE_BY_OTSU = f", made with --tissue {OTSU}; --force makes it anew"


@dataclass(frozen=True, slots=True)
class TileConfig:
    """Scale, tissue, labels and quality of the patches that a slide is cut into."""

    spec: PatchSpec = field(default_factory=PatchSpec)
    tissue: TissueParameters = field(default_factory=TissueParameters)
    slide_mpp: float | None = None
    """µm per level-0 pixel, instead of the scale in the slide files."""
    allow_upsample: bool = False
    """Cut finer than the scan, which adds pixels but no detail."""
    rules: LabelRules = field(default_factory=LabelRules)
    """Meaning of labels, and names of the two classes."""
    quality: QualityParameters = field(default_factory=QualityParameters)
    """Limits for pen and blur flags, and the flags that leave a patch out."""
    reader: str = "auto"
    """Reader of the slides; it changes no pixel."""
    takes_otsu: bool = False
    """True if what otsu chose is taken as it is: no detector was asked for."""

    def __post_init__(self) -> None:
        if self.slide_mpp is not None and not MIN_MPP <= self.slide_mpp <= MAX_MPP:
            limits = f"{MIN_MPP:g} and {MAX_MPP:g}"
            raise ConfigError(f"slide mpp is {self.slide_mpp} µm/px; it must lie between {limits}")
        unseen = SEEN_BY_LOCAL & {*self.quality.drop}
        if unseen and self.tissue.detector != LOCAL:
            what = f"--drop {min(unseen)} needs --tissue {LOCAL}"
            raise ConfigError(f"{what}: --tissue {self.tissue.detector} does not look for it")

    def scale_of(self, slide: FoundSlide) -> UserScale | None:
        """Return the scale that the user gave for a slide, or for all."""
        if slide.slide_mpp is not None:
            return UserScale(slide.slide_mpp, slide.mpp_source)
        return None if self.slide_mpp is None else UserScale(self.slide_mpp)

    @property
    def by_otsu(self) -> "TileConfig | None":
        """Return how otsu cuts the same slides, where that is taken, too.

        None where the detector was asked for, or something that only `local` looks at.
        """
        asked = (self.tissue.of_local, self.quality.of_local, {*self.quality.drop} & SEEN_BY_LOCAL)
        if not self.takes_otsu or asked != (
            TissueParameters().of_local,
            QualityParameters().of_local,
            set(),
        ):
            return None
        tissue = replace(self.tissue, detector=OTSU)
        return replace(self, tissue=tissue, takes_otsu=False)


def tile_recipe(
    slide: SlideInfo,
    config: TileConfig,
    label_file: Path | None = None,
    patient_id: str | None = None,
    mask_file: Path | None = None,
) -> dict[str, Any]:
    """Return everything that decides a slide's patches, their labels and their patient."""
    tissue, quality = config.tissue.to_json(), config.quality.to_json()
    if config.tissue.detector == OTSU:  # as it was recorded when there was no other
        del tissue[DETECTOR]
        quality = {name: quality[name] for name in quality.keys() - config.quality.of_local.keys()}
    # The fingerprint need not cover the bytes of the profile.
    colours = {"profile": slide.icc_digest} if config.spec.icc == SRGB else {}
    reader = {"reader": slide.blind_reader} if slide.blind_reader else {}
    return {
        **colours,
        **reader,
        "slide": slide.fingerprint,
        "slide_mpp": slide.mpp,
        "patch": config.spec.to_json(),
        "tissue": tissue,
        "mask": None if mask_file is None else file_sha256(mask_file),
        "quality": quality,
        "allow_upsample": config.allow_upsample,
        "class_names": list(config.rules.class_names),
        "labels": label_recipe(config.rules, label_file),
        "patient_id": patient_id,
    }


def settle(config: TileConfig, stage: Callable[[TileConfig], Staging]) -> TileConfig:
    """Return how a slide is cut: by otsu where that has begun or finished it and is taken, too.

    `stage` returns the staging of a product that is made so.
    """
    plain, by_otsu = replace(config, takes_otsu=False), config.by_otsu
    if by_otsu is None or not stage(by_otsu).is_begun or stage(plain).is_begun:
        return plain
    return by_otsu


def describe_maker(recipe: Mapping[str, Any], config: TileConfig) -> str:
    """Return a note for a slide's line where otsu made what was taken as it is, else ""."""
    tissue = recipe.get("tissue")
    is_old = tissue is not None and DETECTOR not in tissue
    return MADE_BY_OTSU if is_old and config.by_otsu is not None else ""
