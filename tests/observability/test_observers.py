"""Who hears of what: each observer once, its own requests, the batches of its engines."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import (
    BatchEvent,
    LoadEvent,
    ModelLoadError,
    Observer,
    RequestEvent,
    RerankConfig,
    Reranker,
    ScoringError,
)
from rerank_plugins.events import SwitchEvent
from rerank_plugins.observing import Audience, tell
from rerank_plugins.testing import FakeScorer
from tests.observability.conftest import Gated, Seen

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Equal(Observer):
    """Equal to others of its kind, and not hashable."""

    events: list[object] = field(default_factory=list)

    def on_request(self, event: RequestEvent) -> None:
        self.events.append(event)


class Picklable(Observer):
    """What an observer of a user's module is."""


def test_a_load_a_batch_and_a_request_are_told_in_this_order(
    seen: Seen, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(observers=[seen])

    reranker.rank("red fox", ["a red fox", "a dog", "a red fox"])

    load, batch, request = seen.events
    assert isinstance(load, LoadEvent)
    assert (load.model, load.scorer, load.error) == ("fake", "fake", "")
    assert isinstance(batch, BatchEvent)
    assert (batch.model, batch.scorer, batch.replica, batch.error) == ("fake", "fake", 0, "")
    assert (batch.pairs, batch.tokens, batch.tokens_padded) == (2, 5, 1)
    assert isinstance(request, RequestEvent)
    assert (request.model, request.scorer, request.outcome) == ("fake", "fake", "ok")
    assert (request.pairs, request.cached, request.tokens, request.error) == (3, 0, 5, "")


def test_what_the_cache_answered_is_told_of_as_that(
    seen: Seen, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(observers=[seen])
    reranker.rank("red fox", ["a red fox"])

    reranker.rank("red fox", ["a red fox", "a dog"])

    assert [(e.pairs, e.cached, e.tokens) for e in seen.requests] == [(1, 0, 3), (2, 1, 2)]


def test_the_wait_of_a_batch_is_that_of_its_oldest_pair(
    seen: Seen,
    gated: Gated,
    rank_behind: Callable[..., None],
    open_reranker: Callable[..., tuple[Reranker, FakeScorer]],
) -> None:
    reranker, _ = open_reranker(gated, observers=[seen])
    rank_behind(reranker, "one", "two", pause_s=0.05, there=lambda stats: stats.tokens_waiting)

    one, two = seen.batches
    assert one.duration_s >= 0.05
    assert two.wait_s >= 0.05


def test_rerankers_of_one_engine_hear_of_its_batches_and_of_their_own_requests(
    seen: Seen, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    scorer, other = FakeScorer(), Seen()
    one, _ = open_reranker(scorer, observers=[seen])
    open_reranker(scorer, observers=[other])
    silent, _ = open_reranker(scorer)

    one.rank("red fox", ["one"])
    silent.rank("red fox", ["two"])

    assert len(seen.batches) == len(other.batches) == 2
    assert (len(seen.requests), len(other.requests)) == (1, 0)


def test_an_observer_that_several_rerankers_bring_hears_of_a_batch_once(
    seen: Seen, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    scorer = FakeScorer()
    one, _ = open_reranker(scorer, observers=[seen, seen])
    open_reranker(scorer, observers=[seen])

    one.rank("red fox", ["one"])

    assert (len(seen.batches), len(seen.requests)) == (1, 1)


def test_an_observer_leaves_an_engine_with_the_last_reranker_that_brought_it(
    seen: Seen, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    scorer = FakeScorer()
    silent, _ = open_reranker(scorer)
    one, _ = open_reranker(scorer, observers=[seen])
    two, _ = open_reranker(scorer, observers=[seen])

    one.close()
    silent.rank("red fox", ["one"])
    assert len(seen.batches) == 1
    two.close()
    silent.rank("red fox", ["two"])
    assert len(seen.batches) == 1


def test_observers_that_are_equal_are_two(
    open_reranker: Callable[..., tuple[Reranker, FakeScorer]],
) -> None:
    one, two = Equal(), Equal()
    assert one == two
    reranker, _ = open_reranker(observers=[one, two])

    reranker.rank("red fox", ["one"])

    assert len(one.events) == len(two.events) == 1


def test_an_engine_that_a_query_is_routed_to_is_heard_too(seen: Seen) -> None:
    with Reranker(
        FakeScorer(languages=frozenset({"en"})),
        observers=[seen],
        language_detector=lambda text: "de" if "fuchs" in text else "en",
    ) as reranker:
        reranker.score([("red fox", "fox"), ("roter fuchs", "fuchs")])

    assert {event.model for event in seen.batches} == {"fake", "lexical"}
    assert [event.scorer for event in seen.requests] == ["fake,lexical"]


def test_a_model_that_cannot_be_opened_is_told_of(seen: Seen) -> None:
    with Reranker("/no/such/folder", observers=[seen]) as reranker:
        with pytest.raises(ModelLoadError):
            reranker.rank("red fox", ["one"])
        with pytest.raises(ModelLoadError):
            reranker.rank("red fox", ["one"])

    assert [(e.model, e.scorer, e.error) for e in seen.loads] == [
        ("/no/such/folder", "", "ModelLoadError")
    ] * 2
    assert [e.outcome for e in seen.requests] == ["error"] * 2


def test_a_batch_that_raised_is_told_of_with_its_error(
    seen: Seen, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    reranker, _ = open_reranker(FakeScorer(poison="poison"), observers=[seen])

    with pytest.raises(ScoringError):
        reranker.rank("red fox", ["poison"])

    assert [(e.pairs, e.error) for e in seen.batches] == [(1, "RuntimeError")]


class Failing(Seen):
    """Raises in every method, after it has remembered."""

    def __init__(self, kind: type[BaseException] = RuntimeError) -> None:
        super().__init__()
        self._kind = kind

    def on_load(self, event: LoadEvent) -> None:
        super().on_load(event)
        raise self._kind

    def on_batch(self, event: BatchEvent) -> None:
        super().on_batch(event)
        raise self._kind

    def on_request(self, event: RequestEvent) -> None:
        super().on_request(event)
        raise self._kind


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, asyncio.CancelledError])
def test_an_observer_that_raises_is_logged_once_a_method_and_changes_nothing(
    kind: type[BaseException],
    seen: Seen,
    open_reranker: Callable[..., tuple[Reranker, FakeScorer]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = Failing(kind)
    reranker, _ = open_reranker(observers=[failing, seen])

    with caplog.at_level(logging.ERROR):
        for document in ("one", "two", "three"):
            assert len(reranker.rank("red fox", [document])) == 1

    assert len(failing.events) == len(seen.events) == 7
    assert [record.args[:2] for record in caplog.records if isinstance(record.args, tuple)] == [
        ("Failing", "on_load"),
        ("Failing", "on_batch"),
        ("Failing", "on_request"),
    ]


def test_each_failing_observer_is_logged_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    one, two = Failing(), Failing()
    event = LoadEvent("m", "s", 1.0)

    tell([one, two], event)
    tell([one, two], event)

    assert len(caplog.records) == 2


def test_a_keyboard_interrupt_is_not_an_observers_failure() -> None:
    with pytest.raises(KeyboardInterrupt):
        tell([Failing(KeyboardInterrupt)], LoadEvent("m", "s", 1.0))


def test_every_event_has_a_method_that_hears_it(seen: Seen) -> None:
    events = (
        LoadEvent("m", "s", 1.0),
        BatchEvent("m", "s", 0, 1, 1, 0, 0.0, 0.0),
        RequestEvent("m", "s", "ok", 1, 0, 1, 0.0, 0.0),
        SwitchEvent("m", "open"),
    )
    for event in events:
        tell([seen], event)
        # What is not overridden hears it too, and does nothing.
        tell([Observer()], event)

    assert seen.events == list(events)


def test_a_copy_and_a_pickle_of_a_reranker_bring_their_observers(seen: Seen) -> None:
    with Reranker(FakeScorer(), observers=[seen]) as reranker, copy.deepcopy(reranker) as copied:
        assert copied.config.observers[0] is seen
        copied.rank("red fox", ["one"])
        assert (len(seen.batches), len(seen.requests)) == (1, 1)
        assert copy.deepcopy(reranker.config).observers[0] is seen

    with (
        Reranker("lexical", observers=[Picklable()]) as named,
        pickle.loads(pickle.dumps(named)) as other,
    ):
        assert isinstance(other.config.observers[0], Picklable)


def test_only_observers_are_observers() -> None:
    with pytest.raises(ValueError, match="observers"):
        RerankConfig(observers=[print])


def test_an_observer_is_forgotten_with_its_rerankers(
    no_leaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest keeps what is logged, and with it the frames of what was raised.
    monkeypatch.setattr("rerank_plugins.observing.logger.disabled", True)
    failing = Failing()
    reranker = Reranker(FakeScorer(), observers=[failing])
    reranker.rank("red fox", ["one"])
    forgotten = weakref.ref(failing)
    del failing, reranker
    gc.collect()

    assert forgotten() is None


def test_where_nobody_listens_no_clock_is_made(
    monkeypatch: pytest.MonkeyPatch, open_reranker: Callable[..., tuple[Reranker, FakeScorer]]
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a clock was made")

    monkeypatch.setattr("rerank_plugins.reporting.StageClock", never)
    monkeypatch.setattr("rerank_plugins.watching.BatchEvent", never)
    reranker, _ = open_reranker()

    assert len(reranker.rank("red fox", ["one"])) == 1


def test_an_audience_knows_who_is_there() -> None:
    audience, one, two = Audience(), Equal(), Equal()
    assert not audience
    audience.join(1, (one,))
    audience.join(2, ())
    assert audience
    assert one in audience
    assert two not in audience
    audience.leave(1)
    audience.leave(2)
    assert not audience
