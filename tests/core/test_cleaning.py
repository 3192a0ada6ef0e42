"""The text that is scored: normalised, named by language, replaced by a hook, routed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rerank_plugins import InputError, InputTypeError, Reranker, ScoringError
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable

    Opener = Callable[..., tuple[Reranker, FakeScorer]]


def _scored(scorer: FakeScorer) -> set[tuple[str, str]]:
    return set(scorer.pairs_scored)


def test_the_default_normalizer_cleans_the_scored_text_only(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker()

    # Full-width letters, an ideographic space, a zero-width space, a tab.
    ranking = reranker.rank("\uff26\uff4f\uff58", ["\uff21\u3000b\u200b\tc"])

    assert _scored(scorer) == {("Fox", "A b c")}
    assert ranking.query == "\uff26\uff4f\uff58"
    assert ranking[0].text == "\uff21\u3000b\u200b\tc"


def test_no_normalizer_gives_byte_parity(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(normalizer=None)
    text = "  \uff21\u3000b\u200b\t"

    reranker.rank(text, [text])

    assert _scored(scorer) == {(text, text)}


def test_any_callable_is_a_normalizer(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(normalizer=str.upper)

    reranker.rank("q", ["a"])

    assert _scored(scorer) == {("Q", "A")}


def test_two_normalizers_over_one_scorer_do_not_share_hits_wrongly() -> None:
    scorer = FakeScorer(lambda _, document: float(len(document)), activation="logit")
    with Reranker(scorer, normalizer=None) as raw, Reranker(scorer) as cleaned:
        assert raw.score([("q", "a  b")]) == [4.0]
        assert cleaned.score([("q", "a  b")]) == [3.0]


def test_the_hook_sees_text_language_and_role_and_replaces_the_text(
    open_reranker: Opener,
) -> None:
    seen = []

    def translate(text: str, language: str | None, role: str) -> str:
        seen.append((text, language, role))
        return {"gato": "cat"}.get(text, text)

    reranker, scorer = open_reranker(
        text_hook=translate, language_detector=lambda text: "es" if text == "gato" else "en"
    )
    ranking = reranker.rank(" gato", ["cat  food", "gato", ""])

    assert seen == [
        ("gato", "es", "query"),
        ("cat food", "en", "document"),
        ("gato", "es", "document"),
    ]
    assert _scored(scorer) == {("cat", "cat food"), ("cat", "cat")}
    assert (ranking.query, ranking.language) == (" gato", "es")


def test_a_query_goes_to_the_model_of_its_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "rerank_plugins.registry.open_scorer", lambda config: FakeScorer(name=config.model)
    )
    settings = {"language_models": {"zh": "chinese"}, "language_detector": lambda text: text[:2]}
    with Reranker("main", **settings) as reranker:  # type: ignore[arg-type]  # settings by name
        assert reranker.rank("zh ...", ["a"]).scorer == "chinese"
        assert reranker.rank("en ...", ["a"]).scorer == "main"
        assert set(reranker.stats()) == {"main", "chinese"}


def test_a_language_that_the_scorer_does_not_know_goes_to_the_lexical_scorer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "rerank_plugins.registry.open_scorer", lambda config: FakeScorer(name=config.model)
    )
    english = FakeScorer(name="english", languages=frozenset({"en"}))
    detected = {"hello": "en", "hola": "es"}
    with Reranker(english, language_detector=detected.get) as reranker:
        assert reranker.rank("hello", ["a"]).scorer == "english"
        assert reranker.rank("????", ["a"]).scorer == "english"
        spanish = reranker.rank("hola", ["a"])
        assert (spanish.scorer, spanish.language) == ("lexical", "es")


def test_routing_follows_the_translated_query(monkeypatch: pytest.MonkeyPatch) -> None:
    english = FakeScorer(name="english", languages=frozenset({"en"}))
    with Reranker(
        english,
        language_detector=lambda text: "es" if text == "hola" else "en",
        text_hook=lambda text, language, role: "hello" if text == "hola" else text,
    ) as reranker:
        ranking = reranker.rank("hola", ["hello"])

    assert (ranking.scorer, ranking.language) == ("english", "es")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"normalizer": lambda text: 1 / 0}, ScoringError, "normalizer failed on query: Zero"),
        ({"normalizer": lambda text: None}, InputTypeError, "what normalizer returned for query"),
        (
            {"text_hook": lambda text, language, role: "\ud800" if role == "document" else text},
            InputError,
            r"what text_hook returned for documents\[0\] holds the lone surrogate",
        ),
        (
            {"text_hook": lambda text, language, role: {}["x"] if role == "document" else text},
            ScoringError,
            r"text_hook failed on documents\[0\]: KeyError",
        ),
        ({"language_detector": lambda text: 1 / 0}, ScoringError, "language_detector failed"),
        ({"normalizer": lambda text: ""}, InputError, "query, once cleaned, is blank"),
    ],
)
def test_a_failing_plug_in_is_named_with_the_text_it_failed_on(
    open_reranker: Opener, settings: dict[str, object], error: type[Exception], message: str
) -> None:
    reranker, scorer = open_reranker(**settings)

    with pytest.raises(error, match=message):
        reranker.rank("q", ["a"])
    assert not scorer.batches
