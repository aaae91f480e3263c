"""A slide's patches as data, and the sources that give their pixels."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.buffers import PixelBuffers
from wsi_pipeline.core.choices import AREAS, QUALITY_FLAGS, ROLES
from wsi_pipeline.core.geometry import (
    Grid,
    block_slice,
    count_blocks,
    number_positions,
    positions_to_boxes_l0,
    read_integers,
    read_ratio,
)
from wsi_pipeline.core.slide import SlideInfo, Thumbnail


class PatchBlock(NamedTuple):
    """The pixels of consecutive patches, and which of them could be read."""

    pixels: NDArray[np.uint8]
    """RGB, (b, side, side, 3); a patch that could not be read is white."""
    readable: NDArray[np.bool_]
    """(b,)"""
    fallbacks: int = 0
    """Regions that another reader than the slide's own read, because of a fault; same pixels."""


@dataclass(frozen=True, slots=True)
class TiledBlock:
    """A block's patches as the decoded tiles under them, and their places there.

    All of them could be read.
    """

    tiles: NDArray[np.uint8]
    """RGB, (t, height, width, 3)."""
    under: NDArray[np.int32]
    """(b, rows, cols) numbers of the tiles under each patch, from its top left to the right; as
    many as a patch can touch. What it does not touch repeats what it touches.
    """
    corners: NDArray[np.int32]
    """(b, 2) row and column of each patch's corner in the first of its tiles."""
    side_px: int

    def __len__(self) -> int:
        """Return the number of patches."""
        return len(self.under)


class PatchQuality(NamedTuple):
    """Measurements of patches besides their tissue."""

    pen_fraction: NDArray[np.float32]
    """(n,) share of the patch that is pen ink, 0 to 1."""
    sharpness: NDArray[np.float32]
    """(n,) variance of the Laplacian; NaN where it was not measured."""
    flags: NDArray[np.uint8]
    """(n,) the sum of a patch's `QUALITY_FLAGS`."""

    def take(self, index: NDArray[np.intp]) -> Self:
        """Return the quality of the patches at `index`, in this order."""
        return self._replace(**{name: values[index] for name, values in self._asdict().items()})


class SampleDesign(NamedTuple):
    """Design of a sample of a slide's patches: whole squares of the grid, drawn at random."""

    patches: int
    """Wanted number of patches."""
    seed: int
    side: int
    """Patches along a square's side."""
    clusters: int
    """Squares of the whole slide that hold patches."""
    slide_patches: int
    """Patches of the whole slide."""
    reach: int
    """Patches along each axis within which a drawn patch's neighbours were all predicted, too."""
    compared: tuple[int, ...] = ()
    """Numbers of the sample's patches that the whole slide would compare with training patches."""


@dataclass(frozen=True, slots=True)
class PatchTable:
    """Everything known of a slide's patches but their pixels; stores and predictions carry it."""

    slide: SlideInfo
    grid: Grid
    positions: NDArray[np.int32]
    """(n, 2) row, col of each patch, in storing order."""
    labels: NDArray[np.int8]
    """(n,) index into `class_names`, -1 unknown."""
    label_fraction: NDArray[np.float32]
    """(n,) share of the patch that has its label's class, 0 to 1; NaN where it is not known."""
    tissue_fraction: NDArray[np.float32]
    """(n,) 0 to 1, NaN where it was not measured."""
    thumbnail: Thumbnail
    block_size: int
    patient_id: str
    """The patient; patients, never patches, are divided between training and validation."""
    class_names: tuple[str, str]
    """(negative, positive)"""
    quality: PatchQuality | None = None
    """None where it was not measured."""
    tissue: NDArray[np.bool_] | None = None
    """(height, width) of the thumbnail: the tissue by which patches were chosen.

    Found, or the user's mask; None where there was neither.
    """
    areas: NDArray[np.uint8] | None = None
    """(height, width) of the thumbnail: index into `AREAS` of what a pixel was taken for."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Values of the free columns of the sample sheet, such as the site; empty ones are absent."""
    tissue_id: NDArray[np.int32] | None = None
    """(n,) piece of tissue that each patch lies on, as `slides/pieces` numbers them; 0: the rest.

    None where patches were chosen by no mask, or the store is from before pieces.
    """
    mask_name: str | None = None
    """Name of the user's mask, outside of which nothing was looked at; None: no mask was given."""
    role: NDArray[np.uint8] | None = None
    """(n,) index into `ROLES`; None: all are of the tissue or the mask."""
    sample: SampleDesign | None = None
    """Design of the sample whose patches these are; None: they are not drawn from others."""

    @property
    def numbers(self) -> NDArray[np.int64]:
        """(n,) number of each patch: that of its position on the grid, in raster order from 0."""
        return number_positions(self.positions, self.grid)

    @property
    def is_counted(self) -> NDArray[np.bool_]:
        """(n,) False for patches that are only the context of a sample's patches."""
        if self.role is None:
            return np.ones(self.patches, dtype=np.bool_)
        return np.not_equal(self.role, ROLES.index("context"))

    def take(self, index: NDArray[np.intp]) -> Self:
        """Return the table of the patches at `index`, in this order; the block size stays."""
        return replace(
            self,
            positions=np.ascontiguousarray(self.positions[index]),
            labels=self.labels[index],
            label_fraction=self.label_fraction[index],
            tissue_fraction=self.tissue_fraction[index],
            quality=self.quality and self.quality.take(index),
            tissue_id=None if self.tissue_id is None else self.tissue_id[index],
            role=None if self.role is None else self.role[index],
        )

    @property
    def patches(self) -> int:
        """Number of patches."""
        return len(self.positions)

    @property
    def blocks(self) -> int:
        """Number of blocks; the last one may be shorter."""
        return count_blocks(self.patches, self.block_size)

    def block_slice(self, block: int) -> slice:
        """Return the patches of block number `block`, counted from 0."""
        return block_slice(block, self.block_size, self.patches)

    def count_flags(self) -> dict[str, int]:
        """Return the number of patches with each flag; empty where quality was not measured."""
        if self.quality is None:
            return {}
        flags = self.quality.flags
        return {name: int(np.count_nonzero(flags & bit)) for name, bit in QUALITY_FLAGS.items()}

    def share_areas(self) -> dict[str, float]:
        """Return the share of the thumbnail that was taken for each of `AREAS`; empty: unknown."""
        if self.areas is None:
            return {}
        counts = np.bincount(self.areas.ravel(), minlength=len(AREAS))
        return dict(zip(AREAS, (counts / max(1, counts.sum())).tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return everything but the arrays as JSON values; without columns none are mentioned."""
        _, downsample, origin_xy_l0 = self.thumbnail
        columns = {"columns": dict(self.columns)} if self.columns else {}
        pieces = {} if self.tissue_id is None else {"has_tissue_id": True}
        mask = {} if self.mask_name is None else {"mask": self.mask_name}
        roles = {} if self.role is None else {"has_role": True}
        sample = {} if self.sample is None else {"sample": self.sample._asdict()}
        own = {
            "slide": self.slide.to_json(),
            "grid": self.grid.to_json(),
            "block_size": self.block_size,
            "patient_id": self.patient_id,
            "class_names": list(self.class_names),
            "thumbnail": {"downsample": str(downsample), "origin_xy_l0": list(origin_xy_l0)},
            "has_quality": self.quality is not None,
            "has_tissue": self.tissue is not None,
            "has_areas": self.areas is not None,
        }
        return columns | pieces | mask | roles | sample | own

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by their names on disk.

        x_um and y_um, float64 (n,), are for other readers: the patches' top left corners in µm of
        the slide, as in patches.parquet.
        """
        row, col = self.positions.T
        corners_l0 = positions_to_boxes_l0(self.positions, self.grid)[:, :2]
        x_um, y_um = corners_l0.T * self.slide.mpp
        arrays: dict[str, NDArray[Any]] = {
            "row": row,
            "col": col,
            "x_um": x_um,
            "y_um": y_um,
            "labels": self.labels,
            "label_fraction": self.label_fraction,
            "tissue_fraction": self.tissue_fraction,
            "thumbnail": self.thumbnail.pixels,
        }
        if self.tissue is not None:
            arrays["tissue"] = self.tissue
        if self.areas is not None:
            arrays["areas"] = self.areas
        if self.tissue_id is not None:
            arrays["tissue_id"] = self.tissue_id
        if self.role is not None:
            arrays["role"] = self.role
        return arrays if self.quality is None else arrays | self.quality._asdict()

    @classmethod
    def from_json(cls, value: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Return the table that `to_json` and `to_arrays` gave. Raises one of `DAMAGES`."""
        pixels, place = arrays["thumbnail"], value["thumbnail"]
        origin_xy_l0 = read_integers(place["origin_xy_l0"], 2)
        names = value["class_names"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("the names of its classes are not a list of texts")
        columns = value.get("columns", {})
        if not isinstance(columns, dict) or not all(isinstance(v, str) for v in columns.values()):
            raise TypeError("the values of its columns are not texts")
        mask_name = value.get("mask")
        if not isinstance(mask_name, str | None):
            raise TypeError("the name of its mask is not a text")
        quality, tissue = None, None
        if value.get("has_quality"):
            quality = PatchQuality(*(arrays[name] for name in PatchQuality._fields))
        if value.get("has_tissue"):
            tissue = arrays["tissue"].view(np.uint8) != 0  # a byte of a stranger may be 2
        return cls(
            SlideInfo.from_json(value["slide"]),
            Grid.from_json(value["grid"]),
            np.stack([arrays["row"], arrays["col"]], axis=1),
            arrays["labels"],
            arrays["label_fraction"],
            arrays["tissue_fraction"],
            Thumbnail(pixels, read_ratio(place["downsample"]), origin_xy_l0),
            block_size=read_integers([value["block_size"]], 1)[0],
            patient_id=str(value["patient_id"]),
            class_names=(names[0], names[1]),
            quality=quality,
            tissue=tissue,
            areas=arrays["areas"] if value.get("has_areas") else None,
            columns=columns,
            tissue_id=arrays["tissue_id"] if value.get("has_tissue_id") else None,
            mask_name=mask_name,
            role=arrays["role"] if value.get("has_role") else None,
            sample=_read_design(value.get("sample")),
        )


def _read_design(value: Any) -> SampleDesign | None:
    """Return the design of a sample from JSON. Raises one of `DAMAGES`."""
    if value is None:
        return None
    *names, last = SampleDesign._fields
    numbers = read_integers([value[name] for name in names], len(names))
    shared = read_integers(value[last], len(value[last]))
    design = SampleDesign(*numbers)._replace(compared=shared)
    if min(numbers) < 0 or not (design.side and design.clusters and design.slide_patches):
        raise ValueError("the design of its sample is invalid")
    return design


class PatchSource(Protocol):
    """Patches of one slide in a fixed order, read block by block: a store, or the slide itself."""

    def read_block(self, block: int) -> PatchBlock: ...


@runtime_checkable
class PartSource(PatchSource, Protocol):
    """A source that can also read some patches of a block."""

    def read_some(self, block: int, index: NDArray[np.intp]) -> PatchBlock: ...


@runtime_checkable
class TileSource(Protocol):
    """A source that can also give the decoded tiles from which its patches are cut."""

    def read_tiles(self, block: int, buffers: PixelBuffers) -> TiledBlock | None:
        """Return a block in memory of `buffers`, or None where `read_block` must cut it."""
        ...
