"""A comparison as HTML, read as text."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from rerank_plugins.documents import SourceDocument
from rerank_plugins.events import RequestEvent, StageSeconds
from rerank_plugins.playground.asking import Answer, Comparison
from rerank_plugins.playground.view import (
    SHOWN,
    movement,
    number,
    page_of,
    problem_of,
    status_of,
)
from rerank_plugins.results import DroppedDocument, RankedDocument, Ranking, Window

EVENT = RequestEvent(
    model="one",
    scorer="one",
    outcome="ok",
    pairs=3,
    cached=1,
    tokens=9,
    started_s=0.0,
    duration_s=0.0123,
    stages=StageSeconds(clean=0.002, forward=0.0103),
)


class _Text(HTMLParser):
    """The text of a page, and every tag and attribute that is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _read(html: str) -> _Text:
    reader = _Text()
    reader.feed(html)
    reader.close()
    return reader


def _text(html: str) -> str:
    return " ".join(" ".join(_read(html).words).split())


def _ranking(*order: int, texts: tuple[str, ...], **changes: object) -> Ranking:
    documents = tuple(
        RankedDocument(place, 0.9 - 0.2 * rank, 2.0 - rank, texts[place])
        for rank, place in enumerate(order)
    )
    return replace(Ranking("q", documents, "one", "sigmoid", "en", tokens=9), **changes)


TEXTS = ("fine weather", "a red fox", "blue sky")


def _comparison(*answers: Answer, texts: tuple[str, ...] = TEXTS, **changes: object) -> Comparison:
    documents = tuple(SourceDocument(text, f"text:{n}") for n, text in enumerate(texts))
    answers = answers or (Answer("one", _ranking(1, 2, 0, texts=texts), EVENT),)
    return replace(
        Comparison("q", documents, answers, languages=("en",) * len(texts)),
        **changes,
    )


def _with(document: RankedDocument, **changes: object) -> Comparison:
    ranking = _ranking(0, texts=TEXTS, **changes)
    ranking = replace(ranking, documents=(document, *ranking.documents[1:]))
    return _comparison(Answer("one", ranking, EVENT))


def test_each_document_is_shown_with_where_it_was_and_what_it_scored() -> None:
    text = _text(page_of(_comparison()))

    assert "1 ↑1 up 1 place was 2 score 0.900 a red fox" in text
    assert "2 ↑1 up 1 place was 3 score 0.700 blue sky" in text
    assert "3 ↓2 down 2 places was 1 score 0.500 fine weather" in text


def test_the_order_before_is_shown_with_where_each_went() -> None:
    text = _text(page_of(_comparison()))

    assert "1 fine weather → went to 3 2 a red fox → went to 1 3 blue sky → went to 2" in text


def test_what_stays_is_said_to() -> None:
    assert _text(movement(4, 4)) == "= stayed"


def test_the_time_by_stage_and_the_cache_are_told() -> None:
    text = _text(page_of(_comparison()))

    assert "12.3 ms · 1 of 3 pairs from the cache · 9 tokens · query in en" in text
    assert "Time by stage cleaning texts 2.0 ms in the model 10.3 ms" in text
    assert "queue" not in text


EVIL = (
    "<img src=x onerror=alert(1)>",
    "</p></li><script>alert(2)</script>",
    '"><svg onload=alert(3)>',
    "'><b onmouseover=alert(4)>" + "x" * 400,
)


def test_every_text_is_shown_as_text() -> None:
    ranking = _ranking(1, 2, 3, 0, texts=EVIL, scorer=EVIL[0], language=EVIL[2])
    answers = (Answer(EVIL[0], ranking, EVENT), Answer(EVIL[1], problem=EVIL[2], event=None))
    comparison = _comparison(*answers, texts=EVIL, query=EVIL[0], languages=(EVIL[2],) * 4)

    page = _read(page_of(comparison) + problem_of("\n".join(EVIL)))

    plain = {"div", "p", "section", "h2", "span", "b", "details", "summary", "ul", "li", "i", "ol"}
    assert page.tags <= plain | {"br"}
    assert page.attributes <= {
        "class",
        "style",
        "dir",
        "title",
        "role",
        "aria-label",
        "aria-hidden",
    }
    for text in EVIL:
        assert text in "".join(page.words)


def test_a_long_text_is_clipped_and_there_whole_on_demand() -> None:
    long = "a red fox " * 100
    html = page_of(_with(RankedDocument(0, 0.9, 2.0, long)))

    shown, whole = re.findall(r'<p class="rp-text" dir="auto">(.*?)</p>', html)[:2]
    assert len(shown) < 330
    assert shown.endswith("fox…")
    assert whole == long
    assert '<details class="rp-whole"><summary>Whole text, 1,000 characters</summary>' in html


@pytest.mark.parametrize(
    ("document", "mark"),
    [
        (RankedDocument(0, 0.9, 2.0, "x", truncated=True), "cut"),
        (RankedDocument(0, 0.9, 2.0, "x", cached=True), "cached"),
        (RankedDocument(0, 0.9, 2.0, "x", duplicate_of=2), "same as 3"),
        (RankedDocument(0, 0.9, 2.0, "x", window=Window(1, 4, 0, 9)), "part 2 of 4"),
        (RankedDocument(0, 0.0, -3.4e38, " "), "blank"),
    ],
)
def test_what_is_to_be_said_of_a_document_is_marked(document: RankedDocument, mark: str) -> None:
    plain = RankedDocument(0, 0.9, 2.0, "x")

    assert f">{mark}</span>" in page_of(_with(document))
    assert f">{mark}</span>" not in page_of(_with(plain))


def test_a_document_in_another_language_than_the_query_is_marked() -> None:
    html = page_of(_comparison(languages=("es", "en", None)))

    assert re.findall(r">in (\w+)</span>", html) == ["es"]


def test_top_n_cuts_what_is_shown_and_says_so() -> None:
    html = page_of(_comparison(top_n=1))

    assert "2 documents below top_n." in _text(html)
    assert html.count("score </span>") == 1


def test_a_thousand_documents_are_a_page_of_some() -> None:
    texts = tuple(f"document {n}" for n in range(300))
    html = page_of(_comparison(Answer("one", _ranking(*range(300), texts=texts)), texts=texts))

    assert html.count("score </span>") == SHOWN
    assert _text(html).count(f"The first {SHOWN} of 300 are shown.") == 2


def test_what_was_dropped_says_why() -> None:
    dropped = (DroppedDocument(0, TEXTS[0], "max_candidates"),)
    ranking = _ranking(1, 2, texts=TEXTS, dropped=dropped)

    text = _text(page_of(_comparison(Answer("one", ranking, EVENT))))

    assert "1 fine weather → went to dropped by max_candidates" in text


def test_two_models_stand_side_by_side_with_their_agreement() -> None:
    first, second = _ranking(1, 2, 0, texts=TEXTS), _ranking(2, 1, 0, texts=TEXTS)
    comparison = _comparison(Answer("one", first, EVENT), Answer("two", second, EVENT))

    text = _text(page_of(comparison))

    assert "Kendall τ 0.33 over 3 documents 3 of the first 3 in common" in text
    assert "2 a red fox → went to A 1 B 2" in text
    assert status_of(comparison) == "3 documents ranked by one and two."
    assert "Kendall" not in _text(page_of(_comparison()))


def test_a_model_that_failed_stands_beside_the_other_with_its_problem() -> None:
    comparison = _comparison(
        Answer("one", _ranking(1, 2, 0, texts=TEXTS), EVENT), Answer("two", problem="too large")
    )

    html = page_of(comparison)

    assert "B two too large" in _text(html)
    assert html.count('role="alert"') == 1
    assert status_of(comparison) == "3 documents ranked by one; two failed."


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        (
            Answer("one", _ranking(0, texts=TEXTS, scorer="lexical", language="es"), EVENT),
            "Answered by lexical, because the query is in 'es'.",
        ),
        (
            Answer(
                "one",
                _ranking(0, texts=TEXTS, scorer="lexical"),
                replace(EVENT, outcome="fallback", error="ScoringError"),
            ),
            "It could not answer (ScoringError); lexical answered in its place.",
        ),
        (
            Answer("one", _ranking(0, texts=TEXTS), EVENT, untold=True),
            "It takes no instruction, and was not told yours.",
        ),
    ],
)
def test_who_answered_otherwise_than_asked_is_told(answer: Answer, note: str) -> None:
    assert note in _text(page_of(_comparison(answer)))
    assert note not in _text(page_of(_comparison()))


def test_bars_of_logits_go_from_the_lowest_to_the_highest() -> None:
    ranking = _ranking(1, 2, 0, texts=TEXTS, activation="logit")
    logits = (7.0, 5.0, -3.4e38)
    documents = tuple(
        replace(document, score=logit) for document, logit in zip(ranking, logits, strict=True)
    )

    html = page_of(_comparison(Answer("one", replace(ranking, documents=documents), EVENT)))

    assert re.findall(r'rp-bar" aria-hidden="true"><span style="width:([\d.]+)%', html) == [
        "100.0",
        "0.0",
        "0.0",
    ]
    assert "score lowest" in _text(html)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.000"), (0.87412, "0.874"), (0.0002, "0.0002"), (3e-7, "3e-07"), (-4.5, "-4.500")],
)
def test_numbers_are_short_and_never_hidden(value: float, shown: str) -> None:
    assert number(value) == shown
