"""What a caller of the reranker may rely on, one request at a time."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import (
    ClosedError,
    InputError,
    InputTypeError,
    Ranking,
    Reranker,
    ScoringError,
)
from rerank_plugins.ranking import BLANK_LOGIT
from rerank_plugins.registry import ENGINES
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable

    Opener = Callable[..., tuple[Reranker, FakeScorer]]


def test_documents_come_best_first_with_their_own_index_and_text(open_reranker: Opener) -> None:
    reranker, _ = open_reranker()
    documents = ["a Fox", "nothing", "the red fox", "red"]

    ranking = reranker.rank("red fox", documents)

    assert [document.index for document in ranking] == [2, 0, 3, 1]
    assert [document.text for document in ranking] == [documents[d.index] for d in ranking]
    assert [document.logit for document in ranking] == [2.0, 1.0, 1.0, 0.0]
    assert (ranking.query, ranking.scorer, ranking.activation) == ("red fox", "fake", "sigmoid")


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 1000])
def test_any_number_of_documents_takes_the_same_path(open_reranker: Opener, count: int) -> None:
    reranker, scorer = open_reranker(FakeScorer(lambda _, document: float(len(document))))
    documents = ["x" * (1 + i * 7919 % count) for i in range(count)]

    ranking = reranker.rank("q", documents)

    assert [d.index for d in ranking] == sorted(range(count), key=lambda i: (-len(documents[i]), i))
    assert sum(scorer.pairs_scored.values()) == len(set(documents))


def test_scores_are_python_floats_and_valid_json(open_reranker: Opener) -> None:
    reranker, _ = open_reranker()

    ranking = reranker.rank("a", ["a", "", "b"])

    assert all(type(d.score) is float and type(d.logit) is float for d in ranking)
    json.dumps([asdict(document) for document in ranking], allow_nan=False)


def test_blank_documents_come_last_and_are_never_scored(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(FakeScorer(lambda *_: -1000.0, activation="logit"))

    ranking = reranker.rank("q", ["", "text", " \n\t", "\u200b"])

    assert [document.index for document in ranking] == [1, 0, 2, 3]
    assert [document.logit for document in ranking][1:] == [BLANK_LOGIT] * 3
    assert sum(scorer.pairs_scored.values()) == 1


def test_nothing_but_blank_documents(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker()

    assert [document.index for document in reranker.rank("q", ["", " "])] == [0, 1]
    assert not scorer.batches


def test_a_document_beyond_the_limit_is_marked_cached_or_not(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(FakeScorer(max_words=3))
    documents = ["a b c", "a b c d"]

    fresh, again = (reranker.rank("a", documents) for _ in range(2))

    assert [d.truncated for d in fresh] == [d.truncated for d in again] == [False, True]
    assert [[d.cached for d in ranking] for ranking in (fresh, again)] == [[False] * 2, [True] * 2]


def test_the_tokens_of_a_ranking_count_each_scored_pair_once_cached_or_not(
    open_reranker: Opener,
) -> None:
    reranker, scorer = open_reranker(near_duplicates=1.0)
    documents = ["red", "the red fox", "", "red"]
    first = reranker.rank("red fox", documents, top_n=1)
    pairs = scorer.encode("red fox", ["red", "the red fox"])

    again = reranker.rank("red fox", documents)

    assert first.tokens == again.tokens == sum(pair.tokens for pair in pairs)
    assert all(document.cached for document in again if document.text)


def test_top_n_threshold_and_min_results(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(activation="logit")
    documents = ["x", "a", "a b", "a b c"]

    def kept(**keep: Any) -> list[int]:
        return [document.index for document in reranker.rank("a b c", documents, **keep)]

    assert kept(top_n=2) == [3, 2]
    assert kept(top_n=99) == [3, 2, 1, 0]
    assert kept(score_threshold=2) == [3, 2]
    assert kept(score_threshold=9) == []
    assert kept(score_threshold=9, min_results=3) == [3, 2, 1]
    assert kept(score_threshold=9, min_results=3, top_n=1) == [3]


def test_score_keeps_input_order_across_queries(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(activation="logit")
    pairs = [("a", "a"), ("b c", "b c"), ("a", "x"), ("b c", "b"), ("a", " ")]

    assert reranker.score(pairs) == [1.0, 2.0, 0.0, 1.0, BLANK_LOGIT]
    assert reranker.score([]) == []


def test_score_and_rank_share_the_cache(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker()
    reranker.rank("a", ["a", "b"])
    reranker.score([("a", "b"), ("a", "a")])

    assert set(scorer.pairs_scored.values()) == {1}


def test_the_given_sequence_is_not_touched(open_reranker: Opener) -> None:
    reranker, _ = open_reranker()
    documents = ["  a\u3000b ", "c", ""]

    ranking = reranker.rank("a", documents)

    assert documents == ["  a\u3000b ", "c", ""]
    assert ranking[0].text is documents[0]
    assert reranker.rank("a", tuple(documents)).documents[0].text is documents[0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: r.rank(None, ["a"]), InputTypeError, "query must be str, got NoneType"),
        (lambda r: r.rank("", ["a"]), InputError, "query is blank"),
        (lambda r: r.rank(" \n", ["a"]), InputError, "query is blank"),
        (lambda r: r.rank("\u200b", ["a"]), InputError, "query, once cleaned, is blank"),
        (lambda r: r.rank("a\ud800", ["a"]), InputError, r"query holds the lone surrogate U\+D800"),
        (lambda r: r.rank("q", None), InputTypeError, "documents must be a sequence of str"),
        (lambda r: r.rank("q", "text"), InputTypeError, "documents .* got one str"),
        (lambda r: r.rank("q", b"text"), InputTypeError, "documents .* got one bytes"),
        (lambda r: r.rank("q", {"a": 1}), InputTypeError, "got dict"),
        (lambda r: r.rank("q", ["a", None]), InputTypeError, r"documents\[1\] must be str"),
        (lambda r: r.rank("q", ["a", b"b"]), InputTypeError, r"documents\[1\] .* got bytes"),
        (lambda r: r.rank("q", ["a", "b", "\udc80x"]), InputError, r"documents\[2\] .*U\+DC80"),
        (lambda r: r.rank("q", ["a"], top_n=0), InputError, "top_n must be .* at least 1"),
        (lambda r: r.rank("q", ["a"], top_n=True), InputError, "top_n must be .* got True"),
        (lambda r: r.rank("q", ["a"], top_n=1.5), InputError, "top_n must be .* got 1.5"),
        (lambda r: r.rank("q", ["a"], score_threshold=float("nan")), InputError, "score_threshold"),
        (lambda r: r.rank("q", ["a"], score_threshold="1"), InputError, "score_threshold"),
        (lambda r: r.rank("q", ["a"], min_results=-1), InputError, "min_results"),
        (lambda r: r.rank("q", ["a"], timeout_s=0), InputError, "timeout_s must be a number"),
        (lambda r: r.score("ab"), InputTypeError, "pairs must be a sequence"),
        (lambda r: r.score(["ab"]), InputTypeError, r"pairs\[0\] must be \(query, document\)"),
        (lambda r: r.score([("a", "b"), ("a",)]), InputTypeError, r"pairs\[1\] must be"),
        (lambda r: r.score([("a", 1)]), InputTypeError, r"pairs\[0\] must be str, got int"),
        (lambda r: r.score([("", "a")]), InputError, r"pairs\[0\]\[0\] is blank"),
    ],
)
def test_bad_input_is_named_and_nothing_is_scored(
    open_reranker: Opener,
    call: Callable[[Reranker], object],
    error: type[Exception],
    message: str,
) -> None:
    reranker, scorer = open_reranker()

    with pytest.raises(error, match=message):
        call(reranker)
    assert not scorer.batches
    assert len(reranker.rank("q", ["still", "alive"])) == 2


def test_one_bad_document_fails_its_request_and_no_other(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(FakeScorer(poison="bad"))

    with pytest.raises(ScoringError, match=r"fake failed on documents\[2\]: RuntimeError: .*bad"):
        reranker.rank("q", ["good", "fine", "bad", "well"])

    assert len(reranker.rank("q", ["good", "fine", "well"])) == 3
    assert max(scorer.pairs_scored.values()) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_logit_that_is_no_number_is_an_error_not_a_rank(
    open_reranker: Opener, value: float
) -> None:
    reranker, _ = open_reranker(FakeScorer(lambda _, d: value if d == "odd" else 1.0))

    with pytest.raises(ScoringError, match=r"documents\[1\]: the logit is"):
        reranker.rank("q", ["even", "odd"])
    assert reranker.stats()["fake"].pairs_failed == 1


def test_a_scorer_that_answers_for_too_few_pairs_is_an_error(open_reranker: Opener) -> None:
    class Short(FakeScorer):
        def forward(self, pairs: Any) -> list[float]:
            return super().forward(pairs)[1:]

    reranker, _ = open_reranker(Short())

    with pytest.raises(ScoringError, match="shape"):
        reranker.rank("q", ["a", "b"])


def test_an_encoder_that_fails_on_one_document_harms_no_other(open_reranker: Opener) -> None:
    class Picky(FakeScorer):
        def encode(self, query: str, documents: Any) -> Any:
            if "odd" in documents:
                raise KeyError("odd")
            return super().encode(query, documents)

    reranker, scorer = open_reranker(Picky())

    with pytest.raises(ScoringError, match=r"could not encode documents\[1\]: KeyError"):
        reranker.rank("q", ["a", "odd", "b"])
    assert len(reranker.rank("q", ["a", "b"])) == 2
    assert set(scorer.pairs_scored.values()) == {1}


def test_the_cache_can_be_turned_off_and_cleared(open_reranker: Opener) -> None:
    cacheless, scorer = open_reranker(cache_entries=0)
    for _ in range(2):
        cacheless.rank("q", ["a", "a"])
    assert scorer.pairs_scored == {("q", "a"): 2}

    caching, scorer = open_reranker()
    caching.rank("q", ["a"])
    caching.clear_cache()
    caching.rank("q", ["a"])
    assert scorer.pairs_scored == {("q", "a"): 2}


def test_the_identity_names_the_scorer_its_cleaning_and_its_instruction(
    open_reranker: Opener,
) -> None:
    scorer = FakeScorer(name="mine", max_words=7, instruction="find facts")
    reranker, _ = open_reranker(scorer)
    others = [
        open_reranker(scorer, **settings)[0]
        for settings in ({"normalizer": None}, {"instruction": "find opinions"})
    ]

    assert reranker.identity.startswith(scorer.identity)
    assert len({reranker.identity, *(other.identity for other in others)}) == 3
    reranker.close()
    with pytest.raises(ClosedError):
        _ = reranker.identity


def test_rerankers_of_one_scorer_share_its_engine_and_the_last_closes_it(no_leaks: None) -> None:
    scorer = FakeScorer()
    first, second = Reranker(scorer), Reranker(scorer)
    first.rank("q", ["a"])

    assert second.rank("q", ["a"])[0].cached
    first.close()
    assert not scorer.closed
    assert len(second.rank("q", ["b"])) == 1
    second.close()
    assert scorer.closed


def test_equal_settings_share_an_engine_and_others_do_not(no_leaks: None) -> None:
    before = len(ENGINES)
    with Reranker("lexical"), Reranker("lexical", activation="logit", timeout_s=9):
        # What acts around the engine does not make another one.
        assert len(ENGINES) == before + 1
        with Reranker("lexical", cache_entries=9), Reranker(backend="lexical"):
            assert len(ENGINES) == before + 2


def test_a_copy_shares_the_engine_and_lives_on_alone(no_leaks: None) -> None:
    before = len(ENGINES)
    original = Reranker("lexical", cache_entries=11)
    twins = [copy.deepcopy(original), pickle.loads(pickle.dumps(original)), copy.copy(original)]

    assert [twin.config for twin in twins] == [original.config] * 3
    assert len(ENGINES) == before + 1
    original.close()
    assert len(ENGINES) == before + 1
    for twin in twins:
        twin.close()
    assert len(ENGINES) == before


def test_a_forgotten_reranker_frees_its_scorer(no_leaks: None) -> None:
    scorer = FakeScorer()
    Reranker(scorer).rank("q", ["a"])
    gc.collect()

    assert len([engine for engine in ENGINES._shared if "own scorer" in str(engine)]) == 0


def test_a_closed_reranker_says_so(no_leaks: None) -> None:
    scorer = FakeScorer()
    reranker = Reranker(scorer)
    reranker.close()
    reranker.close()

    for call in (lambda: reranker.rank("q", ["a"]), lambda: reranker.score([("q", "a")])):
        with pytest.raises(ClosedError, match="make a new one"):
            call()
    assert reranker.stats() == {}


def test_a_failed_opening_is_reported_to_each_caller_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = []

    def failing(config: object) -> FakeScorer:
        attempts.append(config)
        if len(attempts) < 3:
            raise ScoringError("not yet")
        return FakeScorer()

    monkeypatch.setattr("rerank_plugins.registry.open_scorer", failing)
    with Reranker("some/model") as reranker:
        for _ in range(2):
            with pytest.raises(ScoringError, match="not yet"):
                reranker.rank("q", ["a"])
        assert len(reranker.rank("q", ["a"])) == 1


def test_a_ranking_is_a_sequence(open_reranker: Opener) -> None:
    reranker, _ = open_reranker()

    ranking: Ranking = reranker.rank("a", ["a", "b"])

    assert len(ranking) == 2
    assert ranking[0] is ranking.documents[0]
    assert list(ranking) == list(ranking[:])


def test_warmup_opens_the_scorer_and_stats_count(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker()
    reranker.warmup()
    assert len(scorer.batches) == 1

    reranker.rank("q", ["a", "a", "b c"])
    reranker.rank("q", ["a"])

    stats = reranker.stats()["fake"]
    assert (stats.requests, stats.pairs_scored, stats.pairs_joined) == (2, 3, 1)
    assert (stats.cache_hits, stats.cache_misses, stats.cache_entries) == (1, 3, 3)
    assert (stats.tokens_scored, stats.tokens_waiting) == (6, 0)
