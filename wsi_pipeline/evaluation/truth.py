"""The known labels of a slide beside its predictions, for people to look at.

RESULTS/truth/<slide_id>.json is written by an evaluation; without it, the label file beside the
slide is read. Labels are per patch; outlines are those of the label file, or of labelled patches.
"""

import base64
import binascii
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.core.choices import TRUTH
from wsi_pipeline.core.errors import DAMAGES, StoreError, one_line
from wsi_pipeline.core.geometry import Grid, all_positions
from wsi_pipeline.core.json_io import format_json, read_json
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.evaluation.labelled import LabelledSlide
from wsi_pipeline.labels import label_positions
from wsi_pipeline.labels.discovery import match_beside
from wsi_pipeline.labels.rules import NEGATIVE, POSITIVE, LabelRules
from wsi_pipeline.outputs.heatmap import number_groups
from wsi_pipeline.outputs.regions import Polygons, list_polygons, outline_groups
from wsi_pipeline.store.files import write_file

KIND = "wsi truth"
FORMAT_VERSION = 1
MAX_TRUTH_BYTES = 256 * 1024**2
MANY_CORNERS = 50_000
"""Outlines of more corners are drawn a little simpler."""
FINEST_SHARE = 50
"""Such outlines differ from the drawn ones by no more than this part of a patch."""


@dataclass(frozen=True, eq=False)
class Truth:
    """The known regions and labels of one slide."""

    source: str
    """Name of the label file, or words for where else the labels are from."""
    class_names: tuple[str, str]
    labels: NDArray[np.int8]
    """(rows, cols) 0 negative, 1 positive, -1 unknown."""
    outlines: tuple[Polygons, Polygons]
    """Of the negative and of the positive area."""


def make_truth(
    source: str,
    class_names: tuple[str, str],
    grid: Grid,
    labels: NDArray[np.int8],
    areas: tuple[BaseGeometry, BaseGeometry] | None = None,
) -> Truth:
    """Return the truth of labels (rows, cols); without areas, patches of a class are outlined."""
    if areas is None:
        areas = _outline(labels == NEGATIVE, grid), _outline(labels == POSITIVE, grid)
    finest = grid.spec.stride_px * float(grid.downsample) / FINEST_SHARE
    negative, positive = (list_polygons(_simplify(area, finest)) for area in areas)
    return Truth(source, class_names, labels, (negative, positive))


def place_labels(
    positions: NDArray[np.int32], labels: NDArray[Any], grid: Grid
) -> NDArray[np.int8]:
    """Return labels (n,) of positions (n, 2) on the grid (rows, cols); -1 elsewhere."""
    placed = np.full((grid.rows, grid.cols), -1, dtype=np.int8)
    placed[tuple(positions.T)] = labels
    return placed


def _outline(mask: NDArray[np.bool_], grid: Grid) -> BaseGeometry:
    groups = number_groups(mask, corners=True)
    return shapely.geometrycollections(list(outline_groups(groups, grid)))


def _simplify(area: BaseGeometry, finest: float) -> BaseGeometry:
    is_simple = shapely.get_num_coordinates(area) <= MANY_CORNERS
    return area if is_simple else shapely.simplify(area, finest)


def truth_path(results: Path, slide_id: str) -> Path:
    """Return the place of a slide's truth: outside of the slide's folder, which is replaced."""
    return results / TRUTH / f"{slide_id}.json"


def keep_truths(
    results: Path, slides: Sequence[LabelledSlide], class_names: tuple[str, str]
) -> None:
    """Write the labels of evaluated slides for the viewer. Raises EnvironmentFault."""
    for slide in slides:
        grid = slide.table.grid
        labels = place_labels(slide.positions, slide.labels, grid)
        truth = make_truth(slide.source, class_names, grid, labels, slide.areas)
        path = truth_path(results, slide.slide_id)
        write_truth(path, slide.table.slide.fingerprint, grid, truth)


def write_truth(path: Path, fingerprint: str, grid: Grid, truth: Truth) -> None:
    """Write a truth aside and rename it. Raises EnvironmentFault."""
    packed = base64.b64encode(zlib.compress(truth.labels.tobytes(), 6)).decode()
    record = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "grid": grid.to_json(),
        "source": truth.source,
        "class_names": list(truth.class_names),
        "labels": packed,
        "outlines": list(truth.outlines),
    }
    write_file(path, (format_json(record) + "\n").encode())


def read_truth(path: Path, fingerprint: str, grid: Grid) -> Truth | None:
    """Return the truth in a file; None without one, or where it is of another slide or grid.

    Raises StoreError for a damaged file.
    """
    try:
        value = read_json(path, MAX_TRUTH_BYTES)
        if (value["kind"], value["format_version"]) != (KIND, FORMAT_VERSION):
            raise ValueError("of another kind or format")
        if value["fingerprint"] != fingerprint or Grid.from_json(value["grid"]) != grid:
            return None
        return _from_json(value, grid)
    except FileNotFoundError:
        return None
    except (*DAMAGES, OSError, zlib.error, binascii.Error) as error:
        raise StoreError(
            f"{path}: damaged: {one_line(error)}; run `wsi evaluate` once more"
        ) from error


def _from_json(value: Mapping[str, Any], grid: Grid) -> Truth:
    size = grid.rows * grid.cols
    packed = base64.b64decode(value["labels"], validate=True)
    content = zlib.decompressobj().decompress(packed, size + 1)
    if len(content) != size:
        raise ValueError("its labels have another size than its grid")
    labels = np.frombuffer(content, dtype=np.int8).reshape(grid.rows, grid.cols)
    negative, positive = map(str, value["class_names"])
    outlines = tuple(_read_polygons(each) for each in value["outlines"])
    return Truth(str(value["source"]), (negative, positive), labels, (outlines[0], outlines[1]))


def _read_polygons(value: Any) -> Polygons:
    polygons = []
    for polygon in value:
        rings = [np.array(ring, dtype=np.float64).reshape(-1, 2) for ring in polygon]
        if not all(np.isfinite(ring).all() for ring in rings):
            raise ValueError("a corner is not finite")
        polygons.append([ring.tolist() for ring in rings])
    return polygons


def find_label_file(slide: Path, others: Sequence[Path]) -> Path | None:
    """Return the label file beside a slide; `others` are all slides, of whom it may be instead.

    Raises LabelError where two carry the slide's name equally well.
    """
    beside = [slide, *(each for each in others if each != slide and each.parent == slide.parent)]
    return match_beside(beside).files[0]


def label_beside(
    label_file: Path, slide: SlideInfo, grid: Grid, class_names: tuple[str, str]
) -> Truth:
    """Return the truth in a label file, of which each patch of the grid has a label.

    Raises LabelError where it cannot be read, or a class is unknown.
    """
    positions = all_positions(grid)
    rules = LabelRules(class_names=class_names)
    found = label_positions(label_file, slide, grid, positions, rules)
    labels = place_labels(positions, found.labels, grid)
    return make_truth(label_file.name, class_names, grid, labels, found.areas)
