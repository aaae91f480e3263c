"""regions.csv: a row for every positive region."""

from pathlib import Path

from wsi_pipeline.outputs.result import SlideResult
from wsi_pipeline.outputs.run_files import write_csv

FILE_NAME = "regions.csv"
COLUMNS = (
    "region", "patches", "area_mm2", "mean_probability", "max_probability",
    "x0_l0", "y0_l0", "x1_l0", "y1_l0", "peak_x_l0", "peak_y_l0", "peak_x_um", "peak_y_um",
)  # fmt: skip


def write_regions_csv(result: SlideResult, folder: Path) -> None:
    """Write a row per region, largest first; positions in level-0 pixels and µm."""
    mpp = result.table.slide.mpp
    rows = (
        [
            region.number,
            region.patches,
            region.area_mm2,
            region.mean_probability,
            region.max_probability,
            *region.bounds_l0,
            *region.peak_xy_l0,
            *(value * mpp for value in region.peak_xy_l0),
        ]
        for region in result.regions
    )
    write_csv(folder / FILE_NAME, COLUMNS, rows)
