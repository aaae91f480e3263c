"""Templates, scripts and style sheets of HTML pages."""

from functools import cache
from importlib import resources
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, Template, select_autoescape

CONTENT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
VIEW_SCRIPTS = (
    *("colours.js", "map_layer.js", "view_marks.js", "view_input.js", "slide_view.js"),
    "pieces_layer.js",
)
"""Shared with the viewer of `serve`, in the order in which a page needs them."""
STYLE = "slide_view.css"


@cache
def open_template(name: str) -> Template:
    """Return a template of this package; to compile it takes four times as long as to fill it in.

    The filter `path` quotes a name for a link.
    """
    environment = Environment(
        loader=PackageLoader("wsi_pipeline.outputs"), autoescape=select_autoescape()
    )
    environment.filters["path"] = quote
    return environment.get_template(name)


@cache
def read_web_file(name: str) -> str:
    """Return a script or style sheet of this package."""
    return (resources.files("wsi_pipeline.outputs") / "web" / name).read_text(encoding="utf-8")


def script_safe(text: str) -> str:
    """Return JSON that cannot end the script element that it stands in."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
