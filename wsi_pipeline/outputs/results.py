"""Results in Python: each slide's map and summary as numpy, pandas and xarray.

for slide in open_results(Path("results")):
    print(slide.summary.positive_mm2, slide.heatmap.probability.max())
patches = slide.to_frame()                       # pandas, a row per patch
image = slide.to_xarray().sel(x=1200, y=800, method="nearest")     # µm of the slide
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, SupportsIndex, TypeVar, overload

import numpy as np

from wsi_pipeline.core.errors import ConfigError, StoreError
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.outputs.heatmap import Aggregation, Heatmap, build_heatmap, read_aggregation
from wsi_pipeline.outputs.patches_parquet import tabulate_patches
from wsi_pipeline.outputs.pyramid import find_place
from wsi_pipeline.outputs.regions import Region
from wsi_pipeline.outputs.report_html import render_report
from wsi_pipeline.outputs.result import SlideResult
from wsi_pipeline.outputs.run_files import read_finished, tabulate_slides
from wsi_pipeline.outputs.summary_json import add_saved_review, read_summary
from wsi_pipeline.store.predictions import Predictions
from wsi_pipeline.store.slide_results import find_results, open_result

MAX_ROWS = 50
"""Of a table in a notebook."""

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


SlideKind = TypeVar("SlideKind", bound="Slide")


@dataclass(frozen=True)
class Slide:
    """One slide's results, as its folder shows them."""

    folder: Path
    summary: SlideSummary

    def __repr__(self) -> str:
        shown = self.summary
        return (
            f"Slide({shown.slide_id}: {shown.positives:,} of {shown.patches:,} patches positive,"
            f" {shown.positive_mm2:.3g} mm²)"
        )

    def _repr_html_(self) -> str:
        return _tabulate([self])

    @property
    def slide_id(self) -> str:
        """Name of the slide's folder."""
        return self.summary.slide_id

    @cached_property
    def predictions(self) -> Predictions:
        """Positions, logits and probabilities, numpy arrays. Raises StoreError."""
        return open_result(self.folder)

    @cached_property
    def heatmap(self) -> Heatmap:
        """The map (rows, cols) with threshold, context and smallest region as in the summary."""
        return self.build_heatmap(self.aggregation)

    @cached_property
    def aggregation(self) -> Aggregation:
        """Threshold, context and the rest that made the slide's outputs. Raises StoreError."""
        return read_aggregation(self.folder)

    def build_heatmap(self, aggregation: Aggregation) -> Heatmap:
        """Return the map at any threshold, with any context; nothing is written."""
        return build_heatmap(self.predictions, aggregation)

    @cached_property
    def _result(self) -> SlideResult:
        return SlideResult(
            self.predictions.table, self.heatmap, self.summary, spread=self.predictions.spread
        )

    @property
    def regions(self) -> tuple[Region, ...]:
        """The positive areas that count, largest first, with outlines in level-0 pixels."""
        return self._result.regions

    def render_report(self) -> str:
        """Return the report, one page that calls no other machine, as HTML."""
        return render_report(self._result)

    def to_frame(self) -> "pd.DataFrame":
        """Return a row per patch, with the columns of patches.parquet. Raises ConfigError."""
        check_extra("pandas")
        frame: pd.DataFrame = tabulate_patches(self._result).to_pandas()
        return frame

    def to_xarray(self) -> "xr.DataArray":
        """Return the map as (y, x), coordinates in µm of the slide at the patches' centres.

        NaN: not assessed. Raises ConfigError where xarray is not installed.
        """
        check_extra("xarray")
        import xarray as xr

        grid = self.heatmap.grid
        place = find_place(grid, self.summary.slide_mpp)
        x = place.center_um[0] + place.pixel_um * np.arange(grid.cols)
        y = place.center_um[1] + place.pixel_um * np.arange(grid.rows)
        facts = {"units": "1", "threshold": self.summary.threshold, "slide_id": self.slide_id}
        axes = {"y": ("y", y, {"units": "µm"}), "x": ("x", x, {"units": "µm"})}
        name, values = f"prob_{self.summary.positive_class}", self.heatmap.probability
        return xr.DataArray(values, coords=axes, dims=("y", "x"), name=name, attrs=facts)


class Results(list[SlideKind]):
    """Slides of a results folder, in order; `results["S1"]` is the slide of that name."""

    @overload
    def __getitem__(self, key: SupportsIndex | str) -> SlideKind: ...
    @overload
    def __getitem__(self, key: slice) -> list[SlideKind]: ...
    def __getitem__(self, key: SupportsIndex | slice | str) -> SlideKind | list[SlideKind]:
        """Return a slide by number or name, or several by numbers. Raises KeyError, IndexError."""
        if not isinstance(key, str):
            return super().__getitem__(key)
        for slide in self:
            if slide.slide_id == key:
                return slide
        raise KeyError(f"{key}: no such slide; there are {', '.join(self._name_some())}")

    def _name_some(self) -> list[str]:
        return [slide.slide_id for slide in self[:5]] + (["…"] if len(self) > 5 else [])

    def _repr_html_(self) -> str:
        return _tabulate(self)


def _tabulate(slides: Sequence[Slide]) -> str:
    """Return a table of slides as HTML, without paths and patients."""
    names = ("slide", "state", "positive patches", "of", "positive mm²", "assessed mm²")
    heads = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(map(_tabulate_one, slides[:MAX_ROWS]))
    rest = f"<p>and {len(slides) - MAX_ROWS:,} more</p>" if len(slides) > MAX_ROWS else ""
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{rest}"


def _tabulate_one(slide: Slide) -> str:
    shown = slide.summary
    cells = (
        *(shown.slide_id, shown.state.value, f"{shown.positives:,}", f"{shown.patches:,}"),
        *(f"{shown.positive_mm2:.2f}", f"{shown.assessed_mm2:.2f}"),
    )
    return f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"


def open_slide_result(folder: Path) -> Slide:
    """Return the results of one slide's folder. Raises StoreError."""
    open_result(folder)
    summary = replace(read_summary(folder), slide_id=folder.absolute().name)
    return Slide(folder, add_saved_review(summary, folder))


def open_results(results: Path) -> Results[Slide]:
    """Return every finished slide, by name. Raises StoreError for none, or a damaged one."""
    slides = Results(open_slide_result(folder) for folder in find_results([results]))
    if not slides:
        raise StoreError(f"{results}: holds no finished slide; make some with `wsi infer`")
    return slides


def slides_frame(results: Path) -> "pd.DataFrame":
    """Return slides.csv as pandas, indexed by slide. Raises ConfigError without pandas."""
    check_extra("pandas")
    import pandas as pd

    types, rows = tabulate_slides(read_finished(results).summaries)
    return pd.DataFrame(rows, columns=list(types)).set_index("slide_id")


def check_extra(library: str) -> None:
    """Raise ConfigError where a library of the extra `analysis` is not installed."""
    if find_spec(library) is None:
        raise ConfigError(f"{library}: is not installed; pip install 'wsi-pipeline[analysis]'")
