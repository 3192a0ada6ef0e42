"""Several servers: who is asked, who is let rest, and who must be one and the same."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from rerank_plugins import ConfigError, ModelLoadError, RerankTimeoutError, ScoringError
from rerank_plugins.options import Dialect
from rerank_plugins.scorers.remote.dialects import ROWS
from rerank_plugins.scorers.remote.health import (
    FIRST_REST_S,
    FRESH_S,
    LONGEST_REST_S,
    MOST_STRIKES,
    Fleet,
)
from rerank_plugins.scorers.remote.identity import Served
from rerank_plugins.scorers.remote.retries import MOST_SAVED, RetryBudget, wait_s
from tests.loopback_rerankers import UNREACHABLE, RerankServer, Stall, reset, running, status

if TYPE_CHECKING:
    from collections.abc import Callable

    from rerank_plugins import Reranker
    from tests.loopback_rerankers import Fault

    Connect = Callable[..., Reranker]
    Serve = Callable[..., RerankServer]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_one_with_the_fewest_requests_is_asked() -> None:
    fleet = Fleet(["a", "b", "c"], Clock())
    first, second, third = fleet.servers
    first.outstanding, third.outstanding = 3, 1

    assert fleet.choose() is second


def test_ties_go_around() -> None:
    fleet = Fleet(["a", "b", "c"], Clock())

    assert Counter(fleet.choose().address for _ in range(9)) == {"a": 3, "b": 3, "c": 3}


def test_one_that_was_tried_is_asked_again_only_where_there_is_no_other() -> None:
    fleet = Fleet(["a", "b"], Clock())
    first = fleet.choose()

    assert fleet.choose([first]) is not first
    assert fleet.choose(fleet.servers) in fleet.servers


def test_one_that_fails_rests_for_twice_as_long_each_time() -> None:
    clock = Clock()
    fleet = Fleet(["a", "b"], clock)
    failing, healthy = fleet.servers
    rests = []
    for _ in range(7):
        failing.failed(MOST_STRIKES, clock.now, "gone")
        rests.append(failing.resting_until - clock.now)
        assert {fleet.choose() for _ in range(4)} == {healthy}
        clock.now = failing.resting_until

    assert rests[:3] == [FIRST_REST_S, 2 * FIRST_REST_S, 4 * FIRST_REST_S]
    assert rests[-1] == LONGEST_REST_S
    failing.answered()
    failing.failed(MOST_STRIKES, clock.now, "gone")
    assert failing.resting_until - clock.now == FIRST_REST_S


def test_one_that_rested_is_probed_by_one_request_at_a_time() -> None:
    clock = Clock()
    fleet = Fleet(["a", "b"], clock)
    probed, healthy = fleet.servers
    probed.failed(MOST_STRIKES, clock.now, "gone")
    clock.now = probed.resting_until
    healthy.outstanding = 5

    assert fleet.choose() is probed
    probed.outstanding = 1
    assert fleet.choose() is healthy
    probed.outstanding = 0
    probed.answered()
    probed.outstanding = 1
    assert fleet.choose() is probed


def test_small_faults_count_only_in_a_row() -> None:
    clock = Clock()
    (server,) = Fleet(["a"], clock).servers
    for _ in range(5):
        server.failed(MOST_STRIKES // 2, clock.now, "reset")
        server.answered()
    assert server.ready(clock.now)

    server.failed(MOST_STRIKES // 2, clock.now, "reset")
    server.failed(MOST_STRIKES // 2, clock.now, "reset")
    assert not server.ready(clock.now)


def test_where_all_rest_the_one_that_is_back_first_is_asked() -> None:
    clock = Clock()
    fleet = Fleet(["a", "b"], clock)
    first, second = fleet.servers
    second.failed(MOST_STRIKES, clock.now, "gone")
    clock.now += 0.5
    first.failed(MOST_STRIKES, clock.now, "gone")

    assert fleet.choose() is second


def test_a_budget_of_retries_is_a_share_of_what_is_sent() -> None:
    clock = Clock()
    budget = RetryBudget(clock)
    spent = sum(budget.spend() for _ in range(100))
    assert spent == MOST_SAVED

    for _ in range(100):
        budget.earn()
    assert sum(budget.spend() for _ in range(100)) in (9, 10)
    clock.now += 2.0
    assert [budget.spend(), budget.spend()] == [True, False]
    clock.now += 10_000.0
    assert sum(budget.spend() for _ in range(100)) == MOST_SAVED


def test_waits_are_spread_and_never_shorter_than_asked_for() -> None:
    waits = [wait_s(2, None) for _ in range(200)]

    assert 0 <= min(waits) < 0.05
    assert 0.15 < max(waits) <= 0.2
    assert all(wait_s(50, 3.0) >= 3.0 for _ in range(20))
    assert max(wait_s(50, None) for _ in range(50)) <= 2.0


def test_several_servers_share_the_work(serve: Serve, connect: Connect) -> None:
    servers = [serve("infinity") for _ in range(2)]
    documents = [f"sea {n}" for n in range(64)]

    ranking = connect(*servers).rank("the river", documents)

    assert {each.index for each in ranking} == set(range(64))
    assert [len(each.asked[0].body["documents"]) for each in servers] == [32, 32]


def test_one_that_is_gone_is_replaced_by_the_other(connect: Connect, serve: Serve) -> None:
    staying, going = serve("infinity"), RerankServer("infinity")
    with running(going):
        reranker = connect(staying, going)
        reranker.warmup()

    for n in range(6):
        assert len(reranker.rank(f"query {n}", ["a", "b"])) == 2


def test_one_that_stalls_leaves_half_of_the_time_to_another(serve: Serve, connect: Connect) -> None:
    servers, stall = [serve("infinity") for _ in range(2)], Stall()
    reranker = connect(*servers)
    reranker.warmup()
    servers[0].always = stall

    # Whoever is asked first, all are answered in time.
    for n in range(3):
        assert len(reranker.rank(f"query {n}", ["a"], timeout_s=4)) == 1

    assert stall.entered.is_set()
    stall.over.set()


def test_one_that_is_away_at_the_opening_is_asked_once_it_is_back(
    serve: Serve, connect: Connect
) -> None:
    there, coming = serve("infinity"), RerankServer("infinity")
    with running(coming):
        pass
    reranker = connect(there, coming)
    reranker.warmup()

    with running(coming, int(coming.url.rpartition(":")[2])):
        n = 0
        while not coming.asked:
            n += 1
            assert len(reranker.rank(f"query {n}", [f"a {n}", f"b {n}"])) == 2
        # It said what it serves first.
        assert coming.requests[0].method == "GET"


def test_one_that_comes_back_as_another_model_is_not_asked(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    there, changing = serve("infinity"), RerankServer("infinity")
    with running(changing):
        reranker = connect(there, changing)
        reranker.warmup()
        changing.always = status(503)
        for n in range(4):
            reranker.rank(f"query {n}", ["a"])
        asked = len(changing.asked)
        introduced = changing.introductions
        changing.always, changing.model = None, "acme/another"
        n = 10
        while changing.introductions == introduced:
            n += 1
            assert len(reranker.rank(f"query {n}", ["a"])) == 1

    assert len(changing.asked) == asked
    assert "acme/another" in caplog.text


def test_servers_of_different_models_are_refused(serve: Serve, connect: Connect) -> None:
    servers = [serve("infinity", model=name) for name in ("acme/one", "acme/two")]

    with pytest.raises(ConfigError, match=r"would not answer alike.*acme/one.*acme/two"):
        connect(*servers).warmup()


def test_number_formats_make_servers_different(serve: Serve, connect: Connect) -> None:
    servers = [serve("tei", info={"model_dtype": name}) for name in ("float16", "float32")]

    with pytest.raises(ConfigError, match="would not answer alike"):
        connect(*servers).warmup()


def test_where_none_is_there_all_are_named(connect: Connect) -> None:
    with pytest.raises(ModelLoadError) as caught:
        connect(UNREACHABLE, "http://127.0.0.1:10").warmup()

    assert f"{UNREACHABLE}/info cannot be asked" in str(caught.value)
    assert "http://127.0.0.1:10/info cannot be asked" in str(caught.value)


def test_replicas_ask_at_the_same_time(serve: Serve, connect: Connect) -> None:
    import threading
    from concurrent.futures import ThreadPoolExecutor

    server = serve("infinity")
    reranker = connect(server, replicas=3, batch_tokens=1)
    reranker.warmup()
    server.gate = threading.Barrier(3)

    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(reranker.rank, f"query {n}", ["a"]) for n in range(3)]
        assert [len(call.result(60)) for call in calls] == [1, 1, 1]


def test_a_lone_server_that_changed_its_model_answers_nobody(
    serve: Serve, connect: Connect
) -> None:
    server = serve("infinity")
    reranker = connect(server)
    reranker.warmup()
    server.always = status(503)
    with pytest.raises(ScoringError):
        reranker.rank("query", ["a"])
    server.always, server.model = None, "acme/another"
    asked = len(server.asked)

    with pytest.raises(ScoringError, match=r"acme/another.*open a new reranker") as caught:
        reranker.rank("query", ["a"])

    assert not caught.value.retryable
    assert len(server.asked) == asked


@pytest.mark.parametrize("fault", [None, reset])
def test_a_model_that_is_replaced_between_two_requests_is_noticed(
    fault: Fault | None, serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rerank_plugins.scorers.remote import health

    if fault is None:
        monkeypatch.setattr(health, "FRESH_S", 0.0)
    server = serve("tei")
    reranker = connect(server)
    reranker.warmup()
    # A new process on the old port, as where a container is replaced; broken connections tell.
    server.model, server.logit = "acme/another", lambda _query, _document: 42.0
    server.faults.extend([fault] if fault else [])

    with pytest.raises(ScoringError, match=r"acme/another.*open a new reranker"):
        reranker.rank("query", ["a"])


def test_a_server_that_answers_and_no_longer_says_what_it_is_is_believed(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rerank_plugins.scorers.remote import health
    from tests import loopback_rerankers

    monkeypatch.setattr(health, "FRESH_S", 0.0)
    server = serve("tei")
    reranker = connect(server)
    reranker.warmup()
    introductions = server.introductions
    monkeypatch.setattr(loopback_rerankers, "introductions", lambda _: {})

    assert len(reranker.rank("query", ["a"])) == 1
    assert server.introductions > introductions


def test_one_request_at_a_time_asks_again_what_is_served() -> None:
    clock = Clock()
    (server,) = Fleet(["a"], clock).servers
    served = Served(ROWS[Dialect.TEI], "acme/ranker", "identity", 32)
    server.introduced(served, clock.now)
    assert not server.doubted(clock.now)

    clock.now += FRESH_S
    assert [server.doubted(clock.now) for _ in range(3)] == [True, False, False]


def test_callers_that_come_and_go_are_not_the_servers_fault(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server, stall = serve("infinity"), Stall()
    reranker = connect(server)
    reranker.warmup()
    server.always = stall

    for n in range(4):
        with pytest.raises(RerankTimeoutError):
            reranker.rank(f"query {n}", ["a"], timeout_s=0.2)
    stall.over.set()
    server.always = None

    assert len(reranker.rank("query", ["a"])) == 1
    assert "left alone" not in caplog.text
