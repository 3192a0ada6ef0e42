"""Who answers where the model cannot: errors, deadlines, full queues, circuit breakers."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import Reranker
from rerank_plugins.breaker import FAILURES_TO_OPEN, State
from rerank_plugins.cleaning import Cleaner
from rerank_plugins.config import RerankConfig
from rerank_plugins.errors import (
    ClosedError,
    ConfigError,
    InputError,
    MissingExtraError,
    ModelLoadError,
    PluginError,
    QueueFullError,
    RerankError,
    RerankTimeoutError,
    ScoringError,
)
from rerank_plugins.ranking import BLANK_LOGIT
from rerank_plugins.requests import DeferredTexts
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from rerank_plugins.results import Ranking

    Models = dict[str, Any]
    Open = Callable[..., Reranker]
    Rank = Callable[..., Awaitable[Ranking]]

pytestmark = pytest.mark.usefixtures("no_leaks")

QUERY = "red fox"
DOCUMENTS = ["blue sky", "a fox", "a red fox"]
HANG_S = 60


class GatedScorer(FakeScorer):
    """Scores nothing before its gate is opened; ``entered`` says that a batch waits."""

    def __init__(self, **options: Any) -> None:
        super().__init__(self._wait, **options)
        self.gate = threading.Event()
        self.entered = threading.Event()

    def _wait(self, query: str, document: str) -> float:
        self.entered.set()
        assert self.gate.wait(HANG_S)
        return 1.0


class BrokenScorer(FakeScorer):
    """Fails as long as it has an ``error``; ``asked`` counts the batches."""

    def __init__(self, error: BaseException | None = None, **options: Any) -> None:
        super().__init__(self._fail, **options)
        self.error = error
        self.asked = 0

    def _fail(self, query: str, document: str) -> float:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return 1.0


@pytest.fixture
def models() -> dict[str, FakeScorer | Exception | Callable[[], FakeScorer]]:
    """What each model's name opens as: a scorer, or what opening it raises."""
    return {"embedded": FakeScorer(name="embedded"), "lexical": FakeScorer(name="lexical")}


@pytest.fixture(scope="module", autouse=True)
def _detector_is_loaded() -> None:
    """Loading it takes longer than some deadlines here."""
    Cleaner.from_config(RerankConfig()).warm_up()


@pytest.fixture
def open_model(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Reranker]]:
    """Open rerankers of *models*, which fall back unless told otherwise."""

    def open_it(config: RerankConfig) -> FakeScorer:
        found = models[config.model]
        if isinstance(found, Exception):
            # The caller's own, as from a real opening: notes are added to it.
            raise copy.copy(found)
        scorer = found if isinstance(found, FakeScorer) else found()
        assert isinstance(scorer, FakeScorer)
        return scorer

    monkeypatch.setattr("rerank_plugins.registry.open_scorer", open_it)
    with contextlib.ExitStack() as stack:

        def open_reranker(model: str = "big", **settings: Any) -> Reranker:
            settings = {"on_error": "fallback", **settings}
            return stack.enter_context(Reranker(model, **settings))

        yield open_reranker


@pytest.fixture(params=["sync", "async"])
def rank(request: pytest.FixtureRequest) -> Callable[..., Awaitable[Ranking]]:
    """Rank by either method: each claim holds for both."""

    async def call(reranker: Reranker, *args: Any, **options: Any) -> Ranking:
        given = args or (QUERY, DOCUMENTS)
        if request.param == "async":
            return await reranker.arank(*given, **options)
        # In a thread, so that a test may do something else meanwhile.
        return await asyncio.to_thread(reranker.rank, *given, **options)

    return call


ERRORS = [
    ModelLoadError("big", "no such folder"),
    MissingExtraError(package="torch", extra="torch", needed_for="big"),
    ScoringError("the device fell off"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_a_model_that_does_not_open_is_answered_for(
    open_model: Open, models: Models, rank: Rank, error: Exception
) -> None:
    models["big"] = error

    found = await rank(open_model())

    assert found.scorer == "embedded"
    assert [document.index for document in found] == [2, 1, 0]


async def test_a_model_that_throws_is_answered_for_by_the_next_that_does_not(
    open_model: Open, models: Models, rank: Rank
) -> None:
    models["big"] = BrokenScorer(RuntimeError("out of memory"))
    models["embedded"] = BrokenScorer(RuntimeError("out of memory"))

    found = await rank(open_model())

    assert found.scorer == "lexical"
    assert [document.index for document in found] == [2, 1, 0]


async def test_a_model_that_answers_is_not_replaced(
    open_model: Open, models: Models, rank: Rank
) -> None:
    models["big"] = FakeScorer(name="big")
    reranker = open_model()

    assert (await rank(reranker)).scorer == "big"
    assert list(reranker.stats()) == ["big"]


@contextlib.asynccontextmanager
async def full_queue(reranker: Reranker, gated: GatedScorer) -> AsyncIterator[None]:
    """While this lasts, one request is in the scorer and another one waits."""
    waiting = [asyncio.create_task(reranker.arank("first", ["in the scorer"]))]
    try:
        assert await asyncio.to_thread(gated.entered.wait, HANG_S)
        waiting.append(asyncio.create_task(reranker.arank("first", ["in the queue"])))
        async with asyncio.timeout(HANG_S):
            while not reranker._leases.primary.stats().tokens_waiting:
                await asyncio.sleep(0.001)
        yield
    finally:
        gated.gate.set()
        assert {found.scorer for found in await asyncio.gather(*waiting)} == {gated.name}


async def test_a_full_queue_is_answered_for_at_once(
    open_model: Open, models: Models, rank: Rank
) -> None:
    gated = models["big"] = GatedScorer(name="big")
    reranker = open_model(queue_tokens=1)
    async with full_queue(reranker, gated):
        assert (await rank(reranker)).scorer == "embedded"
        assert reranker._leases.primary.breaker.state is State.CLOSED
        assert reranker.stats()["big"].fallbacks == 1


async def test_a_hanging_model_is_answered_for_at_the_deadline(
    open_model: Open, models: Models, rank: Rank
) -> None:
    gated = models["big"] = GatedScorer()
    try:
        found = await asyncio.wait_for(rank(open_model(), timeout_s=3.0), HANG_S)
    finally:
        gated.gate.set()

    assert found.scorer == "embedded"


@pytest.mark.parametrize("fallback", ["lexical", "retrieval_order"])
async def test_the_last_links_answer_where_no_time_is_left(
    open_model: Open, models: Models, rank: Rank, fallback: str
) -> None:
    gated, late = GatedScorer(), GatedScorer(name="late")
    models.update(big=gated, late=late)
    reranker = open_model(fallback=("late", fallback))
    try:
        found = await asyncio.wait_for(rank(reranker, timeout_s=0.3), HANG_S)
    finally:
        gated.gate.set()
        late.gate.set()

    assert found.scorer == fallback


async def test_a_model_that_hangs_while_it_opens_is_answered_for_at_the_deadline(
    open_model: Open, models: Models, rank: Rank
) -> None:
    opening, go_on = threading.Event(), threading.Event()

    def open_slowly() -> FakeScorer:
        opening.set()
        assert go_on.wait(HANG_S)
        return FakeScorer(name="big")

    models["big"] = open_slowly
    reranker = open_model()
    try:
        for _ in range(FAILURES_TO_OPEN):
            found = await asyncio.wait_for(rank(reranker, timeout_s=0.2), HANG_S)
            assert found.scorer in ("embedded", "lexical")
        assert opening.is_set()
        assert reranker._leases.primary.breaker.refuses
        # At once now: no deadline stands behind this one.
        assert (await asyncio.wait_for(rank(reranker), HANG_S)).scorer == "embedded"
    finally:
        go_on.set()


async def test_without_fallback_the_error_is_the_callers(
    open_model: Open, models: Models, rank: Rank
) -> None:
    models["big"] = BrokenScorer(RuntimeError("out of memory"))
    reranker = open_model(on_error="raise")

    for _ in range(FAILURES_TO_OPEN + 1):
        with pytest.raises(ScoringError, match="out of memory"):
            await rank(reranker)
    assert models["big"].asked >= FAILURES_TO_OPEN + 1
    assert list(reranker.stats()) == ["big"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((" ", DOCUMENTS), InputError),
        (("red", ["a", None]), InputError),
    ],
)
async def test_a_wrong_argument_is_the_callers_whoever_would_answer(
    open_model: Open, models: Models, rank: Rank, arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    models["big"] = ERRORS[0]
    reranker = open_model()
    for _ in range(2):
        with pytest.raises(error):
            await rank(reranker, *arguments)


async def test_a_wrong_setting_is_not_papered_over(
    open_model: Open, models: Models, rank: Rank
) -> None:
    models["big"] = FakeScorer(name="big")

    with pytest.raises(ConfigError, match="takes none"):
        await rank(open_model(instruction="find facts"))


async def test_a_plugged_in_function_that_fails_is_the_callers(
    open_model: Open, models: Models, rank: Rank
) -> None:
    models["big"] = FakeScorer(name="big")

    def hook(text: str, language: str | None, role: str) -> str:
        if role == "document":
            raise LookupError("no translation")
        return text

    reranker = open_model(text_hook=hook)
    for _ in range(FAILURES_TO_OPEN):
        with pytest.raises(PluginError, match="no translation"):
            await rank(reranker)
    with pytest.raises(PluginError, match=r"documents\[0\] could not be read"):
        await rank(reranker, QUERY, DeferredTexts([{}], lambda found: str(found["text"])))
    assert reranker._leases.primary.breaker.state is State.CLOSED


async def test_a_closed_reranker_answers_nobody(
    open_model: Open, models: Models, rank: Rank
) -> None:
    models["big"] = ERRORS[0]
    reranker = open_model()
    await rank(reranker)
    reranker.close()

    with pytest.raises(ClosedError):
        await rank(reranker)


def test_a_scorer_that_is_interrupted_interrupts(open_model: Open, models: Models) -> None:
    def open_it() -> FakeScorer:
        raise KeyboardInterrupt

    models["big"] = open_it
    with pytest.raises(KeyboardInterrupt):
        open_model().rank(QUERY, DOCUMENTS)


def test_the_model_is_skipped_in_its_own_chain(open_model: Open, models: Models) -> None:
    broken = models["embedded"] = BrokenScorer(RuntimeError("no"))
    reranker = open_model("embedded")

    assert reranker.rank(QUERY, ["one"]).scorer == "lexical"
    assert broken.asked == 1


def test_a_scorer_of_the_users_own_falls_back_too(open_model: Open) -> None:
    own = BrokenScorer(RuntimeError("no"), name="mine")
    with Reranker(own, on_error="fallback", fallback=("lexical",)) as reranker:
        assert reranker.rank(QUERY, DOCUMENTS).scorer == "lexical"


@pytest.mark.parametrize("chain", [("embedded", "lexical"), ("lexical", "retrieval_order")])
def test_nothing_of_a_half_scored_request_is_kept(
    open_model: Open, models: Models, chain: tuple[str, ...]
) -> None:
    # Pairs of three tokens in batches of one: the first is scored before the second fails.
    models["big"] = FakeScorer(lambda *_: 99.0, name="big", poison="two", batch_tokens=1)
    reranker = open_model(fallback=chain)

    found = reranker.rank(QUERY, ["red fox one", "fox two", "three"])

    assert found.scorer == chain[0]
    assert [document.logit for document in found] == [2.0, 1.0, 0.0]
    assert not any(document.cached for document in found)


def test_score_of_queries_in_several_languages_is_answered_by_one_scorer(
    open_model: Open, models: Models
) -> None:
    models["big"] = FakeScorer(lambda *_: 7.0, name="big")
    models["chinese"] = BrokenScorer(RuntimeError("no"), name="chinese")
    models["lexical"] = FakeScorer(lambda *_: 3.0, name="lexical", activation="logit")
    reranker = open_model(
        language_models={"zh": "chinese"},
        language_detector=lambda text: "zh" if "狐" in text else "en",
        fallback=("lexical",),
    )
    pairs = [("red fox", "a"), ("狐狸", "b"), ("red fox", "c")]
    # From the cache, later: so it has answered before the other fails, whoever is faster.
    reranker.score([pairs[0], pairs[2]])

    assert reranker.score(pairs) == [3.0, 3.0, 3.0]
    stats = reranker.stats()
    assert (stats["big"].fallbacks, stats["chinese"].fallbacks) == (0, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"device": "cuda:1"},
        {"replicas": ["cuda:0", "cuda:1"]},
        {"max_length": 8192},
        {"batch_tokens": 10},
    ],
)
def test_what_speaks_of_the_models_device_does_not_speak_of_the_embedded_fallback(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[RerankConfig] = []

    def open_it(config: RerankConfig) -> FakeScorer:
        opened.append(config)
        if config.model == "big":
            raise ModelLoadError("big", "gone")
        return FakeScorer(name=config.model)

    monkeypatch.setattr("rerank_plugins.registry.open_scorer", open_it)
    with (
        Reranker("big", on_error="fallback", **settings) as reranker,
        Reranker("embedded") as embedded,
    ):
        assert reranker.rank(QUERY, ["a fox"]).scorer == "embedded"
        assert embedded.rank(QUERY, ["a fox"])[0].cached
    config = next(each for each in opened if each.model == "embedded")
    assert (config.device, config.max_length, config.batch_tokens) == ("auto", None, None)
    assert [each.model for each in opened].count("embedded") == 1


def test_a_link_that_cannot_have_the_settings_is_told_of_once_and_passed_over(
    open_model: Open, models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[str] = []

    def refuse() -> FakeScorer:
        tried.append("embedded")
        raise ConfigError("precision: this model has no int4")

    models["big"] = ERRORS[0]
    models["embedded"] = refuse
    reranker = open_model()

    assert [reranker.rank(QUERY, ["a fox"]).scorer for _ in range(3)] == ["lexical"] * 3
    assert len(tried) == 1
    assert caplog.text.count("precision: this model has no int4") == 1


def test_the_lexical_scorer_in_the_models_place_has_the_models_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rerank_plugins.registry.open_scorer", lambda config: FakeScorer())
    with Reranker(backend="lexical", replicas=2) as reranker:
        reranker.warmup()
        assert reranker.stats()["lexical"].replicas == 2


def test_a_link_that_does_not_know_the_language_is_passed_over(
    open_model: Open, models: Models
) -> None:
    models["big"] = ERRORS[2]
    models["embedded"] = FakeScorer(name="embedded", languages=frozenset({"en"}))
    reranker = open_model(language_detector=lambda _: "zh")

    assert reranker.rank("狐狸", ["狐狸"]).scorer == "lexical"
    assert reranker.stats()["embedded"].fallbacks == 0
    assert reranker._leases.lease("embedded").breaker.state is State.CLOSED


def test_fallbacks_that_take_no_instruction_ignore_it(open_model: Open, models: Models) -> None:
    models["big"] = BrokenScorer(RuntimeError("no"), instruction="default")
    models["embedded"] = BrokenScorer(RuntimeError("no"))
    told = models["other"] = FakeScorer(instruction="default", name="other")
    reranker = open_model(fallback=("embedded", "other"))

    assert reranker.rank(QUERY, ["a fox"], instruction="find facts").scorer == "other"
    assert list(told.pairs_scored) == [("find facts: red fox", "a fox")]


async def test_where_all_fail_the_models_error_is_raised_with_the_others_noted(
    open_model: Open, models: Models, rank: Rank
) -> None:
    models["big"] = ERRORS[0]
    models["embedded"] = BrokenScorer(RuntimeError("embedded is broken"))
    models["lexical"] = BrokenScorer(RuntimeError("lexical is broken"))
    reranker = open_model(fallback=("embedded", "lexical"))

    with pytest.raises(ModelLoadError, match="no such folder") as caught:
        await rank(reranker)

    embedded, lexical = caught.value.__notes__
    assert embedded.startswith("fallback 'embedded': ScoringError: ")
    assert "embedded is broken" in embedded
    assert "lexical is broken" in lexical


def test_a_refused_caller_whose_fallbacks_fail_is_told_why(
    open_model: Open, models: Models
) -> None:
    models["big"] = ERRORS[0]
    models["embedded"] = BrokenScorer(RuntimeError("no"))
    reranker = open_model(fallback=("embedded",))
    with pytest.raises(ModelLoadError):
        reranker.rank(QUERY, DOCUMENTS)

    with pytest.raises(ScoringError, match=r"was not asked.*no such folder") as caught:
        reranker.rank(QUERY, DOCUMENTS)
    assert caught.value.retryable


class TestThresholds:
    def test_a_threshold_does_not_apply_where_another_scorer_answers(
        self, open_model: Open, models: Models
    ) -> None:
        models["big"] = FakeScorer(name="big")
        reranker = open_model()
        assert len(reranker.rank(QUERY, DOCUMENTS, score_threshold=0.7)) == 2

        models["broken"] = BrokenScorer(RuntimeError("no"))
        found = open_model("broken").rank(QUERY, DOCUMENTS, score_threshold=0.7)
        assert len(found) == 3

    def test_top_n_does(self, open_model: Open, models: Models) -> None:
        models["big"] = ERRORS[0]

        found = open_model().rank(QUERY, DOCUMENTS, top_n=2, score_threshold=0.9)
        assert [document.index for document in found] == [2, 1]


class TestRetrievalOrder:
    @pytest.fixture
    def reranker(self, open_model: Open, models: Models) -> Reranker:
        models["big"] = ERRORS[0]
        return open_model(fallback=("retrieval_order",), activation="sigmoid")

    async def test_documents_stay_as_they_were_given(self, reranker: Reranker, rank: Rank) -> None:
        found = await rank(reranker, QUERY, ["b", "a", "c"])

        assert [document.text for document in found] == ["b", "a", "c"]
        assert [document.logit for document in found] == [0.0, -1.0, -2.0]
        assert [document.score for document in found] == [0.0, -1.0, -2.0]
        assert str(found[0].score) == "0.0"
        assert (found.scorer, found.activation) == ("retrieval_order", "logit")
        assert found.language is None

    async def test_blank_documents_come_last(self, reranker: Reranker, rank: Rank) -> None:
        found = await rank(reranker, QUERY, [" ", "a", "", "b"])

        assert [document.index for document in found] == [1, 3, 0, 2]
        assert [document.logit for document in found] == [-1.0, -3.0, BLANK_LOGIT, BLANK_LOGIT]

    async def test_no_documents_give_an_empty_ranking(self, reranker: Reranker, rank: Rank) -> None:
        assert len(await rank(reranker, QUERY, [])) == 0

    async def test_duplicates_and_candidates_are_dropped_as_asked(
        self, reranker: Reranker, rank: Rank
    ) -> None:
        found = await rank(
            reranker, QUERY, ["a", "b", "a", "c"], duplicates="drop", max_candidates=2
        )

        assert [document.index for document in found] == [0, 1]
        assert [(d.index, d.reason, d.duplicate_of) for d in found.dropped] == [
            (2, "duplicate", 0),
            (3, "max_candidates", None),
        ]

    async def test_duplicates_that_stay_keep_their_place(
        self, reranker: Reranker, rank: Rank
    ) -> None:
        found = await rank(reranker, QUERY, ["a", "b", "a"], near_duplicates=0.5)

        assert [document.index for document in found] == [0, 1, 2]

    async def test_more_documents_than_the_event_loop_takes(
        self, reranker: Reranker, rank: Rank
    ) -> None:
        texts = [f"document {i}" for i in range(5000)]

        found = await rank(reranker, QUERY, texts)
        assert [document.text for document in found] == texts

    async def test_pairs_are_scored_by_their_place(self, reranker: Reranker) -> None:
        pairs = [("red", "a"), ("fox", "b"), ("red", "c")]

        assert reranker.score(pairs) == [0.0, -1.0, -2.0]
        assert await reranker.ascore(pairs) == [0.0, -1.0, -2.0]


class TestBreaker:
    async def test_a_dead_model_is_not_asked_each_time(
        self, open_model: Open, models: Models, rank: Rank
    ) -> None:
        broken = models["big"] = BrokenScorer(RuntimeError("no"))
        reranker = open_model()

        for _ in range(FAILURES_TO_OPEN + 3):
            assert (await rank(reranker, QUERY, ["one"])).scorer == "embedded"

        assert broken.asked == FAILURES_TO_OPEN
        assert reranker.stats()["big"].fallbacks == FAILURES_TO_OPEN + 3

    async def test_a_model_that_cannot_be_loaded_is_asked_once(
        self, open_model: Open, models: Models, rank: Rank
    ) -> None:
        opened = []

        def fail() -> FakeScorer:
            opened.append(1)
            raise ModelLoadError("big", "no such folder")

        models["big"] = fail
        reranker = open_model()
        for _ in range(3):
            await rank(reranker)

        assert len(opened) == 1

    def test_rerankers_of_one_engine_share_it(self, open_model: Open, models: Models) -> None:
        broken = models["big"] = BrokenScorer(RuntimeError("no"))
        first, second = open_model(), open_model(activation="logit")
        for _ in range(FAILURES_TO_OPEN):
            first.rank(QUERY, ["one"])

        assert second.rank(QUERY, ["one"]).scorer == "embedded"
        assert broken.asked == FAILURES_TO_OPEN

    def test_a_caller_without_fallback_asks_all_the_same_and_closes_it(
        self, open_model: Open, models: Models
    ) -> None:
        broken = models["big"] = BrokenScorer(RuntimeError("no"))
        falling, plain = open_model(), open_model(on_error="raise")
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(ScoringError):
                plain.rank(QUERY, ["one"])
        assert falling.rank(QUERY, ["one"]).scorer == "embedded"

        broken.error = None
        assert plain.rank(QUERY, ["two"]).scorer == "fake"
        assert falling.rank(QUERY, ["one"]).scorer == "fake"

    def test_a_poisoned_document_does_not_hide_the_model_from_others(
        self, open_model: Open, models: Models
    ) -> None:
        models["big"] = FakeScorer(name="big", poison="poison")
        reranker = open_model()
        for i in range(3 * FAILURES_TO_OPEN):
            assert reranker.rank(QUERY, ["poison"]).scorer == "embedded"
            assert reranker.rank(QUERY, [f"document {i}"]).scorer == "big"

    def test_a_cached_answer_is_no_sign_of_life(self, open_model: Open, models: Models) -> None:
        broken = models["big"] = BrokenScorer(name="big")
        reranker = open_model()
        assert reranker.rank(QUERY, ["one"]).scorer == "big"
        broken.error = RuntimeError("no")
        for i in range(FAILURES_TO_OPEN):
            assert reranker.rank(QUERY, [f"new {i}"]).scorer == "embedded"
            found = reranker.rank(QUERY, ["one", " "])
            assert found.scorer == ("big" if i < FAILURES_TO_OPEN - 1 else "embedded")

    def test_a_fallback_has_one_too(self, open_model: Open, models: Models) -> None:
        models["big"] = ERRORS[0]
        embedded = models["embedded"] = BrokenScorer(RuntimeError("no"))
        reranker = open_model()
        for _ in range(FAILURES_TO_OPEN + 2):
            assert reranker.rank(QUERY, ["one"]).scorer == "lexical"

        assert embedded.asked == FAILURES_TO_OPEN
        assert reranker.stats()["embedded"].fallbacks == FAILURES_TO_OPEN + 2

    def test_a_fallback_that_had_only_the_rest_of_the_time_is_not_blamed(
        self, open_model: Open, models: Models
    ) -> None:
        gates = models["big"], models["embedded"] = GatedScorer(), GatedScorer(name="embedded")
        reranker = open_model(timeout_s=0.1)
        try:
            for _ in range(FAILURES_TO_OPEN):
                assert reranker.rank(QUERY, ["one"]).scorer == "lexical"
            assert reranker._leases.primary.breaker.state is State.OPEN
            assert reranker._leases.lease("embedded").breaker.state is State.CLOSED
        finally:
            for gated in gates:
                gated.gate.set()

    def test_a_dead_primary_does_not_hide_the_model_of_another_language(
        self, open_model: Open, models: Models
    ) -> None:
        models["big"] = ERRORS[0]
        models["chinese"] = FakeScorer(name="chinese")
        reranker = open_model(
            language_models={"zh": "chinese"},
            language_detector=lambda text: "zh" if "狐" in text else "en",
        )
        for _ in range(2):
            assert reranker.rank(QUERY, ["one"]).scorer == "embedded"

        assert reranker.rank("狐狸", ["one"]).scorer == "chinese"

    @pytest.mark.parametrize("fails", [False, True])
    def test_a_model_that_was_only_asked_for_its_languages_keeps_no_probe(
        self, open_model: Open, models: Models, fails: bool
    ) -> None:
        models["big"] = FakeScorer(name="big", languages=frozenset({"en"}))
        models["lexical"] = BrokenScorer(RuntimeError("no") if fails else None, name="lexical")
        reranker = open_model(
            language_detector=lambda text: "zh" if "狐" in text else "en",
            fallback=("retrieval_order",),
        )
        breaker = reranker._leases.primary.breaker
        breaker.watch().fail(ModelLoadError("big", "no such folder"))
        breaker._until = 0.0

        assert reranker.rank("狐狸", ["一"]).scorer == ("retrieval_order" if fails else "lexical")
        assert breaker.state is State.HALF_OPEN
        assert reranker.rank(QUERY, ["one"]).scorer == "big"

    def test_a_chain_of_nothing_but_the_model_asks_it_every_time(
        self, open_model: Open, models: Models
    ) -> None:
        broken = models["embedded"] = BrokenScorer(RuntimeError("no"))
        reranker = open_model("embedded", fallback=("embedded",))
        for _ in range(FAILURES_TO_OPEN + 2):
            with pytest.raises(ScoringError, match="RuntimeError: no"):
                reranker.rank(QUERY, ["one"])

        assert broken.asked == FAILURES_TO_OPEN + 2

    async def test_a_refused_caller_needs_no_thread_of_the_dead_model(
        self, open_model: Open, models: Models
    ) -> None:
        models["big"] = ERRORS[0]
        reranker = open_model()
        primary, go_on = reranker._leases.primary, threading.Event()
        primary.breaker.watch().fail(ModelLoadError("big", "no such folder"))
        try:
            for _ in range(64):
                primary.threads().submit(go_on.wait, HANG_S)
            found = await asyncio.wait_for(reranker.arank(QUERY, ["one"]), HANG_S / 2)
        finally:
            go_on.set()

        assert found.scorer == "embedded"

    async def test_a_probe_that_is_cancelled_leaves_its_place_to_the_next(
        self, open_model: Open, models: Models
    ) -> None:
        gated = models["big"] = GatedScorer(name="big")
        reranker = open_model()
        breaker = reranker._leases.primary.breaker
        breaker.watch().fail(ModelLoadError("big", "no such folder"))
        breaker._until = 0.0
        probe = asyncio.create_task(reranker.arank(QUERY, ["one"]))
        try:
            assert await asyncio.to_thread(gated.entered.wait, HANG_S)
            assert breaker.state is State.HALF_OPEN
            assert (await reranker.arank(QUERY, ["two"])).scorer == "embedded"
            probe.cancel()
            with pytest.raises(asyncio.CancelledError):
                await probe
        finally:
            gated.gate.set()

        assert (await reranker.arank(QUERY, ["three"])).scorer == "big"
        assert breaker.state is State.CLOSED

    async def test_a_caller_that_went_away_before_it_was_let_through_takes_no_place(
        self, open_model: Open, models: Models
    ) -> None:
        models["big"] = FakeScorer(name="big")
        cleaning, go_on = threading.Event(), threading.Event()

        def slow(text: str) -> str | None:
            if text == "slow":
                cleaning.set()
                assert go_on.wait(HANG_S)
            return None

        reranker = open_model(language_detector=slow)
        breaker = reranker._leases.primary.breaker
        breaker.watch().fail(ModelLoadError("big", "no such folder"))
        breaker._until = 0.0
        gone = asyncio.create_task(reranker.arank("slow", ["one"]))
        assert await asyncio.to_thread(cleaning.wait, HANG_S)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        go_on.set()

        # Whichever of the two comes first, the place is free again once the other thread is done.
        async with asyncio.timeout(HANG_S):
            while (await reranker.arank(QUERY, ["two"])).scorer != "big":
                await asyncio.sleep(0.001)
        assert breaker.state is State.CLOSED


async def test_callers_of_a_hanging_model_all_get_their_fallback(
    open_model: Open, models: Models
) -> None:
    gated = models["big"] = GatedScorer()
    reranker = open_model(timeout_s=0.5)

    def from_a_thread(i: int) -> Ranking:
        return reranker.rank(QUERY, [f"document {i}"])

    try:
        async with asyncio.timeout(HANG_S):
            found = await asyncio.gather(
                *(asyncio.to_thread(from_a_thread, i) for i in range(8)),
                *(reranker.arank(QUERY, [f"document {i}"]) for i in range(8, 40)),
            )
    finally:
        gated.gate.set()

    assert {ranking.scorer for ranking in found} <= {"embedded", "lexical"}
    assert [ranking[0].text for ranking in found] == [f"document {i}" for i in range(40)]


async def test_the_chain_may_end_in_an_error_at_the_deadline(
    open_model: Open, models: Models, rank: Rank
) -> None:
    gates = [GatedScorer(), GatedScorer()]
    models["big"], models["other"] = gates
    reranker = open_model(fallback=("other",))
    try:
        with pytest.raises(RerankTimeoutError, match=r"timeout_s=0\.2") as caught:
            await asyncio.wait_for(rank(reranker, timeout_s=0.2), HANG_S)
    finally:
        for gated in gates:
            gated.gate.set()
    assert isinstance(caught.value, RerankError)
    assert caught.value.__notes__[0].startswith("fallback 'other': ")


async def test_a_full_queue_without_a_way_out_is_a_full_queue(
    open_model: Open, models: Models
) -> None:
    gated = models["embedded"] = GatedScorer(name="embedded")
    reranker = open_model("embedded", fallback=("embedded",), queue_tokens=1)
    async with full_queue(reranker, gated):
        with pytest.raises(QueueFullError):
            await reranker.arank(QUERY, ["one"])


async def test_a_link_that_was_passed_over_has_not_failed(open_model: Open, models: Models) -> None:
    models["big"] = BrokenScorer(RuntimeError("out of memory"))
    gated = models["english"] = GatedScorer(name="english", languages=frozenset({"en"}))
    reranker = open_model(
        fallback=("english", "retrieval_order"),
        language_detector=lambda text: "zh" if "狐" in text else "en",
    )
    pairs = [("red fox", "a fox"), ("红狐狸", "狐狸")]
    try:
        for _ in range(FAILURES_TO_OPEN):
            await asyncio.to_thread(reranker.score, pairs)
    finally:
        gated.gate.set()

    assert reranker._leases.lease("english").breaker.state is State.CLOSED


def test_warming_up_opens_the_lexical_link_too(open_model: Open, models: Models) -> None:
    models["big"] = FakeScorer(name="big")
    reranker = open_model(fallback=("embedded", "lexical"))

    reranker.warmup()

    assert reranker._leases.lease("lexical").opened
    # Not this one: it may be a large model, which nobody asks for as long as the first answers.
    assert not reranker._leases.lease("embedded").opened
