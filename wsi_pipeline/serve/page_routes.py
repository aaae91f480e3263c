"""HTML pages, their scripts and styles, health and metrics."""

import base64
import hashlib
import re
from importlib import resources
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, select_autoescape
from prometheus_client import generate_latest

from wsi_pipeline.outputs.pages import STYLE, VIEW_SCRIPTS, read_web_file
from wsi_pipeline.serve.auth import HEALTH_PATH, is_length
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.reviews import NO_REVIEWS
from wsi_pipeline.serve.root_path import root_of
from wsi_pipeline.serve.services import Here, NamedSlide, find_result

router = APIRouter(include_in_schema=False)
DOCS_FILES = "/static/docs"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_FORM_BYTES = 4096
MAX_FORM_FIELDS = 5


def load_web_files() -> dict[str, str]:
    """Return every script and style sheet by name."""
    folder = resources.files("wsi_pipeline.serve") / "web"
    own = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    return own | {name: read_web_file(name) for name in (*VIEW_SCRIPTS, STYLE)}


VIEWER_SCRIPTS = (
    *("address.js", *VIEW_SCRIPTS),
    *("tile_layer.js", "overview_map.js", "measure_tool.js", "draw_tool.js", "truth_layer.js"),
    *("corrections.js", "pieces_panel.js", "drawn_areas.js"),
    *("viewer_address.js", "viewer_keys.js", "viewer_panel.js", "viewer.js"),
)
"""Of the viewer, in the order in which its page needs them."""
WEB_FILES = load_web_files()
"""A table, so that no name in a request becomes a path."""
WEB_TYPES = {"js": "text/javascript", "css": "text/css"}
TEMPLATES = Environment(loader=PackageLoader("wsi_pipeline.serve"), autoescape=select_autoescape())


def render(request: Request, name: str, **values: object) -> HTMLResponse:
    """Return a page from its template, whose addresses begin with the root."""
    page = TEMPLATES.get_template(name).render(root=root_of(request), **values)
    return HTMLResponse(page)


@router.get("/")
def show_list(request: Request, services: Here) -> HTMLResponse:
    """Show the slide list."""
    return render(request, "list.html", runs=services.catalogue.runs)


@router.get("/slides/{slide_id}")
def show_viewer(request: Request, services: Here, entry: NamedSlide) -> HTMLResponse:
    """Show the viewer of one slide."""
    can_review = services.reviews is not None and bool(entry.results)
    return render(
        request,
        "viewer.html",
        slide_id=entry.slide_id,
        can_review=can_review,
        scripts=VIEWER_SCRIPTS,
    )


@router.get("/review/{run_id}/{slide_id}")
def show_review(request: Request, services: Here, run_id: str, entry: NamedSlide) -> HTMLResponse:
    """Show the page on which a slide's drawn patches are called positive or negative."""
    if services.reviews is None:
        raise Refusal(404, NO_REVIEWS)
    find_result(services, entry, run_id)
    return render(request, "review.html", run_id=run_id, slide_id=entry.slide_id)


@router.get("/static/{name}")
def send_web_file(name: str) -> Response:
    """Send a script or style sheet."""
    found = WEB_FILES.get(name)
    if found is None:
        raise Refusal(404, "no such file")
    return Response(found, media_type=WEB_TYPES[name.rpartition(".")[2]])


@router.get("/docs")
def show_docs(request: Request) -> HTMLResponse:
    """Show the REST endpoint, to read and to try out.

    The content policy names the page's one inline script by its hash.
    """
    files = root_of(request) + DOCS_FILES
    page = get_swagger_ui_html(
        openapi_url=f"{root_of(request)}/openapi.json",
        title="wsi serve",
        swagger_js_url=f"{files}/swagger-ui-bundle.js",
        swagger_css_url=f"{files}/swagger-ui.css",
        swagger_favicon_url=f"{files}/favicon.png",
    )
    scripts = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in scripts]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    page.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; img-src"
        " 'self' data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return page


@router.get("/enter")
async def ask_token(request: Request, services: Here, ticket: str | None = None) -> Response:
    """Ask for the token, or take the browser's ticket, once."""
    if ticket is not None and services.auth.use_ticket(ticket):
        return services.auth.let_in(request, services.settings.start_page)
    return _show_form(request, is_wrong=False)


@router.post("/enter")
async def take_token(request: Request, services: Here) -> Response:
    """Check the token that was typed in."""
    fields = await _read_form(request)
    if not services.auth.accepts(fields.get("token", [""])[0].strip()):
        page = _show_form(request, is_wrong=True)
        page.status_code = 401
        return page
    return services.auth.let_in(request, "/")


def _show_form(request: Request, is_wrong: bool) -> HTMLResponse:
    """Return the page that asks for the token.

    Without a referrer, browsers state "null" as the origin of what is sent from it.
    """
    page = render(request, "enter.html", is_wrong=is_wrong)
    page.headers["referrer-policy"] = "same-origin"
    return page


async def _read_form(request: Request) -> dict[str, list[str]]:
    """Return the fields of a short form.

    Anyone may send one, so every fault in it raises Refusal.
    """
    if not is_length(request.headers.get("content-length", ""), MAX_FORM_BYTES):
        raise Refusal(413, "no token is that long")
    content = (await request.body()).decode("latin-1")
    try:
        return parse_qs(content, max_num_fields=MAX_FORM_FIELDS)
    except ValueError as error:
        raise Refusal(400, "the form has one field, the token") from error


@router.get(HEALTH_PATH)
async def tell_health() -> dict[str, str]:
    """Answer that the server runs; needs no token and says nothing else."""
    # Async: where every thread is busy, it still answers.
    return {"status": "ok"}


@router.get("/metrics")
def tell_metrics(services: Here) -> Response:
    """Send the metrics for Prometheus."""
    return Response(generate_latest(services.metrics.registry), media_type=METRICS_TYPE)
