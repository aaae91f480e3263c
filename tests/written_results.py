"""Results of a slide, written from probabilities that a test names."""

from pathlib import Path

import numpy as np

from tests.builders import make_table, write_probabilities
from wsi_pipeline.core.calibration import ModelTerms
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.outputs import View
from wsi_pipeline.stages.aggregate import publish
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.predictions import prepare_predictions

NAN = float("nan")
FORMATS = (
    "summary",
    "csv",
    "parquet",
    "regions",
    "geojson",
    "ome-zarr",
    "ome-tiff",
    "geojson-patches",
)
"""All but pictures, which tests/outputs/test_outputs.py opens, and DICOM, which has its own tests.
"""
CELLS = [(0, 0), (0, 1), (1, 2), (2, 2), (3, 4), (3, 3)]
CASES = {
    "mixed": [0.9, 0.1, NAN, 0.6, 0.7, 0.5],
    "nothing positive": [0.1, 0.2, 0.0, 0.3, 0.4, 0.2],
    "everything positive": [1.0, 1.0, 0.9, 0.8, 0.7, 0.6],
    "all unreadable": [NAN] * 6,
    "one patch": [0.7],
    "no patches": [],
}


def write_result(
    folder: Path,
    probability: list[float],
    *,
    table: PatchTable | None = None,
    view: View | None = None,
    terms: ModelTerms | None = None,
) -> SlideSummary:
    """A slide's folder of patches of 50 px at 4 µm/px, 0.04 mm² each, on a grid of 4 × 5."""
    table = table or make_table(CELLS[: len(probability)], mpp=4.0, block_size=10, rows=4, cols=5)
    staging = Staging(folder, {"source": "test"})
    card = {
        "terms": (terms or ModelTerms()).to_json(),
        "digest": "d" * 64,
        "class_names": ["non, tumour", "tumour"],
    }
    prepare_predictions(staging, table, {"model": card})
    if probability:
        write_probabilities(staging, table, 0, np.array(probability, dtype=np.float32))
    return publish(staging, view or View(FORMATS), None, folder)
