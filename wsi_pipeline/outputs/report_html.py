"""report.html: one slide's map to look around in, in one file that opens anywhere and calls nowhere."""

import base64
import json
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape

from wsi_pipeline.core.choices import REPORT_HTML
from wsi_pipeline.outputs.result import SlideResult
from wsi_pipeline.outputs.view_json import describe_result, order_regions
from wsi_pipeline.slides.image_io import encode_jpeg
from wsi_pipeline.store.files import write_file

MAX_REGIONS = 500
CONTENT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
SCRIPTS = ("map_layer.js", "slide_view.js", "report.js")
STYLE = "slide_view.css"


def write_report(result: SlideResult, folder: Path) -> None:
    """The slide's thumbnail, map, regions and figures, with the script that draws them, in one page."""
    write_file(folder / REPORT_HTML, render_report(result).encode())


def render_report(result: SlideResult) -> str:
    """The page as HTML."""
    view = describe_result(result, order_regions(result.regions)[:MAX_REGIONS])
    view["overview"]["image"] = (
        "data:image/jpeg;base64,"
        + base64.b64encode(encode_jpeg(result.table.thumbnail.pixels)).decode()
    )
    environment = Environment(
        loader=PackageLoader("wsi_pipeline.outputs"), autoescape=select_autoescape()
    )
    return environment.get_template("report.html").render(
        slide=result.table.slide,
        summary=result.summary,
        policy=CONTENT_POLICY,
        style=read_web_file(STYLE),
        scripts=[read_web_file(name) for name in SCRIPTS],
        view=_script_safe(json.dumps(view, allow_nan=False)),
    )


def read_web_file(name: str) -> str:
    """A script or style sheet of ours."""
    return (resources.files("wsi_pipeline.outputs") / "web" / name).read_text(encoding="utf-8")


def _script_safe(text: str) -> str:
    """JSON that cannot end the script element that it stands in."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
