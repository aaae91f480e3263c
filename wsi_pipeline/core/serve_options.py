"""Options of `wsi serve`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.core.options import (
    DeviceOptions,
    ExternalModelOptions,
    SlideScaleOptions,
    WorkerOptions,
    option,
)

# An option takes two or three lines, not one for each of its facts.
# fmt: off


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ExternalModelOptions, SlideScaleOptions, DeviceOptions, WorkerOptions):
    """Options of `wsi serve`."""

    results: Sequence[Path] = option(
        (), None, "Results of `wsi infer`; two of them can be compared.",
        metavar="DIR", path="folder")
    slides: Path | None = option(
        None, None, "Where the slides are. [default: where the results say]",
        metavar="DIR", path="folder")
    model: Path | None = option(
        None, None, "A model, as of `wsi infer`: predicts for images that are sent, and for jobs.",
        flags=("-m",), path="unchecked")
    host: str = option(
        "127.0.0.1", None, "Address to listen on; this machine only unless said otherwise.")
    port: int = option(8765, None, "Port to listen on; 0: any free one.", low=0, high=65535)
    has_token: bool = option(
        True, None, "Ask for the random token that is printed; without: this machine only.",
        flag="--token")
    allow_host: Sequence[str] = option(
        (), None, "A further host name by which the server may be called.", metavar="NAME")
    cors_origin: Sequence[str] = option(
        (), None, "Origin of another page that may call the REST endpoint.", metavar="URL")
    root_path: str = option(
        "", None, "Path below which a proxy shows the server, as /user/name/proxy/8765 of a"
        " JupyterHub.", metavar="PATH")
    trusted_proxy: Sequence[str] = option(
        (), None, "Address or network of a proxy whose X-Forwarded-Prefix is believed.",
        metavar="ADDRESS")
    cache_mb: int = option(256, None, "Memory for tiles, in MiB.", low=1)
    decoders: int | None = option(
        None, None, "Processes that read slides. [default: one per core]", low=1)
    max_upload_mb: int = option(32, None, "Largest request that is taken, in MiB.", low=1)
