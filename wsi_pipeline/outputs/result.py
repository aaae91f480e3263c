"""The input of writers: a slide's result and its plot style."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import COLORMAPS
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.outputs.heatmap import Heatmap
from wsi_pipeline.outputs.regions import Region, find_regions

NEGATIVE_COLOR = (44, 127, 184)
POSITIVE_COLOR = (217, 95, 14)
"""Distinct with every kind of colour blindness."""


@dataclass(frozen=True, slots=True)
class PlotStyle:
    """Colours and opacity of plots."""

    colormap: str = COLORMAPS[0]
    alpha: float = 0.6
    """Opacity of the map over the slide where the probability is 1, 0 to 1."""

    def __post_init__(self) -> None:
        if self.colormap not in COLORMAPS:
            raise ConfigError(f"colormap is {self.colormap!r}; choose from {', '.join(COLORMAPS)}")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha is {self.alpha}; it must lie between 0 and 1")


@dataclass(frozen=True, slots=True)
class Sample:
    """Patches that a person should see."""

    title: str
    positions: NDArray[np.int32]
    """(n, 2) row, col."""
    probability: NDArray[np.float32]
    """(n,) on the model's own terms, whatever the view's."""
    pixels: NDArray[np.uint8]
    """(n, side, side, 3)."""


@dataclass(frozen=True)
class SlideResult:
    """One slide's results, ready to be plotted and written."""

    table: PatchTable
    heatmap: Heatmap
    summary: SlideSummary
    plot_style: PlotStyle = field(default_factory=PlotStyle)
    samples: tuple[Sample, ...] | None = None
    """For the gallery; None where neither the slide nor its store is at hand."""
    previous: Path | None = None
    """The slide's earlier folder, for files that cannot be made without the slide's pixels."""
    spread: NDArray[np.float32] | None = None
    """(n,) standard deviation of the logits of an ensemble's members, NaN where a patch could not
    be read, in the order of the table; None: one model.
    """

    @cached_property
    def positive(self) -> NDArray[np.bool_]:
        """(rows, cols), as counted in the summary."""
        return self.heatmap.positive

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """The patches that count in raster order (n,): tables do not depend on the blocks'."""
        order = np.lexsort((self.table.positions[:, 1], self.table.positions[:, 0]))
        counted: NDArray[np.intp] = order[self.table.is_counted[order]]
        return counted

    @cached_property
    def positions(self) -> NDArray[np.int32]:
        """(n, 2) row, col in raster order."""
        return np.ascontiguousarray(self.table.positions[self.order])

    @cached_property
    def probability(self) -> NDArray[np.float32]:
        """(n,) of the map, in raster order; NaN where a patch could not be read."""
        values: NDArray[np.float32] = self.heatmap.probability[tuple(self.positions.T)]
        return values

    @property
    def class_names(self) -> tuple[str, str]:
        """(negative, positive) as the model calls them."""
        return self.heatmap.negative_class, self.heatmap.positive_class

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The positive areas that count, largest first."""
        return find_regions(self.heatmap, self.heatmap.threshold, self.heatmap.min_region_mm2)

    def name_uuid(self, *parts: Any) -> str:
        """Return a name for an object of this slide, the same on every run."""
        names = (self.table.slide.fingerprint, self.summary.model_digest, *parts)
        return str(uuid.uuid5(uuid.NAMESPACE_OID, "/".join(map(str, names))))


Writer = Callable[[SlideResult, Path], None]
"""Writes one format of a result into a folder that only it writes to."""
