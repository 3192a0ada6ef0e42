"""Lexical scoring: a bounded score of the pair alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugins.models.lexical import prepare_query, score_terms, to_logit
from rerank_plugins.models.term_weights import TermWeights
from rerank_plugins.text.terms import split_terms

TEXTS = st.text() | st.text("the cat sat on a mat. 猫が好き ที่ Москва ")

WEIGHTS = TermWeights.load()


def score(query: str, document: str) -> float:
    return score_terms(prepare_query(split_terms(query), WEIGHTS), split_terms(document), WEIGHTS)


@given(TEXTS, TEXTS)
def test_scores_lie_between_0_and_1(query: str, document: str) -> None:
    """Any two texts give a score in range, and the same one every time."""
    found = score(query, document)
    assert 0.0 <= found < 1.0
    assert score(query, document) == found


@pytest.mark.parametrize(("query", "document"), [("", "cat"), ("cat", ""), ("", ""), ("?!", "cat")])
def test_no_terms_score_0(query: str, document: str) -> None:
    """Empty sides are no special case for the caller."""
    assert score(query, document) == 0.0


def test_no_common_term_scores_0() -> None:
    """Nothing shared, nothing earned."""
    assert score("quantum chromodynamics", "bread and butter") == 0.0


@pytest.mark.parametrize(
    ("query", "better", "worse"),
    [
        ("where is the Eiffel tower", "the tower of Eiffel", "where is the exit"),
        ("capital of Mali", "the capital of Mali is Bamako", "Mali: of all, the capital"),
        ("engine design", "design of engines", "design of bridges"),
        ("东京的人口", "东京有很多人口", "北京的夏天"),
        ("東京的人口", "東京有很多人口", "北京的夏天"),
        ("日本の首都はどこですか", "東京は日本の首都である", "大阪はどこだ"),
        ("한국의 수도", "한국에서 수도는 서울이다", "일본의 도시"),
        ("猫", "黒猫がいる", "黒犬がいる"),
        (
            "¿Quién fue el presidente de México?",
            "el presidente mexicano",
            "quién fue el de la foto",
        ),
        ("Когда основана Москва", "Москву основали давно", "когда же это было"),
        ("भारत की राजधानी क्या है", "भारत की राजधानी दिल्ली", "यह क्या है की"),
        ("เมืองหลวงของไทย", "กรุงเทพเป็นเมืองหลวง", "ของที่อยู่ใน"),
        ("عاصمة مصر", "العاصمة في مصر", "في كل مدينة"),
    ],
)
def test_what_says_more_wins(query: str, better: str, worse: str) -> None:
    """Rare words, neighbours and kindred words count, in every script."""
    assert score(query, better) > score(query, worse)


def test_a_short_document_beats_a_long_one_with_the_same_matches() -> None:
    """The same find is worth less in a longer text."""
    assert score("tower", "the tower") > score("tower", "the tower " + "lorem " * 300)


@given(st.lists(st.sampled_from(["the cat sat", "a mat", "猫が好き", "tower of Pisa"]), min_size=1))
def test_a_score_depends_on_its_pair_alone(others: list[str]) -> None:
    """Scoring other documents first changes nothing."""
    query = prepare_query(split_terms("where sat the cat"), WEIGHTS)
    alone = score_terms(query, split_terms("the cat sat there"), WEIGHTS)
    for other in others:
        score_terms(query, split_terms(other), WEIGHTS)
    assert score_terms(query, split_terms("the cat sat there"), WEIGHTS) == alone


@given(TEXTS, st.floats(0, 1), st.floats(0, 1))
def test_logits_keep_the_order_of_scores(text: str, first: float, second: float) -> None:
    """Within a query, a higher score is a higher logit."""
    query = prepare_query(split_terms(text), WEIGHTS)
    low, high = sorted((first, second))
    assert to_logit(query, low) <= to_logit(query, high)


def test_nothing_shared_is_hardly_ever_relevant() -> None:
    """The logit of score 0 is far below even odds, that of a good answer above."""
    query = prepare_query(split_terms("what is the capital of Mali"), WEIGHTS)
    answer = split_terms("Bamako is the capital of Mali.")
    assert to_logit(query, 0.0) < -5.0
    assert to_logit(query, score_terms(query, answer, WEIGHTS)) > 0
