"""Prometheus metrics of rerankers: an observer that counts, and gauges that are read when asked."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import ConfigError, MissingExtraError
from rerank_plugins.events import Observer
from rerank_plugins.gpu_readings import read_gpus
from rerank_plugins.registry import ENGINES
from rerank_plugins.stages import STAGES

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ModuleNotFoundError as exc:
    if exc.name != "prometheus_client":
        raise
    raise MissingExtraError(
        package="prometheus_client", extra="metrics", needed_for="rerank_plugins.metrics"
    ) from exc

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rerank_plugins.events import BatchEvent, LoadEvent, RequestEvent, SwitchEvent

__all__ = ["PrometheusObserver"]

PREFIX: Final = "rerank_plugins_"

# From a cached request to a long one on a CPU; from a small model's batch to a large one's.
_SECONDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0
)  # fmt: skip
_LOAD_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_PAIRS: Final = tuple(float(2**n) for n in range(11))
_TOKENS: Final = tuple(float(2**n) for n in range(6, 18))


class PrometheusObserver(Observer):
    """Counts what happens in Prometheus metrics, on *registry* or on the process's own.

    One observer serves all rerankers of a process. Gauges of queues, caches and GPUs are read when
    the metrics are scraped. No label holds anything of a text.

    Raises:
        ConfigError: the registry holds these metrics already, as of another such observer.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._registry = REGISTRY if registry is None else registry
        self._requests = _counter("requests", "Calls that have ended.", "outcome")
        self._pairs = _counter("pairs", "Pairs that calls gave.", "outcome")
        self._tokens = _counter("tokens", "Tokens that calls encoded.", "outcome")
        self._hits = _counter("cache_hits", "Pairs that the pair cache answered.")
        self._fallbacks = _counter("fallbacks", "Calls that another scorer answered.")
        self._duration = _histogram("request_duration_seconds", "Calls.", _SECONDS, "outcome")
        self._stage = _histogram("stage_duration_seconds", "Stages of calls.", _SECONDS, "stage")
        self._queue_wait = _histogram(
            "queue_wait_seconds", "Wait of the oldest pair of a batch.", _SECONDS
        )
        self._forward = _histogram("batch_duration_seconds", "Forward passes.", _SECONDS, "outcome")
        self._batch_pairs = _histogram("batch_pairs", "Pairs in a batch.", _PAIRS)
        self._batch_tokens = _histogram(
            "batch_tokens", "Tokens computed in a batch, padding aside.", _TOKENS
        )
        self._padding = _counter("padding_tokens", "Padding computed beside the tokens.")
        self._out_of_memory = _counter("out_of_memory", "Batches that did not fit the device.")
        self._load = _histogram(
            "model_load_seconds", "Openings of models.", _LOAD_SECONDS, "outcome"
        )
        self._breaker = Gauge(
            f"{PREFIX}circuit_breaker_open",
            "1 while calls fall back without asking the model.",
            ("model",),
            registry=None,
            multiprocess_mode="livemax",
        )
        self._register()
        if self._registry is REGISTRY:
            _OF_THIS_PROCESS.append(self)

    def __reduce__(self) -> tuple[object, ...]:
        if self._registry is not REGISTRY:
            raise TypeError(
                "a PrometheusObserver of a registry of its own cannot be pickled; "
                "one of the process's registry can"
            )
        return _of_this_process, ()

    def on_request(self, event: RequestEvent) -> None:
        """Count a call and its stages."""
        who = event.model, event.scorer
        self._requests.labels(*who, event.outcome).inc()
        self._pairs.labels(*who, event.outcome).inc(event.pairs)
        self._tokens.labels(*who, event.outcome).inc(event.tokens)
        self._hits.labels(*who).inc(event.cached)
        if event.outcome == "fallback":
            self._fallbacks.labels(*who).inc()
        self._duration.labels(*who, event.outcome).observe(event.duration_s)
        for stage in STAGES:
            # A stage that a call did not come to would make the others' look short.
            if seconds := getattr(event.stages, stage):
                self._stage.labels(*who, stage).observe(seconds)

    def on_batch(self, event: BatchEvent) -> None:
        """Count a forward pass; sizes and waits only of those that gave logits."""
        who = event.model, event.scorer
        if event.error:
            outcome = "out_of_memory" if event.error == "out_of_memory" else "error"
            self._forward.labels(*who, outcome).observe(event.duration_s)
            if outcome == "out_of_memory":
                self._out_of_memory.labels(*who).inc()
            return
        self._forward.labels(*who, "ok").observe(event.duration_s)
        self._queue_wait.labels(*who).observe(event.wait_s)
        self._batch_pairs.labels(*who).observe(event.pairs)
        self._batch_tokens.labels(*who).observe(event.tokens)
        self._padding.labels(*who).inc(event.tokens_padded)

    def on_load(self, event: LoadEvent) -> None:
        """Count an opening; an engine that was opened anew has a circuit breaker of its own."""
        outcome = "error" if event.error else "ok"
        engines = [each for each in ENGINES.heard_by(self) if each.name == event.model]
        if not event.error and all(each.breaker.state == "closed" for each in engines):
            self._breaker.labels(event.model).set(0)
        self._load.labels(event.model, event.scorer, outcome).observe(event.duration_s)

    def on_switch(self, event: SwitchEvent) -> None:
        """Note the state of a circuit breaker."""
        self._breaker.labels(event.model).set(event.state != "closed")

    def _register(self) -> None:
        """Put all metrics on the registry, or none."""
        kinds = Counter, Histogram, Gauge
        mine: list[Collector] = [each for each in vars(self).values() if isinstance(each, kinds)]
        done: list[Collector] = []
        try:
            for collector in (*mine, _Gauges(self)):
                self._registry.register(collector)
                done.append(collector)
        except ValueError as exc:
            for collector in done:
                self._registry.unregister(collector)
            raise ConfigError(
                "registry: it holds metrics of these names already; give the PrometheusObserver "
                f"that made them to every reranker, or take another registry ({exc})"
            ) from exc


_OF_THIS_PROCESS: list[PrometheusObserver] = []
_MAKING = threading.Lock()


def _of_this_process() -> PrometheusObserver:
    """Return the observer of the process's own registry: what unpickles counts with the rest."""
    with _MAKING:
        return _OF_THIS_PROCESS[0] if _OF_THIS_PROCESS else PrometheusObserver()


_Family = GaugeMetricFamily | CounterMetricFamily


class _Gauges(Collector):
    """What is read at the time of a scrape: queues and caches of engines, memory of GPUs."""

    def __init__(self, observer: PrometheusObserver) -> None:
        self._observer = observer

    def describe(self) -> Sequence[_Family]:
        """Name the gauges, without reading anything."""
        return [*_engine_families().values(), *_gpu_gauges().values()]

    def collect(self) -> Iterator[_Family]:
        """Read the gauges; engines of one model, which settings may set apart, are added up."""
        families = _engine_families()
        sums: dict[tuple[str, str], int] = {}
        for engine in ENGINES.heard_by(self._observer):
            stats = engine.stats()
            for field in families:
                sums[field, engine.name] = sums.get((field, engine.name), 0) + getattr(stats, field)
        for (field, model), total in sums.items():
            families[field].add_metric([model], total)
        yield from families.values()
        gauges = _gpu_gauges()
        for reading in read_gpus():
            for name, value in reading.values.items():
                gauges[name].add_metric([reading.device], value)
        yield from gauges.values()


def _engine_families() -> dict[str, _Family]:
    """Return what is read of engines, by field of `EngineStats`."""
    return {
        field: family(f"{PREFIX}{name}", text, labels=("model",))
        for field, family, name, text in (
            ("tokens_waiting", GaugeMetricFamily, "queue_tokens", "Tokens that wait in the queue."),
            ("cache_entries", GaugeMetricFamily, "cache_entries", "Pairs that the cache holds."),
            ("shared_hits", CounterMetricFamily, "shared_cache_hits", "Pairs that it answered."),
            ("shared_errors", CounterMetricFamily, "shared_cache_errors", "Times that it failed."),
            (
                "shared_skipped",
                CounterMetricFamily,
                "shared_cache_skipped",
                "Pairs that were scored or dropped without it.",
            ),
        )
    }


def _gpu_gauges() -> dict[str, GaugeMetricFamily]:
    return {
        name: GaugeMetricFamily(f"{PREFIX}{name}", text, labels=("device",))
        for name, text in (
            ("device_memory_used_bytes", "Memory of the GPU in use, by whomever."),
            ("device_memory_total_bytes", "Memory of the GPU."),
            ("device_utilization_ratio", "Share of the last moment in which the GPU computed."),
        )
    }


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"{PREFIX}{name}", text, ("model", "scorer", *labels), registry=None)


def _histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
    return Histogram(
        f"{PREFIX}{name}", text, ("model", "scorer", *labels), registry=None, buckets=buckets
    )
