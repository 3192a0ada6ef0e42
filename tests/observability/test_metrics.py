"""What Prometheus is told, and that it is documented as it is."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rerank_plugins import (
    BatchEvent,
    ConfigError,
    LoadEvent,
    ModelLoadError,
    RequestEvent,
    Reranker,
    StageSeconds,
    SwitchEvent,
)
from rerank_plugins.metrics import PrometheusObserver
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.observability.conftest import Gated

DOCS = Path(__file__).resolve().parents[2] / "docs" / "observability.md"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def observer(registry: CollectorRegistry) -> PrometheusObserver:
    return PrometheusObserver(registry)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"rerank_plugins_{name}", labels)


WHO = {"model": "m", "scorer": "s"}


def request(outcome: str = "ok", **more: Any) -> RequestEvent:
    given: dict[str, Any] = {"pairs": 10, "cached": 4, "tokens": 60, "started_s": 0.0}
    return RequestEvent("m", "s", outcome, **{**given, "duration_s": 0.5, **more})


def test_a_request_is_counted_by_outcome(
    observer: PrometheusObserver, registry: CollectorRegistry
) -> None:
    observer.on_request(request())
    observer.on_request(request())
    observer.on_request(request("timeout", pairs=3, cached=0, tokens=7, duration_s=2.0))

    ok, late = {**WHO, "outcome": "ok"}, {**WHO, "outcome": "timeout"}
    assert value(registry, "requests_total", **ok) == 2
    assert value(registry, "pairs_total", **ok) == 20
    assert value(registry, "tokens_total", **ok) == 120
    assert value(registry, "requests_total", **late) == 1
    assert value(registry, "pairs_total", **late) == 3
    assert value(registry, "tokens_total", **late) == 7
    assert value(registry, "cache_hits_total", **WHO) == 8
    assert value(registry, "request_duration_seconds_sum", **late) == 2.0
    assert value(registry, "request_duration_seconds_count", **ok) == 2
    assert value(registry, "fallbacks_total", **WHO) is None


def test_a_fallback_is_counted_as_one(
    observer: PrometheusObserver, registry: CollectorRegistry
) -> None:
    observer.on_request(request("fallback"))

    assert value(registry, "fallbacks_total", **WHO) == 1


def test_stages_are_counted_where_a_call_came_to_them(
    observer: PrometheusObserver, registry: CollectorRegistry
) -> None:
    observer.on_request(request(stages=StageSeconds(clean=0.25, forward=2.0)))

    assert value(registry, "stage_duration_seconds_sum", **WHO, stage="clean") == 0.25
    assert value(registry, "stage_duration_seconds_sum", **WHO, stage="forward") == 2.0
    assert value(registry, "stage_duration_seconds_count", **WHO, stage="encode") is None


def test_a_batch_is_counted_in_pairs_tokens_padding_and_wait(
    observer: PrometheusObserver, registry: CollectorRegistry
) -> None:
    observer.on_batch(BatchEvent("m", "s", 0, 8, 100, 28, wait_s=0.5, duration_s=0.25))

    assert value(registry, "batch_pairs_sum", **WHO) == 8
    assert value(registry, "batch_tokens_sum", **WHO) == 100
    assert value(registry, "padding_tokens_total", **WHO) == 28
    assert value(registry, "queue_wait_seconds_sum", **WHO) == 0.5
    assert value(registry, "batch_duration_seconds_sum", **WHO, outcome="ok") == 0.25
    assert value(registry, "out_of_memory_total", **WHO) is None


@pytest.mark.parametrize(
    ("error", "outcome", "out_of_memory"),
    [("out_of_memory", "out_of_memory", 1), ("RuntimeError", "error", None)],
)
def test_a_batch_that_failed_is_counted_apart(
    error: str,
    outcome: str,
    out_of_memory: int | None,
    observer: PrometheusObserver,
    registry: CollectorRegistry,
) -> None:
    observer.on_batch(BatchEvent("m", "s", 0, 8, 100, 28, 0.5, 0.25, error))

    assert value(registry, "out_of_memory_total", **WHO) == out_of_memory
    assert value(registry, "batch_duration_seconds_count", **WHO, outcome=outcome) == 1
    assert value(registry, "batch_pairs_count", **WHO) is None


def test_loads_are_counted_by_success(
    observer: PrometheusObserver, registry: CollectorRegistry
) -> None:
    observer.on_load(LoadEvent("m", "s", 3.0))
    observer.on_load(LoadEvent("m", "", 1.0, "ModelLoadError"))

    assert value(registry, "model_load_seconds_sum", **WHO, outcome="ok") == 3.0
    failed = {"model": "m", "scorer": "", "outcome": "error"}
    assert value(registry, "model_load_seconds_count", **failed) == 1


def test_the_circuit_breaker_is_a_gauge(
    observer: PrometheusObserver, registry: CollectorRegistry
) -> None:
    states = []
    for state in ("open", "half_open", "closed"):
        observer.on_switch(SwitchEvent("m", state))
        states.append(value(registry, "circuit_breaker_open", model="m"))

    # While one caller probes, the others still fall back.
    assert states == [1, 1, 0]


def test_a_model_that_was_opened_anew_has_a_closed_circuit_breaker(
    observer: PrometheusObserver, registry: CollectorRegistry
) -> None:
    observer.on_switch(SwitchEvent("m", "open"))
    observer.on_load(LoadEvent("m", "", 1.0, "ModelLoadError"))
    assert value(registry, "circuit_breaker_open", model="m") == 1

    observer.on_load(LoadEvent("m", "scorer", 1.0))

    assert value(registry, "circuit_breaker_open", model="m") == 0


def test_a_worker_that_was_replaced_closes_no_circuit_breaker(
    observer: PrometheusObserver,
    registry: CollectorRegistry,
    open_reranker: Callable[..., tuple[Reranker, FakeScorer]],
) -> None:
    reranker, _ = open_reranker(observers=[observer])
    reranker._leases.primary.breaker.watch().fail(ModelLoadError("fake", "gone"))

    observer.on_load(LoadEvent("fake", "fake", 1.0))

    assert value(registry, "circuit_breaker_open", model="fake") == 1


async def test_queue_and_cache_are_read_at_the_time_of_a_scrape(
    observer: PrometheusObserver,
    registry: CollectorRegistry,
    gated: Gated,
    open_reranker: Callable[..., tuple[Reranker, FakeScorer]],
) -> None:
    reranker, _ = open_reranker(gated, observers=[observer])
    open_reranker(FakeScorer(name="unheard"))
    first = asyncio.create_task(reranker.arank("red fox", ["one"]))
    assert await asyncio.to_thread(gated.entered.wait, 30)
    second = asyncio.create_task(reranker.arank("red fox", ["two three"]))
    while not reranker.stats()["fake"].tokens_waiting:
        await asyncio.sleep(0.001)

    assert value(registry, "queue_tokens", model="fake") == 2
    gated.gate.set()
    await asyncio.gather(first, second)
    assert value(registry, "queue_tokens", model="fake") == 0
    assert value(registry, "cache_entries", model="fake") == 2
    assert value(registry, "cache_entries", model="unheard") is None
    reranker.close()
    assert value(registry, "cache_entries", model="fake") is None


def test_the_shared_cache_is_counted_at_a_scrape(
    observer: PrometheusObserver,
    registry: CollectorRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("diskcache")
    monkeypatch.setattr("rerank_plugins.tiers.shared.FLUSH_WAIT_S", 30.0)
    settings: dict[str, Any] = {"shared_cache": str(tmp_path), "shared_cache_timeout_s": 30}
    for hits in (0, 2):
        with Reranker(FakeScorer(), observers=[observer], **settings) as reranker:
            reranker.rank("red fox", ["one", "two"])
            assert value(registry, "shared_cache_hits_total", model="fake") == hits
            assert value(registry, "shared_cache_errors_total", model="fake") == 0
            assert value(registry, "shared_cache_skipped_total", model="fake") == 0
    assert value(registry, "cache_hits_total", model="fake", scorer="fake") == 2


def test_a_reranker_fills_the_metrics(
    observer: PrometheusObserver,
    registry: CollectorRegistry,
    open_reranker: Callable[..., tuple[Reranker, FakeScorer]],
) -> None:
    reranker, _ = open_reranker(observers=[observer])
    reranker.rank("red fox", ["a fox", "a red dog"])
    reranker.rank("red fox", ["a fox"])
    with (
        Reranker("/no/such/folder", observers=[observer]) as missing,
        pytest.raises(ModelLoadError),
    ):
        missing.rank("red fox", ["a fox"])

    who = {"model": "fake", "scorer": "fake"}
    assert value(registry, "requests_total", **who, outcome="ok") == 2
    assert value(registry, "pairs_total", **who, outcome="ok") == 3
    assert value(registry, "tokens_total", **who, outcome="ok") == 5
    assert value(registry, "cache_hits_total", **who) == 1
    assert value(registry, "batch_pairs_sum", **who) == 2
    assert value(registry, "batch_tokens_sum", **who) == 5
    assert value(registry, "padding_tokens_total", **who) == 1
    assert value(registry, "model_load_seconds_count", **who, outcome="ok") == 1
    lost = {"model": "/no/such/folder", "scorer": "", "outcome": "error"}
    assert value(registry, "model_load_seconds_count", **lost) == 1
    assert value(registry, "requests_total", **lost) == 1


def test_no_text_is_in_the_metrics(
    observer: PrometheusObserver,
    registry: CollectorRegistry,
    open_reranker: Callable[..., tuple[Reranker, FakeScorer]],
) -> None:
    reranker, _ = open_reranker(FakeScorer(poison="poison"), observers=[observer])
    reranker.rank("secretquery", ["secretdocument"])
    with pytest.raises(Exception, match="poison"):
        reranker.rank("secretquery", ["poison secretdocument"])

    page = generate_latest(registry).decode()
    assert "rerank_plugins_requests_total" in page
    assert "secret" not in page
    assert "poison" not in page


def test_a_second_observer_on_a_registry_is_refused_and_leaves_nothing(
    observer: PrometheusObserver, registry: CollectorRegistry
) -> None:
    before = generate_latest(registry)

    with pytest.raises(ConfigError, match="to every reranker, or take another registry"):
        PrometheusObserver(registry)

    assert generate_latest(registry) == before


def test_a_registry_where_one_name_is_taken_keeps_what_it_had(registry: CollectorRegistry) -> None:
    taken = Gauge("rerank_plugins_queue_tokens", "Somebody else's.", registry=registry)
    before = generate_latest(registry)
    with pytest.raises(ConfigError, match="queue_tokens"):
        PrometheusObserver(registry)
    assert generate_latest(registry) == before

    registry.unregister(taken)
    PrometheusObserver(registry)


def test_a_copy_is_the_same_and_a_pickle_is_that_of_its_process(
    observer: PrometheusObserver,
) -> None:
    assert copy.deepcopy(observer) is observer
    with pytest.raises(TypeError, match="registry of its own cannot be pickled"):
        pickle.dumps(observer)
    program = """
    import pickle
    from prometheus_client import REGISTRY
    from rerank_plugins import Reranker
    from rerank_plugins.metrics import PrometheusObserver

    observer = PrometheusObserver()
    dumped = pickle.dumps(Reranker("lexical", observers=[observer]))
    assert pickle.loads(dumped).config.observers[0] is observer
    print(dumped.hex())
    """
    other = """
    import pickle, sys
    from prometheus_client import REGISTRY

    reranker = pickle.loads(bytes.fromhex(sys.argv[1]))
    reranker.rank("red fox", ["a fox"])
    again = pickle.loads(bytes.fromhex(sys.argv[1]))
    assert again.config.observers[0] is reranker.config.observers[0]
    labels = {"model": "lexical", "scorer": "lexical", "outcome": "ok"}
    print(REGISTRY.get_sample_value("rerank_plugins_requests_total", labels))
    """
    dumped = run(program)
    assert run(other, dumped) == "1.0"


def run(program: str, *arguments: str, **environ: str) -> str:
    import os

    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environ,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_counters_and_histograms_of_several_processes_add_up(tmp_path: Path) -> None:
    program = """
    from rerank_plugins import Reranker
    from rerank_plugins.metrics import PrometheusObserver

    with Reranker("lexical", observers=[PrometheusObserver()]) as reranker:
        reranker.rank("red fox", ["a fox", "a dog"])
    """
    collect = """
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    print(generate_latest(registry).decode())
    """
    for _ in range(2):
        run(program, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))

    page = run(collect, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))

    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert found["rerank_plugins_pairs_total"] == 4
    assert found["rerank_plugins_request_duration_seconds_count"] == 2
    # What is read at the time of a scrape is no process's own file.
    assert "rerank_plugins_cache_entries" not in found


ROW = re.compile(
    r"^\| `(rerank_plugins_\w+)` \| (\w+) \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", re.MULTILINE
)


def test_the_table_of_the_docs_is_what_is_registered(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: dict[str, tuple[str, tuple[str, ...]]] = {}

    def remember(collector: Any) -> None:
        for family in collector.describe():
            suffix = "_total" if family.type == "counter" else ""
            labels = collector._labelnames if hasattr(collector, "_labelnames") else None
            labels = family._labelnames if labels is None else labels
            registered[family.name + suffix] = family.type, tuple(labels)

    monkeypatch.setattr(registry, "register", remember)
    PrometheusObserver(registry)

    documented = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)))
        for name, kind, _, labels in ROW.findall(DOCS.read_text(encoding="utf-8"))
    }
    assert documented == registered


def test_names_follow_the_conventions_of_prometheus() -> None:
    units = {name: unit.strip() for name, _, unit, _ in ROW.findall(DOCS.read_text("utf-8"))}

    assert units
    for name, unit in units.items():
        assert re.fullmatch(r"rerank_plugins_[a-z_]+", name)
        if unit in ("seconds", "bytes", "ratio"):
            assert name.endswith(f"_{unit}"), name
        assert "milli" not in name


def test_the_registry_of_the_process_is_the_default() -> None:
    program = """
    from prometheus_client import generate_latest
    from rerank_plugins.metrics import PrometheusObserver

    print("rerank_plugins" in generate_latest().decode())
    PrometheusObserver()
    print("rerank_plugins_requests" in generate_latest().decode())
    """
    assert run(program).split() == ["False", "True"]
