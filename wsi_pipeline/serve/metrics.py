"""Figures for Prometheus: requests by what answers them (never by path, which holds slide names), tiles, decoding, jobs."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "wsi_requests",
            "Requests answered",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "wsi_request_seconds",
            "Time to answer",
            ["route"],
            registry=self.registry,
            buckets=BUCKETS_S,
        )
        self.patches = Counter(
            "wsi_predicted_patches", "Patches predicted on request", registry=self.registry
        )

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One request is answered."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A figure that is read whenever somebody asks."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def render(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)
