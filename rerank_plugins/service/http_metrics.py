"""Prometheus metrics of requests over HTTP; those of engines are `PrometheusObserver`'s."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge, Histogram

from rerank_plugins.metrics import PREFIX

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from rerank_plugins.service.access import Access

_SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0
)  # fmt: skip


class HttpMetrics:
    """Counts requests by path, dialect and status. No label holds what a client chose."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            f"{PREFIX}http_requests",
            "Requests over HTTP; 499 are those whose client hung up.",
            ("path", "dialect", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            f"{PREFIX}http_request_duration_seconds",
            "From a request's headers to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            f"{PREFIX}http_requests_in_flight",
            "Requests that are being answered.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def count(self, access: Access) -> None:
        """Count a request that has ended."""
        self._requests.labels(access.path, access.dialect, access.status).inc()
        self._seconds.labels(access.path).observe(access.seconds)


_MADE: weakref.WeakKeyDictionary[CollectorRegistry, HttpMetrics] = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


def metrics_on(registry: CollectorRegistry) -> HttpMetrics:
    """Return the metrics of *registry*: the services of a process share them."""
    with _MAKING:
        if registry not in _MADE:
            _MADE[registry] = HttpMetrics(registry)
        return _MADE[registry]
