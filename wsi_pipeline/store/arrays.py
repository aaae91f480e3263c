"""Dimensions, units and meaning of every array in stores and predictions.

They are written into the arrays' metadata, where xarray, dask, napari and people find them without
our code: names of dimensions as Zarr 3 has them, `units`, `long_name`, `coordinates` and flags as
the conventions for climate and forecast metadata have them (CF 1.12, sections 3 and 5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wsi_pipeline.core.choices import AREAS, QUALITY_FLAGS, ROLES

PATCH = ("patch",)
PIXELS = ("patch", "y", "x", "channel")
THUMBNAIL = ("thumbnail_y", "thumbnail_x")
COORDINATES = ("row", "col", "x_um", "y_um")
"""Arrays that say where each patch lies."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """Name, units and comment of an array, for readers who have nothing but the array."""

    long_name: str
    comment: str = ""
    dimension_names: tuple[str, ...] = PATCH
    units: str = "1"
    is_coordinate: bool = False
    flags: Mapping[str, Any] = field(default_factory=dict)
    """CF's names of the values."""

    @property
    def attributes(self) -> dict[str, Any]:
        """The array's attributes."""
        own: dict[str, Any] = {"long_name": self.long_name, "units": self.units}
        if self.comment:
            own["comment"] = self.comment
        if "patch" in self.dimension_names and not self.is_coordinate:
            own["coordinates"] = " ".join(COORDINATES)
        return {**own, **self.flags}


ON_GRID = "on the grid that the group's attributes describe, from 0"
ON_SLIDE = "measured from the top left of the scan"
NOT_READ = "NaN where the patch could not be read"
NOT_KNOWN = "NaN where it is not known"
QUALITY = {"flag_masks": [*QUALITY_FLAGS.values()], "flag_meanings": " ".join(QUALITY_FLAGS)}
ROLE_VALUES = {"flag_values": [*range(len(ROLES))], "flag_meanings": " ".join(ROLES)}
AREA_VALUES = {"flag_values": [*range(len(AREAS))], "flag_meanings": " ".join(AREAS)}
MEANINGS = {
    "row": Meaning("row of the patch", ON_GRID, is_coordinate=True),
    "col": Meaning("column of the patch", ON_GRID, is_coordinate=True),
    "x_um": Meaning("left edge of the patch", ON_SLIDE, units="µm", is_coordinate=True),
    "y_um": Meaning("upper edge of the patch", ON_SLIDE, units="µm", is_coordinate=True),
    "patches": Meaning("pixels of the patch", "red, green, blue", PIXELS),
    "readable": Meaning("whether the patch could be read", "its pixels are white otherwise"),
    "label_fraction": Meaning("share of the patch that has its label's class", NOT_KNOWN),
    "tissue_fraction": Meaning("share of the patch that is tissue", NOT_KNOWN),
    "pen_fraction": Meaning("share of the patch that is pen ink", NOT_KNOWN),
    "sharpness": Meaning("variance of the Laplacian of the patch", NOT_KNOWN),
    "flags": Meaning("faults of the patch", flags=QUALITY),
    "thumbnail": Meaning("the whole slide", "red, green, blue", (*THUMBNAIL, "channel")),
    "role": Meaning("reason why the patch was predicted", flags=ROLE_VALUES),
    "tissue_id": Meaning("piece of tissue that the patch lies on", "0: the rest, specks"),
    "tissue": Meaning("whether the thumbnail's pixel is tissue", dimension_names=THUMBNAIL),
    "areas": Meaning(
        "what the thumbnail's pixel was taken for", dimension_names=THUMBNAIL, flags=AREA_VALUES
    ),
    "logit": Meaning("logit of the network", NOT_READ),
    "raw_probability": Meaning("probability of the positive class, patch alone", NOT_READ),
    "probability": Meaning("probability of the positive class", NOT_READ),
    "spread": Meaning("standard deviation of the logits of several models", NOT_READ),
}
"""By the array's name; of labels, see `find_meaning`."""


def find_meaning(name: str, class_names: Sequence[str]) -> Meaning:
    """Return the meaning of an array; that of labels names the classes (negative, positive)."""
    if name != "labels":
        return MEANINGS[name]
    words = ("unknown", *("_".join(each.split()) or "_" for each in class_names))
    flags = {"flag_values": [-1, 0, 1], "flag_meanings": " ".join(words)}
    return Meaning("class of the patch", flags=flags)
