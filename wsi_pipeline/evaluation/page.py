"""evaluation.html: the report of a model on labelled slides.

The pixels of its worst patches are read again from the store or slide that the results record.
"""

import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import RUN_JSON
from wsi_pipeline.core.errors import WsiError
from wsi_pipeline.core.json_io import MAX_RECORD_BYTES, read_json
from wsi_pipeline.core.limits import limited_memory
from wsi_pipeline.core.patch_table import PatchBlock, PatchTable
from wsi_pipeline.evaluation.groups import Grouped
from wsi_pipeline.evaluation.labelled import LabelledResults, pool_slides
from wsi_pipeline.models.loading import describe_terms
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.store.manifest import is_product
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.training.counts import Counts
from wsi_pipeline.training.data import read_verified
from wsi_pipeline.training.evaluate import Compared, Metrics
from wsi_pipeline.training.metrics import Floats, Labels
from wsi_pipeline.training.report import (
    ReportContent,
    WorstPatch,
    describe_worst,
    pick_worst,
    write_report_page,
)

logger = logging.getLogger(__name__)


def write_evaluation_page(
    path: Path,
    labelled: LabelledResults,
    metrics: Metrics,
    counts: Counts,
    threshold_source: str,
    compared: Compared | None,
    notes: Sequence[str],
    grouped: Grouped | None = None,
) -> None:
    """Write the report of all labelled slides together."""
    count = len(labelled.slides)
    labels, probability, patients = pool_slides(labelled.assessed)
    worst, worst_note = _show_worst(labelled, labels, probability)
    content = ReportContent(
        title=f"{labelled.model_name} on {count} labelled slide{'s' if count > 1 else ''}",
        class_names=labelled.class_names,
        metrics=metrics,
        labels=labels,
        probability=probability,
        patients=patients,
        counts=counts,
        facts=_list_facts(labelled, metrics, threshold_source),
        worst=worst,
        worst_note=worst_note,
        is_leaky=labelled.is_leaky,
        comparison=compared,
        tables=() if grouped is None else (grouped.to_table(),),
        notes=notes,
    )
    write_report_page(path, content)


def _list_facts(
    labelled: LabelledResults, metrics: Metrics, threshold_source: str
) -> dict[str, str]:
    model = labelled.model
    patch = model.get("patch", {})
    known = sum(len(slide.labels) for slide in labelled.slides)
    return {
        "model": f"{model.get('architecture', '–')}, digest {model.get('digest', '–')}",
        "patches": f"{patch.get('side_px', '–')} px at {patch.get('mpp', '–')} µm/px",
        "classes": " and ".join(labelled.class_names),
        "terms of the model": describe_terms(labelled.terms.on_grid),
        "context": f"{labelled.slides[0].summary.context_um:g} µm",
        "threshold": f"{metrics.scores.threshold:.4g}: {threshold_source}",
        "slides": ", ".join(slide.slide_id for slide in labelled.slides),
        "labelled patches": (
            f"{known}, of which {known - metrics.scores.patches} were not assessed and are left out"
        ),
        "slides without labels": ", ".join(labelled.unlabelled) or "none",
    }


def _show_worst(
    labelled: LabelledResults, labels: Labels, probability: Floats
) -> tuple[list[WorstPatch], str]:
    """Return the most confidently wrong patches with images, and a note on those without."""
    sources = read_sources(labelled.path / RUN_JSON)
    starts = np.cumsum([0, *(len(slide.labels) for slide in labelled.assessed)])
    chosen = pick_worst(labels, probability)
    owners = np.searchsorted(starts, chosen, side="right") - 1
    images: dict[int, WorstPatch] = {}
    for owner in np.unique(owners):
        slide, places = labelled.assessed[owner], chosen[owners == owner]
        positions = slide.positions[places - starts[owner]]
        source = sources.get(slide.slide_id, "")
        block = _find_pixels([source, slide.table.slide.path], slide.table, positions)
        if block is None:
            continue
        names, patient = labelled.class_names, slide.table.patient_id
        for place, pixels, readable in zip(places, block.pixels, block.readable, strict=True):
            if readable:
                caption = describe_worst(labels[place], probability[place], names, patient)
                images[place] = WorstPatch(pixels, caption)
    note = (
        f"{len(chosen) - len(images)} more have no image: the slide or store that they came from is"
        " gone, changed or unreadable."
    )
    found = [images[place] for place in chosen if place in images]
    return found, "" if len(found) == len(chosen) else note


def read_sources(run_json: Path) -> dict[str, str]:
    """Return the source of each slide in the last run; nothing without a readable record."""
    try:
        outcomes = read_json(run_json, MAX_RECORD_BYTES)["outcomes"]
        return {str(outcome["slide_id"]): str(outcome["path"]) for outcome in outcomes}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _find_pixels(
    places: Sequence[str], table: PatchTable, positions: NDArray[np.int32]
) -> PatchBlock | None:
    """Return the patches at positions (n, 2) from the store or slide at one of the places.

    None where it is gone, changed or cannot be read.
    """
    for place in dict.fromkeys(places):
        try:
            if place and is_product(Path(place)):
                return _read_store(Path(place), table, positions)
            if place and Path(place).is_file():
                return _read_slide(Path(place), table, positions)
        except (WsiError, OSError, MemoryError) as error:
            logger.info("no pixels for the report: %s", error)
    return None


def _read_store(path: Path, table: PatchTable, positions: NDArray[np.int32]) -> PatchBlock | None:
    store = PatchStore(path)
    if (store.slide.fingerprint, store.grid) != (table.slide.fingerprint, table.grid):
        return None
    indices = {(row, col): index for index, (row, col) in enumerate(store.positions.tolist())}
    try:
        found = np.array([indices[row, col] for row, col in positions.tolist()])
    except KeyError:
        return None
    return PatchBlock(read_verified(store, found), store.readable[found])


def _read_slide(path: Path, table: PatchTable, positions: NDArray[np.int32]) -> PatchBlock | None:
    slide_mpp = table.slide.mpp if table.slide.mpp_source == "user" else None
    icc = table.grid.spec.icc
    opened = open_slide(path, table.slide.slide_id, slide_mpp, icc=icc)
    with limited_memory(), closing(opened) as reader:
        if reader.info.fingerprint != table.slide.fingerprint:
            return None
        return SlidePatches(reader, table.grid, positions, len(positions)).read_block(0)
