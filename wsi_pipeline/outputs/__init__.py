"""What people open: one file per format. A writer is one file and one line in WRITERS."""

from wsi_pipeline.outputs.heatmap_png import write_heatmap
from wsi_pipeline.outputs.overlay_png import write_overlay
from wsi_pipeline.outputs.report_html import write_report
from wsi_pipeline.outputs.result import SlideResult, Writer
from wsi_pipeline.outputs.summary_json import write_summary

__all__ = ["WRITERS", "SlideResult", "Writer"]

WRITERS: dict[str, Writer] = {
    "heatmap": write_heatmap,
    "overlay": write_overlay,
    "report": write_report,
    "summary": write_summary,
}
"""Everything that is written into a slide's folder besides its predictions."""
