"""Measures are those of trec_eval, which one can check by hand."""

from __future__ import annotations

import builtins
import math
import random
import statistics
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins.errors import MissingExtraError
from rerank_plugins.evaluation.first_stage import FirstStage
from rerank_plugins.evaluation.measures import MEASURES, measure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GRADES = {"q1": {"fox": 2, "cub": 1, "sky": 0}, "q2": {"whale": 1}}


def _ndcg_by_hand(docids: Sequence[str], grades: Mapping[str, int]) -> float:
    def gain(ordered: Sequence[int]) -> float:
        return sum(grade / math.log2(place + 2) for place, grade in enumerate(ordered[:10]))

    ideal = gain(sorted(grades.values(), reverse=True))
    return gain([grades.get(docid, 0) for docid in docids]) / ideal


def test_ndcg_has_linear_gain_and_its_ideal_from_all_grades() -> None:
    found = measure(GRADES, {"q1": ["sun", "cub", "fox"], "q2": ["sky"]}).values["nDCG@10"]

    # (1 / log2 3 + 2 / log2 4) / (2 / log2 2 + 1 / log2 3)
    assert found["q1"] == pytest.approx((0.63093 + 1.0) / (2.0 + 0.63093), abs=1e-5)
    assert found["q2"] == 0.0


def test_reciprocal_rank_stops_at_ten_and_recall_where_it_says() -> None:
    filler = [f"d{i}" for i in range(98)]
    rankings = {"q1": ["cub", *filler, "fox"], "q2": [*filler[:10], "whale"]}

    means = measure(GRADES, rankings).means()

    assert means["MRR@10"] == pytest.approx((1.0 + 0.0) / 2)
    assert means["recall@10"] == pytest.approx((0.5 + 0.0) / 2)
    assert means["recall@100"] == pytest.approx((1.0 + 1.0) / 2)


def test_the_order_that_is_given_is_measured_not_that_of_the_names() -> None:
    first = measure(GRADES, {"q1": ["fox", "a", "z"]}).values["nDCG@10"]["q1"]
    last = measure(GRADES, {"q1": ["z", "a", "fox"]}).values["nDCG@10"]["q1"]

    assert (first, last) == (
        pytest.approx(2 / 2.63093, abs=1e-5),
        pytest.approx(1 / 2.63093, abs=1e-5),
    )


def test_ndcg_agrees_with_the_formula_on_random_rankings() -> None:
    draw = random.Random(5)
    docids = [f"d{i}" for i in range(40)]
    grades = {f"q{i}": {d: draw.randrange(4) for d in draw.sample(docids, 15)} for i in range(30)}
    rankings = {qid: draw.sample(docids, draw.randrange(1, 40)) for qid in grades}

    found = measure(grades, rankings).values["nDCG@10"]

    for qid, ranking in rankings.items():
        assert found[qid] == pytest.approx(_ndcg_by_hand(ranking, grades[qid]), abs=1e-9)


def test_a_ranking_of_nothing_counts_as_zero() -> None:
    found = measure(GRADES, {"q1": ["fox", "cub"], "q2": []})

    assert found.means()["nDCG@10"] == pytest.approx(0.5)
    assert set(found.values) == set(MEASURES)


def test_no_queries_measure_zero() -> None:
    assert measure(GRADES, {}).means() == dict.fromkeys(MEASURES, 0.0)


def test_gains_are_paired_query_by_query() -> None:
    before = measure(GRADES, {"q1": ["sun", "fox"], "q2": ["whale"]})
    after = measure(GRADES, {"q1": ["fox", "sun"], "q2": ["whale"]})

    assert after.gains(before)["MRR@10"] == pytest.approx(0.25)
    expected = statistics.stdev([0.5, 0.0]) / math.sqrt(2)
    assert after.standard_errors(before)["MRR@10"] == pytest.approx(expected)
    assert before.standard_errors(before)["MRR@10"] == 0.0


@pytest.mark.parametrize("package", ["ir_measures", "bm25s"])
def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real_import = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> object:
        if name == package:
            raise ModuleNotFoundError(name=package)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(MissingExtraError, match=r"rerank-plugins\[eval\]"):
        measure(GRADES, {}) if package == "ir_measures" else FirstStage(["a"])
