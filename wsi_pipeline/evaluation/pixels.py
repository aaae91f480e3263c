"""The pixels of single cells, read again from where the results say that they came from."""

import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import WsiError
from wsi_pipeline.core.json_io import MAX_RECORD_BYTES, read_json
from wsi_pipeline.core.slide import PatchBlock, PatchTable
from wsi_pipeline.outputs.run_tables import RUN_JSON
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.store.manifest import is_product
from wsi_pipeline.store.patches import PatchStore

logger = logging.getLogger(__name__)


class PixelFinder:
    """Reads patches from the store or slide that a results folder was made from, where it is still there and still the same."""

    def __init__(self, results: Path) -> None:
        self._sources = _read_sources(results / RUN_JSON)

    def read(self, slide_id: str, table: PatchTable, cells: NDArray[np.int32]) -> PatchBlock | None:
        """The patches of cells (n, 2) of a slide; None where their source is gone, changed or cannot be read."""
        for place in dict.fromkeys([self._sources.get(slide_id, ""), table.slide.path]):
            try:
                if place and is_product(Path(place)):
                    return _read_store(Path(place), table, cells)
                if place and Path(place).is_file():
                    return _read_slide(Path(place), table, cells)
            except (WsiError, OSError) as error:
                logger.info("no pixels for the report: %s", error)
        return None


def _read_sources(run_json: Path) -> dict[str, str]:
    """Where the last run read each slide from; nothing where there is no record, or no whole one."""
    try:
        outcomes = read_json(run_json, MAX_RECORD_BYTES)["outcomes"]
        return {str(outcome["slide_id"]): str(outcome["path"]) for outcome in outcomes}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _read_store(path: Path, table: PatchTable, cells: NDArray[np.int32]) -> PatchBlock | None:
    store = PatchStore(path)
    if (store.slide.fingerprint, store.grid) != (table.slide.fingerprint, table.grid):
        return None
    rows = {(int(row), int(col)): index for index, (row, col) in enumerate(store.cells)}
    found: list[PatchBlock] = []
    for row, col in cells:
        index = rows.get((int(row), int(col)))
        if index is None:
            return None
        block = store.read_block(index // store.block_size)
        place = index % store.block_size
        found.append(PatchBlock(block.pixels[place], block.readable[place]))
    return _stack(found)


def _read_slide(path: Path, table: PatchTable, cells: NDArray[np.int32]) -> PatchBlock | None:
    slide_mpp = table.slide.mpp if table.slide.mpp_source == "user" else None
    with closing(open_slide(path, table.slide.slide_id, slide_mpp)) as reader:
        if reader.info.fingerprint != table.slide.fingerprint:
            return None
        return SlidePatches(reader, table.grid, cells, len(cells)).read_block(0)


def _stack(patches: Sequence[PatchBlock]) -> PatchBlock:
    return PatchBlock(np.stack([patch.pixels for patch in patches]), np.array([patch.readable for patch in patches]))
