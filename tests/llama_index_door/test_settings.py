"""Settings as LlamaIndex keeps them: dumps, pickles, copies, and the reranker behind them."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import sys
from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core.callbacks import CallbackManager
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode

from rerank_plugins.config import RerankConfig
from rerank_plugins.errors import ConfigError, MissingExtraError
from rerank_plugins.llama_index import RerankPostprocessor
from rerank_plugins.options import Activation
from rerank_plugins.reranker import Reranker
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

SETTINGS: dict[str, Any] = {
    "model": "lexical",
    "activation": "logit",
    "max_length": 128,
    "language_models": {"zh": "lexical"},
    "normalizer": None,
    "cache_entries": 7,
    "timeout_s": 1.5,
    "top_n": None,
    "score_threshold": 0.25,
    "min_results": 1,
    "metadata_mode": "none",
}


def shout(text: str) -> str:
    return text.upper()


def _settings(post: RerankPostprocessor) -> dict[str, Any]:
    left_out = {"callback_manager", "reranker"}
    return {
        name: getattr(post, name)
        for name in RerankPostprocessor.model_fields
        if name not in left_out
    }


def test_it_is_a_postprocessor_with_a_name_of_its_own() -> None:
    assert issubclass(RerankPostprocessor, BaseNodePostprocessor)
    assert RerankPostprocessor.class_name() == "RerankPostprocessor"


def test_every_setting_of_a_reranker_is_a_field() -> None:
    assert RerankConfig.model_fields.keys() <= RerankPostprocessor.model_fields.keys()
    assert RerankPostprocessor(activation="logit")._open().config.activation is Activation.LOGIT


def test_a_callback_manager_can_be_assigned() -> None:
    post, manager = RerankPostprocessor(), CallbackManager()
    post.callback_manager = manager
    assert post.callback_manager is manager


def test_dict_and_json_round_trips() -> None:
    post = RerankPostprocessor(**SETTINGS)
    from_dict = RerankPostprocessor.from_dict(post.to_dict())
    from_json = RerankPostprocessor.from_json(post.to_json())
    assert _settings(from_dict) == _settings(from_json) == _settings(post)
    assert from_json.metadata_mode is MetadataMode.NONE
    assert json.loads(post.to_json())["class_name"] == "RerankPostprocessor"


def test_a_dump_can_be_validated_as_pydantic_does() -> None:
    post = RerankPostprocessor(**SETTINGS)
    assert _settings(RerankPostprocessor.model_validate(post.model_dump())) == _settings(post)
    with pytest.raises(ValueError, match="class_name"):
        RerankPostprocessor.model_validate({"class_name": "SomethingElse"})


def test_what_comes_back_shares_the_engine(
    opened_by_name: list[FakeScorer], nodes: Any, query: str
) -> None:
    post = RerankPostprocessor(model="lexical", language_detector=None, cache_entries=11)
    copies = (
        RerankPostprocessor.from_json(post.to_json()),
        pickle.loads(pickle.dumps(post)),
        copy.deepcopy(post),
    )
    for each in (post, *copies):
        each.postprocess_nodes(nodes, query_str=query)
    (scorer,) = opened_by_name
    assert scorer.pairs_scored.total() == len(nodes)


def test_a_function_stays_in_a_dict_and_is_named_by_json() -> None:
    post = RerankPostprocessor(model="lexical", normalizer=shout)
    assert RerankPostprocessor.from_dict(post.to_dict()).normalizer is shout
    with pytest.raises(ConfigError, match=r"normalizer: a function, .*, cannot be written as JSON"):
        post.to_json()
    dumped = post.to_json(exclude={"normalizer"})
    assert RerankPostprocessor.from_json(dumped, normalizer=shout).normalizer is shout


def test_a_reranker_that_stands_is_dumped_by_its_settings() -> None:
    with Reranker("lexical", activation="logit", max_length=64) as reranker:
        post = RerankPostprocessor(reranker=reranker, top_n=2)
        assert post._open() is reranker
        assert "max_length" not in post.to_dict(exclude={"max_length"})
        for twin in (
            RerankPostprocessor.from_dict(post.to_dict()),
            RerankPostprocessor.from_json(post.to_json()),
        ):
            assert twin.top_n == 2
            assert twin._open().config == reranker.config


def test_a_reranker_that_is_handed_in_again_replaces_the_settings() -> None:
    with Reranker(FakeScorer(name="mine"), timeout_s=9.0) as reranker:
        post = RerankPostprocessor(reranker=reranker, top_n=2)
        left_out = {"model"}
        for twin in (
            RerankPostprocessor.from_dict(post.to_dict(exclude=left_out), reranker=reranker),
            RerankPostprocessor.from_json(post.to_json(exclude=left_out), reranker=reranker),
        ):
            assert twin._open() is reranker
            assert twin.top_n == 2


@pytest.mark.parametrize("dump", [RerankPostprocessor.to_dict, RerankPostprocessor.to_json])
def test_a_scorer_of_the_users_own_is_not_dumped_by_a_name(dump: Any) -> None:
    """What came back would open another model of that name, or none."""
    with Reranker(FakeScorer(name="mine")) as reranker:
        post = RerankPostprocessor(reranker=reranker)
        with pytest.raises(ConfigError, match=r"'mine' .*exclude=\{\"model\"\}.*reranker="):
            dump(post)


def test_a_reranker_and_settings_of_its_own_are_an_error() -> None:
    with (
        Reranker("lexical") as reranker,
        pytest.raises(ValueError, match=r"reranker= .*timeout_s"),
    ):
        RerankPostprocessor(reranker=reranker, timeout_s=1.0)


def test_settings_that_contradict_a_reranker_are_not_dumped() -> None:
    with Reranker("lexical") as reranker:
        post = RerankPostprocessor(timeout_s=1.0)
        post.reranker = reranker
        with pytest.raises(ConfigError, match="leave out timeout_s"):
            post.to_dict()


def test_a_setting_can_be_assigned_after_the_first_use() -> None:
    post = RerankPostprocessor(model="lexical")
    before = post._open()
    assert post._open() is before
    post.activation = Activation.LOGIT
    assert post._open().config.activation is Activation.LOGIT


@pytest.mark.parametrize(
    ("name", "value"),
    [("score_threshold", float("nan")), ("score_threshold", True), ("top_n", True), ("top_n", 2.0)],
)
def test_a_value_that_no_call_would_take_is_refused_at_once(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}\n"):
        RerankPostprocessor(**{name: value})


def test_it_has_a_json_schema_of_its_settings() -> None:
    properties = RerankPostprocessor.model_json_schema()["properties"]

    assert properties.keys() >= {"model", "top_n", "metadata_mode", "class_name"}
    assert "reranker" not in properties


def test_a_pickle_holds_settings_only() -> None:
    post = RerankPostprocessor(**SETTINGS)
    post._open()
    pickled = pickle.dumps(post)
    assert len(pickled) < 4_000
    assert b"rerank_plugins.reranker" not in pickled
    twin = pickle.loads(pickled)
    assert _settings(twin) == _settings(post)


def test_a_pickle_carries_the_reranker_by_its_settings() -> None:
    with Reranker("lexical", cache_entries=3) as reranker:
        twin = pickle.loads(pickle.dumps(RerankPostprocessor(reranker=reranker, top_n=2)))
        assert twin.top_n == 2
        assert twin.reranker is not None
        assert twin.reranker.config == reranker.config


def test_what_cannot_be_pickled_is_never_dropped_in_silence() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(RerankPostprocessor(normalizer=lambda text: text))
    with pytest.raises(TypeError, match="pickle"), Reranker(FakeScorer()) as reranker:
        pickle.dumps(RerankPostprocessor(reranker=reranker))


def test_pickling_leaves_the_callback_manager_where_it_is() -> None:
    post = RerankPostprocessor()
    post.callback_manager = manager = CallbackManager()
    manager.no_pickle = (n for n in ())  # type: ignore[attr-defined]
    twin = pickle.loads(pickle.dumps(post))
    assert post.callback_manager is manager
    assert isinstance(twin.callback_manager, CallbackManager)


def test_copies_share_the_reranker() -> None:
    with Reranker(FakeScorer()) as reranker:
        post = RerankPostprocessor(reranker=reranker, top_n=2)
        for twin in (copy.deepcopy(post), copy.copy(post), post.model_copy(deep=True)):
            assert twin.reranker is reranker
            assert twin.top_n == 2


def test_repr_shows_settings_and_no_engine() -> None:
    with Reranker(FakeScorer()) as reranker:
        shown = repr(RerankPostprocessor(reranker=reranker, top_n=2))
    assert "top_n=2" in shown
    assert "reranker" not in shown


class _Missing:
    """Makes the import system find nothing of a name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == self.name:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


def _import_without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in list(sys.modules):
        if module.split(".")[0] == "llama_index" or module == "rerank_plugins.llama_index":
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [_Missing(name), *sys.meta_path])
    importlib.import_module("rerank_plugins.llama_index")


@pytest.mark.parametrize("name", ["llama_index", "llama_index.core"])
def test_a_missing_llama_index_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with pytest.raises(MissingExtraError, match=r"rerank-plugins\[llama-index\]") as caught:
        _import_without(monkeypatch, name)
    assert caught.value.package == "llama_index.core"
    assert "rerank_plugins.llama_index" in str(caught.value)


def test_what_is_missing_inside_llama_index_is_its_own_to_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(
        ModuleNotFoundError, match=r"No module named 'llama_index\.core\.callbacks'"
    ):
        _import_without(monkeypatch, "llama_index.core.callbacks")
