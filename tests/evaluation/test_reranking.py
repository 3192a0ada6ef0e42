"""From a first stage to a measured ranking."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rerank_plugins.evaluation.first_stage import FirstStage, first_stage
from rerank_plugins.evaluation.measures import measure
from rerank_plugins.evaluation.reranking import choose_queries, rerank, shuffled, warm_up
from rerank_plugins.evaluation.sets import read_set
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rerank_plugins.reranker import Reranker

    OpenReranker = Callable[..., tuple[Reranker, FakeScorer]]


def test_bm25_lists_what_shares_a_term_best_first() -> None:
    index = FirstStage(["red fox", "blue sky", "red sun and red sky", "敏捷的棕色狐狸"])

    assert [place for place, _ in index.search("red fox")] == [0, 2]
    assert [place for place, _ in index.search("狐狸")] == [3]
    assert index.search("nothing shared") == []
    assert len(index.search("red fox", 1)) == 1


def test_bm25_scores_are_those_of_the_formula() -> None:
    index = FirstStage(["fox", "fox cub"])

    scores = dict(index.search("cub"))

    # idf = ln(1 + (2 - 1 + .5) / (1 + .5)); tf part = 1 / (1 + .9 (1 - .4 + .4 * 2 / 1.5))
    assert scores == {1: pytest.approx(0.693147 / (1 + 0.9 * (0.6 + 0.4 * 2 / 1.5)), abs=1e-5)}


@pytest.mark.parametrize("texts", [[], ["", " "], ["...", "!"]])
def test_bm25_over_texts_without_terms_finds_nothing(texts: list[str]) -> None:
    assert FirstStage(texts).search("red fox") == []


def test_equal_scores_keep_the_order_of_the_texts() -> None:
    index = FirstStage(["red fox"] * 5)

    assert [place for place, _ in index.search("fox", 3)] == [0, 1, 2]


def test_a_first_stage_that_is_given_is_taken(toy_with_first_stage: Path) -> None:
    dataset = read_set(toy_with_first_stage)

    found = first_stage(dataset, dataset.judged_queries, depth=2)

    assert found == {"q1": ("sun", "cub"), "q2": ("sky", "whale")}


def test_titles_are_searched_too(toy: Path) -> None:
    dataset = read_set(toy)

    assert first_stage(dataset, dataset.judged_queries)["q1"][0] == "fox"


def test_the_shuffle_owes_nothing_to_the_first_stage() -> None:
    docids = [f"d{i}" for i in range(20)]

    assert shuffled(docids, "q") == shuffled(docids[::-1], "q")
    assert sorted(shuffled(docids, "q")) == sorted(docids)
    assert shuffled(docids, "q") not in (docids, sorted(docids))
    assert shuffled(docids, "q") != shuffled(docids, "r")
    assert shuffled(docids, "q") != shuffled(docids, "q", seed=1)


def test_a_scorer_that_says_nothing_is_not_credited_with_the_first_stages_work(
    toy_with_first_stage: Path, open_reranker: OpenReranker
) -> None:
    dataset = read_set(toy_with_first_stage)
    first = first_stage(dataset, dataset.judged_queries)
    reranker, _ = open_reranker(FakeScorer(lambda *_: 0.0))

    found = rerank(reranker, dataset, first)

    assert found.rankings == {q: tuple(shuffled(d, q)) for q, d in first.items()}


def test_reranking_is_measured_counted_and_repeatable(
    toy_with_first_stage: Path, open_reranker: OpenReranker
) -> None:
    dataset = read_set(toy_with_first_stage)
    first = first_stage(dataset, dataset.judged_queries)
    reranker, scorer = open_reranker()
    seen: list[None] = []

    found = rerank(reranker, dataset, first, on_query=lambda: seen.append(None))

    assert found.rankings["q1"][0] == "fox"
    assert found.rankings["q2"] == ("whale", "sky")
    assert measure(dataset.grades, found.rankings).means()["MRR@10"] == 1.0
    assert (found.pairs, found.scorers, len(seen)) == (5, {"fake": 2}, 2)
    assert found.pairs_per_s > 0
    assert ("red fox", "red fox") in scorer.pairs_scored  # the title and the text
    assert rerank(reranker, dataset, first).rankings == found.rankings


@pytest.mark.parametrize(
    ("settings", "pairs"),
    [
        ({}, 5),
        ({"max_candidates": 1}, 2),
        ({"near_duplicates": 0.9}, 4),
        ({"duplicates": "drop"}, 4),
    ],
)
def test_pairs_are_those_that_were_scored(
    settings: dict[str, object],
    pairs: int,
    toy_with_first_stage: Path,
    open_reranker: OpenReranker,
) -> None:
    corpus = toy_with_first_stage / "corpus.jsonl"
    # Two of the three documents of the first query are one text now.
    corpus.write_text(corpus.read_text().replace("fox cub", "a red sun, red and round"))
    dataset = read_set(toy_with_first_stage)
    reranker, _ = open_reranker(**settings)

    found = rerank(reranker, dataset, first_stage(dataset, dataset.judged_queries))

    assert found.pairs == pairs


def test_the_warm_up_leaves_nothing_in_the_cache(toy: Path, open_reranker: OpenReranker) -> None:
    dataset = read_set(toy)
    reranker, scorer = open_reranker()

    warm_up(reranker, dataset.queries)

    assert [stats.cache_entries for stats in reranker.stats().values()] == [0]
    assert scorer.pairs_scored == {("red fox", "red fox"): 1}


def test_a_limit_draws_the_same_queries_each_time_in_file_order(toy: Path) -> None:
    dataset = read_set(toy)

    assert choose_queries(dataset) == dataset.judged_queries
    assert choose_queries(dataset, 99) == dataset.judged_queries
    (drawn,) = choose_queries(dataset, 1)
    assert choose_queries(dataset, 1) == (drawn,)
    assert {choose_queries(dataset, 1, seed=s)[0].qid for s in range(20)} == {"q1", "q2"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ndcg"), [("dev/scifact", 0.662), ("dev/stard_a", 0.50)])
def test_the_first_stage_is_the_one_that_the_data_were_described_with(
    data_dir: Path, name: str, ndcg: float
) -> None:
    dataset = read_set(data_dir / name)

    means = measure(dataset.grades, first_stage(dataset, choose_queries(dataset))).means()

    assert means["nDCG@10"] == pytest.approx(ndcg, abs=0.02)
