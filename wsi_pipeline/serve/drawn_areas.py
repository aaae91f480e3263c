"""Areas that people draw to have the model run there; a request is checked before it is kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.core.errors import LabelError, StoreError
from wsi_pipeline.core.geometry import Grid, downsample_between, lay_grid
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.labels.corrections import (
    Correction,
    Corrections,
    check_size,
)
from wsi_pipeline.labels.sent_areas import holds_patch, read_drawn
from wsi_pipeline.models.model import Model
from wsi_pipeline.serve.annotations import RegionFile
from wsi_pipeline.serve.catalogue import Result
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.stages.part import MOST_OF_A_PATCH, name_areas, read_extensible
from wsi_pipeline.store.manifest import read_manifest

AREA = "area"
"""Class of drawn areas in their file."""


def drawn_file(results: Path, slide_id: str, slide: SlideInfo) -> RegionFile:
    """Return the file of the areas that are drawn on a slide."""
    return RegionFile(name_areas(results, slide_id), slide)


@dataclass(frozen=True, slots=True)
class DrawnArea:
    """One area, and the file of its slide that a job adds it to."""

    file: RegionFile
    region: Correction

    def add(self) -> bool:
        """Add the area to the file; return False where it is there already. Raises Refusal."""
        is_new = True

        def change(regions: Corrections) -> Corrections:
            nonlocal is_new
            is_new = not any(map(self._is_same, regions))
            return check_size((*regions, self.region)) if is_new else regions

        self.file.change(None, change)
        return is_new

    def remove(self) -> None:
        """Remove the area from the file. Raises Refusal."""
        self.file.change(
            None, lambda regions: tuple(each for each in regions if not self._is_same(each))
        )

    def _is_same(self, region: Correction) -> bool:
        return bool(self.region.area.equals(region.area))


def read_region(
    value: Any, results: Path, slide: SlideInfo, result: Result | None, model: Model
) -> DrawnArea:
    """Return the area of a request: GeoJSON `value`, in level-0 pixels, cut to the slide.

    Raises Refusal where it holds no patch of the model, or where `result`, the slide's results in
    the folder `results`, cannot be extended: a file with it would fail every later run.
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
    """Return the grid of the slide's results; without any, one at the model's scale.

    That is nearly the one of the results to come, which also depends on the options of the run.
    """
    if result is not None and result.grid is not None:
        return result.grid
    return lay_grid(slide.bounds_l0, downsample_between(slide.mpp, model.spec.mpp), model.spec)


def _check_extensible(folder: Path, slide: SlideInfo, model: Model) -> None:
    """Raise Refusal where no area of this model can join the results in `folder`."""
    try:
        read_extensible(folder, slide)
        made_by = read_manifest(folder).recipe.get("model")
    except StoreError as error:
        raise Refusal(409, str(error).replace(f"{folder.parent}/", "")) from error
    if made_by != model.digest:
        other = "its results are of another model, to which no area can be added"
        raise Refusal(409, f"{other}; infer the slide with force first")
