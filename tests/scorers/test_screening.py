"""Duplicates and candidates of a call: who is scored, who is ranked, who is dropped."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import DroppedDocument, InputError, Ranking, Reranker, RerankTimeoutError
from rerank_plugins.ranking import BLANK_LOGIT
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable

    Opener = Callable[..., tuple[Reranker, FakeScorer]]

QUERY = "red fox"
LONG = "a red fox eats rodents birds and fruit in the fields and woods around the old town"
NEARLY = f"{LONG}!"
DOCUMENTS = ["fine weather", LONG, "red", NEARLY, "", "red", " "]


def indices(ranking: Ranking) -> list[int]:
    return [document.index for document in ranking]


def test_nothing_is_looked_for_where_nothing_is_set(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker()

    ranking = reranker.rank(QUERY, DOCUMENTS)

    assert indices(ranking) == [1, 3, 2, 5, 0, 4, 6]
    assert [document.duplicate_of for document in ranking] == [None] * 7
    assert ranking.dropped == ()
    assert sum(scorer.pairs_scored.values()) == 4


def test_a_near_copy_stands_beside_its_original_unscored(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(near_duplicates=0.8)

    ranking = reranker.rank(QUERY, DOCUMENTS)

    assert indices(ranking) == [1, 3, 2, 5, 0, 4, 6]
    assert [document.duplicate_of for document in ranking] == [None, 1, None, 2, None, None, None]
    assert ranking[1].text == NEARLY
    assert ranking[1].logit == ranking[0].logit == 2.0
    assert ranking.dropped == ()
    assert sorted(document for _, document in scorer.pairs_scored) == [LONG, "fine weather", "red"]


def test_a_copy_is_cut_and_cached_as_its_original_is(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(FakeScorer(max_words=3), near_duplicates=0.8)

    fresh, again = (reranker.rank(QUERY, [LONG, NEARLY]) for _ in range(2))

    assert [document.truncated for document in fresh] == [True, True]
    assert [document.cached for document in fresh] == [False, False]
    assert [document.cached for document in again] == [True, True]


def test_dropped_duplicates_are_listed_and_not_ranked(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(duplicates="drop", near_duplicates=0.8)

    ranking = reranker.rank(QUERY, DOCUMENTS)

    assert indices(ranking) == [1, 2, 0, 4, 6]
    assert [document.duplicate_of for document in ranking] == [None] * 5
    assert ranking.dropped == (
        DroppedDocument(3, NEARLY, "duplicate", 1),
        DroppedDocument(5, "red", "duplicate", 2),
    )


def test_duplicates_are_those_of_the_cleaned_texts(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(duplicates="drop")

    ranking = reranker.rank(QUERY, ["red  fox", "\u200bred fox"])

    assert ranking.dropped == (DroppedDocument(1, "\u200bred fox", "duplicate", 0),)


def test_blank_documents_are_no_duplicates_and_no_candidates(open_reranker: Opener) -> None:
    """They come last, as ever: nothing was there to compare or to choose by."""
    reranker, _ = open_reranker(duplicates="drop", near_duplicates=0.5, max_candidates=1)

    ranking = reranker.rank(QUERY, ["", QUERY, " ", "\u200b", "fox"])

    assert indices(ranking) == [1, 0, 2, 3]
    assert [document.logit for document in ranking][1:] == [BLANK_LOGIT] * 3
    assert [document.index for document in ranking.dropped] == [4]
    assert indices(reranker.rank(QUERY, ["", " "])) == [0, 1]


def test_the_lexical_scorer_picks_what_the_model_sees(open_reranker: Opener) -> None:
    lexical = Reranker("lexical")
    documents = [f"the fox of hill {i}" for i in range(5)] + ["red fox", "weather", "a red fox"]
    best = sorted(indices(lexical.rank(QUERY, documents, top_n=4)))
    scorer = FakeScorer(lambda _, document: float(len(document)))
    reranker, _ = open_reranker(scorer)

    ranking = reranker.rank(QUERY, documents, max_candidates=4)

    assert best == [0, 1, 5, 7]
    assert sorted(indices(ranking)) == best
    assert {document for _, document in scorer.pairs_scored} == {documents[i] for i in best}
    assert [document.index for document in ranking.dropped] == [2, 3, 4, 6]
    assert {document.reason for document in ranking.dropped} == {"max_candidates"}
    assert len(ranking) == 4


def test_the_lexical_model_keeps_its_own_order() -> None:
    documents = [f"{'red ' * (i % 4)}fox {i}" for i in range(20)]

    with Reranker("lexical") as reranker:
        every_one = reranker.rank(QUERY, documents)
        ranking = reranker.rank(QUERY, documents, max_candidates=7)

    assert [(d.index, d.logit) for d in ranking] == [(d.index, d.logit) for d in every_one[:7]]


def test_every_document_is_ranked_or_dropped(open_reranker: Opener) -> None:
    reranker, _ = open_reranker()
    documents = [*DOCUMENTS, "fox", "one fox", NEARLY]

    for choice in (
        {"duplicates": "drop"},
        {"near_duplicates": 0.8},
        {"max_candidates": 2},
        {"duplicates": "drop", "near_duplicates": 0.8, "max_candidates": 2},
        {"near_duplicates": 0.8, "max_candidates": 2},
    ):
        ranking = reranker.rank(QUERY, documents, **choice)  # type: ignore[arg-type]  # by name
        dropped = [document.index for document in ranking.dropped]

        assert sorted(indices(ranking) + dropped) == list(range(len(documents)))
        assert dropped == sorted(dropped)
        assert all(document.text == documents[document.index] for document in ranking.dropped)


def test_a_copy_of_what_is_beyond_the_candidates_is_so_too(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(max_candidates=1)

    ranking = reranker.rank(QUERY, ["weather", "red fox", "weather", "red fox"])

    assert [(d.index, d.duplicate_of) for d in ranking] == [(1, None), (3, 1)]
    assert ranking.dropped == (
        DroppedDocument(0, "weather", "max_candidates"),
        DroppedDocument(2, "weather", "max_candidates", 0),
    )


def test_top_n_and_threshold_act_on_what_is_left_and_drop_nothing(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(duplicates="drop", activation="logit")
    documents = ["red fox", "red fox", "red", "x", "x"]

    ranking = reranker.rank(QUERY, documents, score_threshold=5, min_results=3, top_n=2)

    assert indices(ranking) == [0, 2]
    assert [document.index for document in ranking.dropped] == [1, 4]


async def test_async_calls_choose_alike(open_reranker: Opener) -> None:
    reranker, _ = open_reranker()
    choice: dict[str, Any] = {"duplicates": "drop", "near_duplicates": 0.8, "max_candidates": 2}

    first = reranker.rank(QUERY, DOCUMENTS, **choice)
    second = await reranker.arank(QUERY, DOCUMENTS, **choice)

    assert (indices(second), second.dropped) == (indices(first), first.dropped)


def test_a_call_overrides_the_settings_and_can_switch_them_off(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(duplicates="drop", near_duplicates=0.8, max_candidates=1)

    def dropped(**choice: Any) -> list[int]:
        ranking = reranker.rank(QUERY, [LONG, NEARLY, LONG, "red", "red"], **choice)
        return [document.index for document in ranking.dropped]

    assert dropped() == [1, 2, 3, 4]
    assert dropped(near_duplicates=0) == [1, 2, 3, 4]
    assert dropped(max_candidates=0) == [1, 2, 4]
    assert dropped(max_candidates=0, near_duplicates=0) == [2, 4]
    assert dropped(max_candidates=0, near_duplicates=0, duplicates="keep") == []
    assert dropped(max_candidates=2, near_duplicates=0, duplicates="keep") == [3, 4]


def test_pairs_of_a_score_call_are_all_scored(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(
        duplicates="drop", near_duplicates=0.5, max_candidates=1, activation="logit"
    )

    scores = reranker.score([(QUERY, LONG), (QUERY, NEARLY), (QUERY, "red"), (QUERY, LONG)])

    assert scores == [2.0, 2.0, 1.0, 2.0]
    assert (QUERY, NEARLY) in scorer.pairs_scored


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"duplicates": "maybe"}, 'duplicates must be "keep" or "drop", got \'maybe\''),
        ({"duplicates": True}, "duplicates must be .* got True"),
        ({"near_duplicates": 1.5}, "near_duplicates must be a number .* got 1.5"),
        ({"near_duplicates": -0.1}, "near_duplicates must be"),
        ({"near_duplicates": math.nan}, "near_duplicates must be .* got nan"),
        ({"near_duplicates": True}, "near_duplicates must be .* got True"),
        ({"near_duplicates": "0.9"}, "near_duplicates must be"),
        ({"max_candidates": -1}, "max_candidates must be an int .* got -1"),
        ({"max_candidates": 2.0}, "max_candidates must be .* got 2.0"),
        ({"max_candidates": True}, "max_candidates must be .* got True"),
    ],
)
async def test_a_choice_that_is_none_is_refused_by_name(
    open_reranker: Opener, choice: dict[str, Any], message: str
) -> None:
    reranker, _ = open_reranker()

    with pytest.raises(InputError, match=message):
        reranker.rank(QUERY, DOCUMENTS, **choice)
    with pytest.raises(InputError, match=message):
        await reranker.arank(QUERY, DOCUMENTS, **choice)


def test_no_documents_drop_none(open_reranker: Opener) -> None:
    reranker, _ = open_reranker(duplicates="drop", max_candidates=1)

    ranking = reranker.rank(QUERY, [])

    assert (len(ranking), ranking.dropped) == (0, ())


@pytest.mark.parametrize("choice", [{"max_candidates": 1}, {"near_duplicates": 0.9}])
def test_the_deadline_holds_for_the_first_stage_and_for_near_duplicates(
    choice: dict[str, Any], open_reranker: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def passed(deadline: float | None) -> None:
        nonlocal asked
        asked += 1
        # The three documents are cleaned; then it is too late.
        if asked > 3:
            raise RerankTimeoutError("too late")

    monkeypatch.setattr("rerank_plugins.screening.check_deadline", passed)
    reranker, scorer = open_reranker()

    with pytest.raises(RerankTimeoutError, match="no answer within"):
        reranker.rank(QUERY, ["red", "fox", "weather"], timeout_s=60, **choice)
    assert not scorer.batches
