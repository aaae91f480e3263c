"""Settings and limits of a server."""

import ipaddress
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.limits import available_cores
from wsi_pipeline.core.serve_options import ServeOptions
from wsi_pipeline.counting.review import FIRST_WANTED
from wsi_pipeline.counting.review_file import check_reviewer
from wsi_pipeline.models.choice import ExternalModelTerms, read_terms
from wsi_pipeline.models.loading import find_model
from wsi_pipeline.runs.workers import choose_workers
from wsi_pipeline.scheduling import Workers

MIB = 1024 * 1024
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
SEGMENT = re.compile(r"(?:[A-Za-z0-9._~@:+=-]|%[0-9A-Fa-f]{2})+")
"""A segment of a root path: what may stand in addresses and in the Path of a cookie."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of requests; each is checked before a slide or an image is read."""

    tile_px: int = 256
    region_px: int = 16_000_000
    """Pixels of a slide's level that one tile may read."""
    upload_bytes: int = 32 * MIB
    images: int = 256
    """Images in one request."""
    decoded_px: int = 25_000_000
    """Pixels of all images of one request together, by their headers."""
    grid_patches: int = 20_000
    """Patches that all images of one request are cut into."""
    regions: int = 5_000
    read_s: float = 20.0
    """Seconds for one read or decoding; then its process is ended."""
    body_s: float = 60.0
    """Seconds in which a request's body must have arrived."""
    waiting_reads: int = 64
    """Reads that wait for a free decoding process; more are refused."""
    predictions: int = 4
    """Requests for predictions at a time; more are refused."""
    connections: int = 256
    """Requests with the token that are answered at a time; more are refused."""
    visits: int = 64
    """Requests without it (the form, scripts) at a time; /healthz is always answered."""
    waiting_heads: int = 256
    """Connections between two requests, or whose head is not whole; the oldest makes room."""
    head_s: float = 10.0
    """Seconds in which a request's head must have arrived."""
    answer_s: float = 60.0
    """Seconds in which a client must take what was sent, about 64 KiB at a time."""
    jobs: int = 16
    """Jobs that wait or run; more are refused."""
    slide_memory_bytes: int = 4096 * MIB
    """Address space of a process that reads slides."""
    upload_memory_bytes: int = 2048 * MIB
    """Address space of the process that decodes uploads."""
    cache_bytes: int = 256 * MIB
    """Tiles kept in memory."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; a limit must be above 0")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """One server."""

    results: tuple[Path, ...]
    """Results folders, shown side by side; jobs write to the first."""
    slides: Path | None = None
    model: Path | None = None
    terms: ExternalModelTerms = field(default_factory=ExternalModelTerms)
    """For an external model."""
    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    """Secret of every request; None: no token is needed, on the loopback only."""
    allowed_hosts: tuple[str, ...] = ()
    """Names of the server besides its own."""
    cors_origins: tuple[str, ...] = ()
    """Origins of other pages that may use the REST endpoint."""
    slide_mpp: float | None = None
    device: str = "auto"
    workers: Workers | None = None
    """Workers that run jobs; None: chosen as `wsi infer` does."""
    decoders: int = field(default_factory=available_cores)
    """Processes that read slides."""
    limits: Limits = field(default_factory=Limits)
    reviewer: str | None = None
    """Name under which answers are written; None: nothing is reviewed here."""
    review_patches: int = FIRST_WANTED
    """Patches that a new review asks about."""
    stores: tuple[Path, ...] = ()
    """Patch stores, shown to a reviewer where the slide's file is not here."""
    start_page: str = "/"
    """Page on which the browser's ticket ends."""
    root_path: str = ""
    """Path below which a proxy shows the server, without a slash at its end."""
    is_embedded: bool = False
    """The root path is the secret of every request, and pages may be in frames of other pages."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose X-Forwarded-Prefix is believed."""

    def __post_init__(self) -> None:
        if not self.results and self.slides is None:
            raise ConfigError("nothing to serve; give --results, or --slides, or both")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port {self.port} cannot be; give 0 (any free one) to 65535")
        if self.decoders < 1:
            raise ConfigError(f"{self.decoders} decoding processes cannot be; give 1 or more")
        if self.token is None and not self.is_loopback:
            raise ConfigError(
                f"host {self.host} is reachable from elsewhere; a token is needed there, leave out"
                " --no-token"
            )
        if self.is_embedded and (self.token is None or not self.root_path.endswith(self.token)):
            raise ConfigError("pages in frames need a root path that ends with the token")
        self._check_proxies()
        if self.reviewer is not None:
            try:
                check_reviewer(self.reviewer)
            except ValueError as error:
                raise ConfigError(f"{error}; give another --reviewer") from error
        if self.token == "":
            raise ConfigError("the token is empty; leave it out to have one made")
        if "*" in (*self.allowed_hosts, *self.cors_origins):
            raise ConfigError("'*' lets everybody in; name the hosts and origins that may call")

    def _check_proxies(self) -> None:
        try:
            if self.root_path != check_root_path(self.root_path):
                raise ValueError("it must not end with a slash")
        except ValueError as error:
            raise ConfigError(f"root path: {error}") from error
        for proxy in self.trusted_proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ConfigError(
                    f"trusted proxy {proxy!r}: not an address such as 127.0.0.1, nor a network"
                    " such as 10.0.0.0/8"
                ) from error

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach the server."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def host_names(self) -> frozenset[str]:
        """Names that the Host header may carry, in lower case and without a port."""
        named = {name.lower() for name in (*self.allowed_hosts, self.host)}
        return frozenset(named | LOOPBACK_NAMES) - {"0.0.0.0", "::"}


def check_root_path(text: str) -> str:
    """Return a root path without a slash at its end. Raises ValueError where it cannot be one."""
    root = text.rstrip("/")
    first, *segments = root.split("/")
    fits = all(
        SEGMENT.fullmatch(segment) and unquote(segment).strip(".") and "/" not in unquote(segment)
        for segment in segments
    )
    if first or not fits:
        raise ValueError(
            f"{text!r} is no path of an address; give one as the browser shows it, such as"
            " /user/name/proxy/8765"
        )
    return root


def read_settings(options: ServeOptions) -> ServeSettings:
    """Return the settings that options state. Raises ConfigError."""
    optional: dict[str, Any] = {} if options.has_token else {"token": None}
    optional |= {} if options.decoders is None else {"decoders": options.decoders}
    return ServeSettings(
        results=tuple(options.results),
        slides=options.slides,
        model=None if options.model is None else find_model(options.model),
        terms=read_terms(options),
        host=options.host,
        port=options.port,
        allowed_hosts=tuple(options.allow_host),
        cors_origins=tuple(options.cors_origin),
        root_path=options.root_path.rstrip("/"),
        trusted_proxies=tuple(options.trusted_proxy),
        slide_mpp=options.slide_mpp,
        device=options.device,
        workers=choose_workers(options, options.device) if options.model else None,
        limits=Limits(cache_bytes=options.cache_mb * MIB, upload_bytes=options.max_upload_mb * MIB),
        **optional,
    )
