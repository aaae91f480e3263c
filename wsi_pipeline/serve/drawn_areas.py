"""Areas that people draw to have the model run there, checked before anything is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import DRAWN
from wsi_pipeline.core.errors import LabelError, StoreError
from wsi_pipeline.core.geometry import Grid, downsample_between, lay_grid
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.labels.corrections import (
    Correction,
    Corrections,
    check_size,
    holds_patch,
    read_drawn,
)
from wsi_pipeline.models.model import Model
from wsi_pipeline.serve.annotations import RegionFile
from wsi_pipeline.serve.catalogue import Result
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.stages.part import MOST_OF_A_PATCH, read_extensible
from wsi_pipeline.store.manifest import read_manifest

AREA = "area"
"""Class of drawn areas in their file."""


def drawn_file(results: Path, slide_id: str, slide: SlideInfo) -> RegionFile:
    """Return the areas of a slide in which the model is to run whatever else it assesses."""
    return RegionFile(results / DRAWN / f"{slide_id}.geojson", slide)


@dataclass(frozen=True, slots=True)
class DrawnArea:
    """An area that a job adds to those of its slide."""

    file: RegionFile
    region: Correction

    def add(self) -> bool:
        """Write the area beside those before; return whether it is new. Raises Refusal."""
        is_new = True

        def change(regions: Corrections) -> Corrections:
            nonlocal is_new
            is_new = not any(map(self._is_same, regions))
            return check_size((*regions, self.region)) if is_new else regions

        self.file.change(None, change)
        return is_new

    def remove(self) -> None:
        """Take the area back. Raises Refusal."""
        self.file.change(
            None, lambda regions: tuple(each for each in regions if not self._is_same(each))
        )

    def _is_same(self, region: Correction) -> bool:
        return bool(self.region.area.equals(region.area))


def read_region(
    value: Any, results: Path, slide: SlideInfo, result: Result | None, model: Model
) -> DrawnArea:
    """Return the area of a request, which the model can assess on the slide's own file.

    Raises Refusal where it cannot: then a later run of the slide would fail, too.
    """
    try:
        area = read_drawn(value, slide)
        if not holds_patch(area, _find_grid(slide, result, model), MOST_OF_A_PATCH):
            most = f"by {MOST_OF_A_PATCH:.0%}; draw a larger one"
            raise LabelError(f"no patch of {model.spec.field_um:g} µm lies in it {most}")
    except LabelError as error:
        raise Refusal(422, f"region: {error}") from error
    if result is not None:
        _check_extensible(result.folder, slide, model)
    return DrawnArea(drawn_file(results, slide.slide_id, slide), Correction(AREA, area))


def _find_grid(slide: SlideInfo, result: Result | None, model: Model) -> Grid:
    """Return the grid of the slide's patches: of its results, else as it will be, nearly."""
    if result is not None and result.grid is not None:
        return result.grid
    return lay_grid(slide.bounds_l0, downsample_between(slide.mpp, model.spec.mpp), model.spec)


def _check_extensible(folder: Path, slide: SlideInfo, model: Model) -> None:
    try:
        read_extensible(folder, slide)
        made_by = read_manifest(folder).recipe.get("model")
    except StoreError as error:
        raise Refusal(409, str(error).replace(f"{folder.parent}/", "")) from error
    if made_by != model.digest:
        other = "its results are of another model, to which no area can be added"
        raise Refusal(409, f"{other}; infer the slide with force first")
