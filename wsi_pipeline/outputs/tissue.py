"""tissue.csv and tissue.geojson: the pieces of tissue on the glass, and what was found on each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Polygon

from wsi_pipeline.core.json_io import format_json
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.outputs.heatmap import Heatmap
from wsi_pipeline.outputs.regions import list_polygons, outline_numbers
from wsi_pipeline.outputs.result import SlideResult
from wsi_pipeline.outputs.run_files import write_csv
from wsi_pipeline.slides.pieces import REST, SPECK, Pieces, find_pieces

CSV_NAME, GEOJSON_NAME = "tissue.csv", "tissue.geojson"
COLUMNS = (
    "tissue_id", "area_mm2", "patches", "assessed", "positives", "positive_mm2",
    "positive_fraction", "x0_l0", "y0_l0", "x1_l0", "y1_l0",
)  # fmt: skip
TISSUE_COLOR = (90, 90, 90)


@dataclass(frozen=True, slots=True)
class TissuePiece:
    """One piece of tissue, or the rest: specks, and patches that lie on no piece."""

    tissue_id: int
    """1 … as `slides/pieces` numbers them; 0: the rest."""
    area_mm2: float
    """Of its tissue."""
    patches: int
    assessed: int
    """Patches with a probability."""
    positives: int
    """As counted in the summary."""
    positive_mm2: float
    outline: Polygon | MultiPolygon
    """In level-0 pixels, simplified to a pixel of the thumbnail; empty where it has no area."""

    @property
    def name(self) -> str:
        """Its name for people."""
        return "Rest" if self.tissue_id == REST else f"Tissue {self.tissue_id}"

    @property
    def positive_fraction(self) -> float | None:
        """Positive share of the assessed patches; None where none was assessed."""
        return self.positives / self.assessed if self.assessed else None

    @property
    def bounds_l0(self) -> tuple[float, ...] | None:
        """x0, y0, x1, y1 in level-0 pixels; None where it has no area."""
        return None if self.outline.is_empty else self.outline.bounds


@dataclass(frozen=True, slots=True)
class OutlinedPieces:
    """Places and areas of a slide's k pieces, numbers 1 to k, and of the rest, number k + 1."""

    owner: NDArray[np.intp]
    """(patches,) number of the piece that each patch lies on."""
    areas_mm2: NDArray[np.float64]
    """(k + 2,) area of each number; 0 is what is no tissue."""
    outlines: list[Any]
    """(k + 1,) from number 1 on."""


def describe_pieces(table: PatchTable, heatmap: Heatmap) -> tuple[TissuePiece, ...]:
    """Return the pieces of a slide by number, then the rest if there is any.

    Empty where the patches were chosen by no mask. Every patch belongs to exactly one of them.
    """
    outlined = outline_pieces(table)
    return () if outlined is None else count_pieces(outlined, table, heatmap)


def outline_pieces(table: PatchTable) -> OutlinedPieces | None:
    """Return where the pieces lie; None where the patches were chosen by no mask."""
    pieces = find_pieces(table)
    if pieces is None:
        return None
    numbers = np.where(pieces.numbers == SPECK, pieces.count + 1, pieces.numbers)
    pixel_um = float(table.thumbnail.downsample) * table.slide.mpp
    pixels = np.bincount(numbers.ravel(), minlength=pieces.count + 2).astype(np.float64)
    return OutlinedPieces(
        owner=np.where(pieces.of_patches == REST, pieces.count + 1, pieces.of_patches),
        areas_mm2=pixels * (pixel_um / 1000) ** 2,
        outlines=_outline(pieces, numbers, table),
    )


def count_pieces(
    outlined: OutlinedPieces, table: PatchTable, heatmap: Heatmap
) -> tuple[TissuePiece, ...]:
    """Return the pieces with what was found on each at the threshold of the map."""
    size, place = len(outlined.areas_mm2), tuple(table.positions.T)
    is_known, is_positive = ~np.isnan(heatmap.probability[place]), heatmap.positive[place]
    patches, assessed, positives = (
        np.bincount(owner, minlength=size)
        for owner in (outlined.owner, outlined.owner[is_known], outlined.owner[is_positive])
    )
    found = [
        TissuePiece(
            tissue_id=number if number < size - 1 else REST,
            area_mm2=float(outlined.areas_mm2[number]),
            patches=int(patches[number]),
            assessed=int(assessed[number]),
            positives=int(positives[number]),
            positive_mm2=float(positives[number] * table.grid.patch_area_mm2),
            outline=outlined.outlines[number - 1],
        )
        for number in range(1, size)
    ]
    return tuple(piece for piece in found if piece.tissue_id or piece.area_mm2 or piece.patches)


def _outline(pieces: Pieces, numbers: NDArray[np.int32], table: PatchTable) -> list[Any]:
    """Return the outline of each number, the last of which is the rest."""
    scale = float(table.thumbnail.downsample)
    origins = table.thumbnail.origin_xy_l0
    x, y = (
        origin + scale * np.arange(extent + 1)
        for origin, extent in zip(origins, numbers.shape[::-1], strict=True)
    )
    traced = list(shapely.simplify(outline_numbers(numbers, x, y), scale))
    return [*traced, *[MultiPolygon()] * (pieces.count + 1 - len(traced))]


def describe_piece(piece: TissuePiece) -> dict[str, Any]:
    """Return one piece with its outline, for pages and REST."""
    return measure_piece(piece) | {
        "name": piece.name,
        "positive_fraction": piece.positive_fraction,
        "bounds_l0": piece.bounds_l0 and list(piece.bounds_l0),
        "outline": list_polygons(piece.outline),
    }


def measure_piece(piece: TissuePiece) -> dict[str, Any]:
    """Return the numbers of a piece."""
    return {
        "tissue_id": piece.tissue_id,
        "area_mm2": piece.area_mm2,
        "patches": piece.patches,
        "assessed": piece.assessed,
        "positives": piece.positives,
        "positive_mm2": piece.positive_mm2,
    }


def write_tissue(result: SlideResult, folder: Path) -> None:
    """Write the pieces as a table, and as annotations for QuPath from the scanned area's corner."""
    pieces = describe_pieces(result.table, result.heatmap)
    rows = (
        [
            *measure_piece(piece).values(),
            piece.positive_fraction,
            *(piece.bounds_l0 or (None,) * 4),
        ]
        for piece in pieces
    )
    write_csv(folder / CSV_NAME, COLUMNS, rows)
    lines = ",\n".join(_describe(result, piece) for piece in pieces if not piece.outline.is_empty)
    start, end = '{"type": "FeatureCollection", "features": [\n', "\n" if lines else ""
    (folder / GEOJSON_NAME).write_bytes(f"{start}{lines}{end}]}}\n".encode())


def _describe(result: SlideResult, piece: TissuePiece) -> str:
    share = piece.positive_fraction
    shares = {} if share is None else {"positive_fraction": share}
    properties: dict[str, Any] = {
        "objectType": "annotation",
        "name": piece.name,
        "classification": {"name": "Tissue", "color": list(TISSUE_COLOR)},
        "isLocked": True,
        "measurements": measure_piece(piece) | shares,
    }
    left, top = result.table.slide.bounds_l0[:2]
    outline = shapely.transform(piece.outline, lambda points: points - (left, top))
    start = format_json({"type": "Feature", "id": result.name_uuid("tissue", piece.tissue_id)})
    return (
        f'{start[:-1]}, "geometry": {shapely.to_geojson(outline)}, "properties":'
        f" {format_json(properties)}}}"
    )
