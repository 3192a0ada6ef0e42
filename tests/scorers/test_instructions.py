"""What a model is told to look for: by setting, by call, or by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import (
    ConfigError,
    InputError,
    InputTypeError,
    InstructedScorer,
    RerankConfig,
    Reranker,
)
from rerank_plugins.testing import FakePair, FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Opener = Callable[..., tuple[Reranker, FakeScorer]]

OWN = "find facts"


def told(scorer: FakeScorer) -> list[str]:
    """The queries that were scored, each after what the model was told."""
    return [query for batch in scorer.batches for query, _ in batch]


def test_a_call_comes_before_the_setting_and_that_before_the_scorers_own(
    open_reranker: Opener,
) -> None:
    reranker, scorer = open_reranker(FakeScorer(instruction=OWN))
    reranker.rank("fox", ["a"])
    reranker.close()
    reranker, other = open_reranker(FakeScorer(instruction=OWN), instruction="find verbs")
    reranker.rank("fox", ["a"])
    reranker.rank("fox", ["a"], instruction=" Find  names\u3000")

    assert told(scorer) == ["find facts: fox"]
    # As it was given: no normalizer sees it.
    assert told(other) == ["find verbs: fox", " Find  names\u3000: fox"]


async def test_all_four_calls_take_one(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(FakeScorer(instruction=OWN))

    reranker.rank("a", ["x"], instruction="one")
    await reranker.arank("b", ["x"], instruction="two")
    reranker.score([("c", "x"), ("d", "x")], instruction="three")
    await reranker.ascore([("e", "x")], instruction="four")

    assert sorted(told(scorer)) == ["four: e", "one: a", "three: c", "three: d", "two: b"]


def test_each_instruction_has_cached_logits_of_its_own(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(FakeScorer(instruction=OWN))

    def cached(instruction: str | None) -> bool:
        return reranker.rank("fox", ["a"], instruction=instruction)[0].cached

    assert [cached(None), cached(None), cached("x"), cached("x")] == [False, True, False, True]
    assert cached(OWN)
    assert len(told(scorer)) == 2


def test_pairs_of_two_instructions_do_not_wait_for_each_other() -> None:
    """Neither the pairs on their way nor those in the cache are shared."""
    from rerank_plugins.engine import Engine
    from rerank_plugins.jobs import Job

    scorer = FakeScorer(instruction=OWN, delay_s=0.2)
    engine = Engine("fake", lambda: scorer, cache_entries=0, batch_tokens=None, queue_tokens=1000)
    jobs = [Job(1) for _ in range(4)]
    for job, instruction in zip(jobs, [None, "other", OWN, "other"], strict=True):
        engine.submit(job, "fox", iter([(0, "a")]), instruction=instruction)
    for job in jobs:
        job.future.result(10)
    stats = engine.stats()
    engine.close()

    assert sorted(told(scorer)) == ["find facts: fox", "other: fox"]
    assert stats.pairs_joined == 2


def test_a_setting_of_an_instruction_does_not_make_another_engine(open_reranker: Opener) -> None:
    scorer = FakeScorer(instruction=OWN)
    first, _ = open_reranker(scorer)
    second, _ = open_reranker(scorer, instruction="other")

    assert first.rank("fox", ["a"]).scorer == second.rank("fox", ["a"]).scorer
    assert told(scorer) == ["find facts: fox", "other: fox"]


def test_warming_up_tells_the_setting(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(FakeScorer(instruction=OWN), instruction="other")

    reranker.warmup()

    assert told(scorer) == ["other: warm up"]


class PlainScorer:
    """A scorer of a user's who never heard of instructions."""

    name = identity = "plain"
    activation = "logit"
    languages = None
    batch_tokens = 100
    padded = True

    def encode(self, query: str, documents: Sequence[str]) -> list[FakePair]:
        return [FakePair(query, document, 1, truncated=False) for document in documents]

    def forward(self, pairs: Sequence[FakePair]) -> list[float]:
        return [float(len(pair.document)) for pair in pairs]

    def close(self) -> None:
        pass


def test_a_scorer_without_instruction_is_called_as_ever() -> None:
    assert not isinstance(PlainScorer(), InstructedScorer)
    with Reranker(PlainScorer()) as reranker:  # type: ignore[arg-type]  # a plain str will do
        assert [document.index for document in reranker.rank("q", ["a", "bb"])] == [1, 0]


@pytest.mark.parametrize("scorer", [PlainScorer, FakeScorer])
async def test_a_model_that_takes_none_says_so(scorer: Callable[[], Any]) -> None:
    advice = r"instruction: '\w+' takes none, .*leave it out, or take a model such as"
    with Reranker(scorer()) as reranker:
        with pytest.raises(InputError, match=advice):
            reranker.rank("q", ["a"], instruction="find facts")
        with pytest.raises(InputError, match=advice):
            await reranker.ascore([("q", "a")], instruction="find facts")
    with Reranker(scorer(), instruction="find facts") as reranker:
        with pytest.raises(ConfigError, match=advice):
            reranker.rank("q", ["a"])
        with pytest.raises(ConfigError, match=advice):
            reranker.warmup()


def test_a_model_that_is_routed_to_need_not_take_it(open_reranker: Opener) -> None:
    scorer = FakeScorer(instruction=OWN, languages=frozenset({"en"}))
    reranker, _ = open_reranker(
        scorer,
        instruction="other",
        language_detector=lambda text: "es" if "zorro" in text else "en",
    )

    assert reranker.rank("el zorro", ["un zorro"]).scorer == "lexical"
    assert reranker.rank("fox", ["a"]).scorer == "fake"
    assert told(scorer) == ["other: fox"]


@pytest.mark.parametrize(
    ("instruction", "error", "message"),
    [
        (" \n", InputError, "instruction is blank"),
        ("a\ud800", InputError, r"instruction holds the lone surrogate U\+D800"),
        (b"find", InputTypeError, "instruction must be str, got bytes"),
        (True, InputTypeError, "instruction must be str, got bool"),
    ],
)
async def test_an_instruction_that_is_no_text_is_refused(
    open_reranker: Opener, instruction: Any, error: type[Exception], message: str
) -> None:
    reranker, scorer = open_reranker(FakeScorer(instruction=OWN))

    with pytest.raises(error, match=message):
        reranker.rank("q", ["a"], instruction=instruction)
    with pytest.raises(error, match=message):
        await reranker.ascore([("q", "a")], instruction=instruction)
    assert not scorer.batches


@pytest.mark.parametrize("instruction", ["", " ", "a\ud800", 3])
def test_a_setting_that_is_no_instruction_is_refused(instruction: Any) -> None:
    with pytest.raises(ConfigError, match=r"^instruction: "):
        RerankConfig(instruction=instruction)


class Named(FakeScorer):
    """It says what it looks for, but cannot be told."""

    def encode(self, query: str, documents: Sequence[str]) -> list[FakePair]:  # type: ignore[override]
        return super().encode(query, documents)


class Open(FakeScorer):
    """It takes anything by name."""

    def encode(self, query: str, documents: Sequence[str], **told: Any) -> list[FakePair]:
        return super().encode(query, documents, **told)


def test_a_scorer_whose_encode_takes_none_cannot_be_told(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(Named(instruction=OWN))

    with pytest.raises(InputError, match="instruction: 'fake' takes none"):
        reranker.rank("fox", ["a"], instruction="find verbs")

    assert not reranker.takes_instruction
    assert reranker.rank("fox", ["a"], instruction=None)[0].logit == 0
    assert told(scorer) == ["find facts: fox"]


def test_a_scorer_that_takes_anything_by_name_is_told(open_reranker: Opener) -> None:
    reranker, scorer = open_reranker(Open(instruction=OWN))

    reranker.rank("fox", ["a"], instruction="find verbs")

    assert reranker.takes_instruction
    assert told(scorer) == ["find verbs: fox"]
