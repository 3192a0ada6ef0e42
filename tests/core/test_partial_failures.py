"""Scorers that fail single pairs of a batch, and scorers that stop when nobody waits."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import QueueFullError, RerankTimeoutError, ScoringError
from rerank_plugins.protocols import takes_deadline
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rerank_plugins import Reranker

    Opener = Callable[..., tuple[Reranker, FakeScorer]]
    Until = Callable[[], float | None]


class Picky(FakeScorer):
    """Puts an error in the place of each document that it does not like."""

    error: Exception = ScoringError("not this one")

    def forward(self, pairs: Sequence[Any]) -> list[Any]:
        logits = super().forward(pairs)
        return [
            self.error if "bad" in pair.document else logit
            for pair, logit in zip(pairs, logits, strict=True)
        ]


def test_an_error_in_the_place_of_a_logit_fails_that_pair_alone(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(Picky())

    with pytest.raises(ScoringError, match=r"documents\[1\]: not this one"):
        reranker.rank("fox", ["a fox", "bad", "a dog"])

    assert len(scorer.batches) == 1
    assert all(each.cached for each in reranker.rank("fox", ["a fox", "a dog"]))
    stats = reranker.stats()["fake"]
    assert (stats.pairs_scored, stats.pairs_failed) == (2, 1)
    # What failed was not computed.
    assert stats.tokens_scored + stats.tokens_padded == 4


def test_where_all_pairs_of_a_batch_fail_it_is_not_halved(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(Picky())

    with pytest.raises(ScoringError):
        reranker.rank("fox", ["bad 1", "bad 2", "bad 3", "bad 4"])

    assert len(scorer.batches) == 1


def test_a_full_queue_elsewhere_is_a_full_queue(open_reranker: Opener) -> None:
    scorer = Picky()
    scorer.error = QueueFullError("busy", retry_after_s=7.5)
    reranker, _ = open_reranker(scorer)

    with pytest.raises(QueueFullError, match=r"documents\[0\]: busy") as caught:
        reranker.rank("fox", ["bad"])

    assert caught.value.retry_after_s == 7.5


def test_what_is_no_number_and_no_error_is_a_broken_contract(open_reranker: Opener) -> None:
    class Silly(FakeScorer):
        def forward(self, pairs: Sequence[Any]) -> list[Any]:
            return [None for _ in pairs]

    reranker, _ = open_reranker(Silly())

    with pytest.raises(ScoringError, match="forward gave object"):
        reranker.rank("fox", ["a", "b"])


class Patient(FakeScorer):
    """Waits for others, and gives up what is not there when nobody waits."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[float | None] = []
        self.entered = threading.Event()
        self.given_up = threading.Event()
        self.go_on = threading.Event()

    def forward(self, pairs: Sequence[Any], *, until: Until | None = None) -> list[Any]:
        assert until is not None
        self.told.append(until())
        self.entered.set()
        if "slow" in pairs[0].document and not self.given_up.is_set():
            deadline = until()
            while deadline is None or time.monotonic() < deadline:
                time.sleep(0.005)
                deadline = until()
            self.given_up.set()
            assert self.go_on.wait(15)
            return [RerankTimeoutError("given up") for _ in pairs]
        return super().forward(pairs)


def test_a_scorer_is_told_until_when_somebody_waits(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(Patient())
    assert isinstance(scorer, Patient)
    assert takes_deadline(scorer)
    assert not takes_deadline(FakeScorer())

    began = time.monotonic()
    reranker.rank("fox", ["a"], timeout_s=30)
    reranker.rank("fox", ["b"])

    first, second = scorer.told
    assert first is not None
    assert began + 25 < first < time.monotonic() + 30
    assert second is None


def test_who_comes_while_a_pair_is_given_up_gets_it_scored_again(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(Patient())
    assert isinstance(scorer, Patient)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(reranker.rank, "fox", ["slow fox"], timeout_s=0.2)
        assert scorer.given_up.wait(15)
        second = threads.submit(reranker.rank, "fox", ["slow fox"], timeout_s=60)
        while not reranker.stats()["fake"].pairs_joined:
            time.sleep(0.005)
        scorer.go_on.set()

        with pytest.raises(RerankTimeoutError):
            first.result(15)
        assert second.result(15)[0].logit == 1.0


def test_what_is_given_up_and_wanted_by_nobody_is_dropped(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(Patient())
    assert isinstance(scorer, Patient)
    scorer.go_on.set()

    with pytest.raises(RerankTimeoutError):
        reranker.rank("fox", ["slow fox"], timeout_s=0.2)
    assert scorer.given_up.wait(15)
    reranker.rank("fox", ["a"])

    stats = reranker.stats()["fake"]
    assert (stats.pairs_dropped, stats.pairs_failed) == (1, 0)


@pytest.mark.parametrize("told", [False, True])
def test_a_pair_that_is_given_up_while_somebody_waits_has_failed(
    open_reranker: Opener, *, told: bool
) -> None:
    class Impatient(FakeScorer):
        def forward(self, pairs: Sequence[Any]) -> list[Any]:
            super().forward(pairs)
            return [RerankTimeoutError("its own deadline") for _ in pairs]

    class Told(Impatient):
        def forward(self, pairs: Sequence[Any], *, until: Until | None = None) -> list[Any]:
            assert until is not None
            assert until() is None
            return super().forward(pairs)

    reranker, scorer = open_reranker(Told() if told else Impatient())

    with pytest.raises(ScoringError, match="its own deadline"):
        reranker.rank("fox", ["a"])

    assert len(scorer.batches) == 1
    assert reranker.stats()["fake"].workers_replaced == 0
