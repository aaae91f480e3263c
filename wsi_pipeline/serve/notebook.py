"""Results in a notebook: the viewer of a slide in a cell, by a server that this process runs.

The server listens on this machine only. A frame of another site gets no cookie, so that the token
is in the path of the frame's address; both end with the process. Where no browser can reach the
server, the cell holds the self-contained report.
"""

import atexit
import html
import os
import secrets
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from wsi_pipeline.core.choices import REPORT_HTML
from wsi_pipeline.outputs.results import Results, Slide
from wsi_pipeline.outputs.results import open_results as open_folder

HEIGHT_PX = 700
HUB_PREFIX = "JUPYTERHUB_SERVICE_PREFIX"
"""Variable with the path of a user's notebook server on a JupyterHub."""
REMOTE = ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "SSH_CONNECTION", "VSCODE_AGENT_FOLDER")
"""Variables of kernels that run on another machine than the browser."""
FRAME = '<iframe {source} width="100%" height="{height}" style="border:1px solid #bbb"></iframe>'


@dataclass(frozen=True)
class Frame:
    """The output of a cell: a frame with the viewer, or with the report."""

    source: str
    """The attribute that says what the frame holds: `src="…"` or `srcdoc="…"`."""
    height: int

    def _repr_html_(self) -> str:
        return FRAME.format(source=self.source, height=self.height)


@dataclass(frozen=True, repr=False)
class NotebookSlide(Slide):
    """One slide's results, which a notebook can show."""

    def show(self, height: int = HEIGHT_PX, *, is_served: bool | None = None) -> Frame:
        """Return the viewer in a frame, or the report: the last line of a cell shows it.

        `is_served` says which; None: the viewer where the browser can reach this process, on the
        same machine or through a JupyterHub with jupyter-server-proxy. Raises StoreError.
        """
        prefix = find_prefix(os.environ)
        if (prefix is None and not is_served) or is_served is False:
            return Frame(f'sandbox="allow-scripts" srcdoc="{html.escape(self._report())}"', height)
        server = _serve(self.folder.resolve().parent, prefix, os.getpid())
        address = f"{server}/slides/{quote(self.folder.name, safe='')}"
        return Frame(f'src="{html.escape(address)}"', height)

    def _report(self) -> str:
        path = self.folder / REPORT_HTML
        return path.read_text(encoding="utf-8") if path.is_file() else self.render_report()


def open_results(results: Path) -> Results[NotebookSlide]:
    """Return every finished slide, by name. Raises StoreError for none, or a damaged one."""
    found = open_folder(results)
    return Results(NotebookSlide(slide.folder, slide.summary) for slide in found)


def find_prefix(environment: Mapping[str, str]) -> str | None:
    """Return the path below which the browser finds a port of this machine, "" for the port itself.

    None where it finds none. A path keeps its root on the way (`proxy/absolute`).
    """
    if HUB_PREFIX in environment:
        has_proxy = find_spec("jupyter_server_proxy") is not None
        return f"{environment[HUB_PREFIX].rstrip('/')}/proxy/absolute" if has_proxy else None
    return None if any(name in environment for name in REMOTE) else ""


@cache
def _serve(results: Path, prefix: str | None, _process: int) -> str:
    """Start the server of a results folder, once in a process; return its address for a frame."""
    import uvicorn

    from wsi_pipeline.serve.server import base_url, bind, configure
    from wsi_pipeline.serve.services import open_services
    from wsi_pipeline.serve.settings import ServeSettings

    with ExitStack() as opened:
        token = secrets.token_urlsafe(24)
        settings = ServeSettings(
            results=(results,), port=0, token=token, root_path=f"/{token}", is_embedded=True
        )
        listener = opened.enter_context(bind(settings))
        port = listener.getsockname()[1]
        path = f"{prefix}/{port}" if prefix else ""
        settings = replace(settings, port=port, root_path=f"{path}/{token}")
        services = opened.enter_context(open_services(settings))
        server = uvicorn.Server(configure(services))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        opened.callback(thread.join, 10)
        opened.callback(setattr, server, "should_exit", True)
        atexit.register(opened.pop_all().close)
    return settings.root_path if prefix else base_url(settings)
