"""What people open: one file per format. A writer is one file and one line in WRITERS."""

from wsi_pipeline.outputs.dicom import write_dicom
from wsi_pipeline.outputs.gallery_png import write_gallery
from wsi_pipeline.outputs.heatmap_png import write_heatmap
from wsi_pipeline.outputs.ome_tiff import write_ome_tiff
from wsi_pipeline.outputs.ome_zarr import write_ome_zarr
from wsi_pipeline.outputs.overlay_png import write_overlay
from wsi_pipeline.outputs.patches_csv import write_patches_csv
from wsi_pipeline.outputs.patches_geojson import write_patches_geojson
from wsi_pipeline.outputs.patches_parquet import write_patches_parquet
from wsi_pipeline.outputs.regions_csv import write_regions_csv
from wsi_pipeline.outputs.regions_geojson import write_regions_geojson
from wsi_pipeline.outputs.report_html import write_report
from wsi_pipeline.outputs.result import SlideResult, Writer
from wsi_pipeline.outputs.summary_json import write_summary

__all__ = ["WRITERS", "SlideResult", "Writer"]

WRITERS: dict[str, Writer] = {
    "heatmap": write_heatmap,
    "overlay": write_overlay,
    "gallery": write_gallery,
    "report": write_report,
    "summary": write_summary,
    "csv": write_patches_csv,
    "parquet": write_patches_parquet,
    "regions": write_regions_csv,
    "geojson": write_regions_geojson,
    "ome-zarr": write_ome_zarr,
    "ome-tiff": write_ome_tiff,
    "geojson-patches": write_patches_geojson,
    "dicom": write_dicom,
}
"""Everything that can be written into a slide's folder besides its predictions."""
