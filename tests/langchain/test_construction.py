"""How the LangChain doors are made, copied, shown and sent elsewhere."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps
from langchain_core.retrievers import BaseRetriever
from pydantic import ValidationError

from rerank_plugins import Activation, Backend, Reranker, langchain
from rerank_plugins.langchain import RerankCompressor, RerankCrossEncoder, RerankRetriever
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable

    Faked = Callable[..., Reranker]

DOCUMENTS = [Document("a Fox"), Document("the red fox")]


class Fixed(BaseRetriever):
    """A retriever that pickle finds by its name."""

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        return DOCUMENTS


def retriever(**settings: Any) -> RerankRetriever:
    return RerankRetriever(base_retriever=Fixed(), **settings)


DOORS = [
    pytest.param(RerankCompressor, id="compressor"),
    pytest.param(retriever, id="retriever"),
    pytest.param(RerankCrossEncoder, id="cross-encoder"),
]
every_door = pytest.mark.parametrize("make", DOORS)


class Secretive:
    """A plug-in whose repr nobody should print."""

    def __call__(self, text: str) -> str:
        return text.replace("Fox", "red fox fox")

    def __repr__(self) -> str:
        return "Secretive(token='s3cret')"

    def __deepcopy__(self, memo: dict[int, Any]) -> Secretive:
        raise AssertionError("a copy of a door copies no plug-in")


def shout(text: str) -> str:
    return text.upper()


def test_the_module_names_its_doors() -> None:
    assert langchain.__all__ == ["RerankCompressor", "RerankCrossEncoder", "RerankRetriever"]


@every_door
def test_settings_go_to_the_reranker_by_their_names(make: Callable[..., Any]) -> None:
    door = make(model="lexical", activation="logit", cache_entries=5, normalizer=shout)

    config = door._open().config
    assert (config.model, config.backend, config.cache_entries) == ("lexical", Backend.AUTO, 5)
    assert (config.activation, config.normalizer) == (Activation.LOGIT, shout)


@every_door
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 3}, "top_k\n.*not permitted"),
        ({"cache_entries": -1}, "cache_entries\n.*greater than or equal to 0"),
        ({"backend": "lexical", "model": "org/name"}, "loads no model, but model is 'org/name'"),
        ({"model": " "}, "model is blank"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(
    make: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**settings)


@pytest.mark.parametrize("make", DOORS[:2])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score_threshold", math.nan),
        ("score_threshold", math.inf),
        ("score_threshold", True),
        ("top_n", True),
        ("top_n", "3"),
        ("min_results", True),
        ("timeout_s", math.inf),
    ],
)
def test_a_value_that_no_call_would_take_is_refused_when_the_door_is_made(
    make: Callable[..., Any], name: str, value: object
) -> None:
    with pytest.raises(ValidationError, match=f"{name}\n"):
        make(**{name: value})


@pytest.mark.parametrize("name", ["top_n", "score_threshold", "min_results"])
def test_a_cross_encoder_takes_nothing_that_it_would_ignore(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name}\n.*not permitted"):
        RerankCrossEncoder(**{name: 1})


@every_door
def test_a_reranker_and_settings_are_not_mixed(faked: Faked, make: Callable[..., Any]) -> None:
    with pytest.raises(ValidationError, match="leave out model, timeout_s"):
        make(reranker=faked(), timeout_s=3, model="lexical")


@every_door
def test_a_door_has_a_json_schema_of_its_settings(make: Callable[..., Any]) -> None:
    door = type(make())

    properties = door.model_json_schema()["properties"]

    assert properties.keys() >= {"model", "timeout_s"}
    assert not properties.keys() & {"reranker", "text_fn", "text_hook", "base_retriever"}


@every_door
def test_plugged_in_functions_survive_normal_use(
    faked: Faked, opened_by_name: list[FakeScorer], make: Callable[..., Any]
) -> None:
    plugin = Secretive()
    door = make(model="lexical", normalizer=plugin, text_hook=lambda text, *_: text.strip())

    for twin in (door, door.model_copy(), copy.copy(door)):
        assert twin._open().config.normalizer is plugin
        assert twin._open().score([("red fox", " a Fox ")])
    assert list(opened_by_name[0].pairs_scored) == [("red fox", "a red fox fox")]


@every_door
def test_a_deep_copy_shares_the_reranker(faked: Faked, make: Callable[..., Any]) -> None:
    reranker = faked(normalizer=Secretive())
    door = make(reranker=reranker)

    for twin in (copy.deepcopy(door), door.model_copy(deep=True)):
        assert twin is not door
        assert twin._open() is reranker

    by_name = make(model="lexical")
    assert copy.deepcopy(by_name)._open() is by_name._open()


@every_door
def test_a_pickle_holds_settings_and_no_engine(
    opened_by_name: list[FakeScorer], make: Callable[..., Any]
) -> None:
    door = make(model="lexical", normalizer=shout)
    door._open().score([("red fox", "a fox")])

    pickled = pickle.dumps(door)
    twin = pickle.loads(pickled)

    assert len(pickled) < 5_000
    assert b"FakeScorer" not in pickled
    assert twin._open().config == door._open().config
    assert twin._open().score([("red fox", "a fox")]) == door._open().score([("red fox", "a fox")])
    assert len(opened_by_name) == 1


@every_door
def test_what_is_shown_and_traced_tells_no_secret(faked: Faked, make: Callable[..., Any]) -> None:
    plugged = make(model="lexical", normalizer=Secretive(), text_hook=lambda text, *_: text)
    given = make(reranker=faked(FakeScorer(name="s3cret")))

    for shown in (repr(plugged), str(plugged), dumps(plugged), repr(given), dumps(given)):
        assert "s3cret" not in shown
        assert "Reranker(" not in shown
        assert " at 0x" not in shown


def test_a_repr_names_what_differs_from_the_defaults() -> None:
    assert repr(RerankCrossEncoder()) == "RerankCrossEncoder()"
    assert repr(RerankCrossEncoder(model="lexical", normalizer=shout)) == (
        "RerankCrossEncoder(model='lexical', normalizer='shout')"
    )
    assert "top_n=5" in repr(RerankCompressor(top_n=5))


def test_a_dump_of_the_fields_leaves_the_reranker_out(faked: Faked) -> None:
    compressor = RerankCompressor(reranker=faked(), top_n=7)

    dumped = compressor.model_dump(mode="json")

    assert "reranker" not in dumped
    assert RerankCompressor(**dumped).top_n == 7


IMPORTS = """
import sys
{before}
try:
    import rerank_plugins.langchain
except ImportError as exc:
    print(type(exc).__name__, exc)
foreign = ("llama_index", "langchain_classic", "langchain_community", "torch", "onnxruntime")
print([name for name in foreign if name in sys.modules])
"""

MISSING = """\
MissingExtraError rerank_plugins.langchain needs the package 'langchain_core', which is not \
installed. Install it with: pip install "rerank-plugins[langchain]"
"""
TOO_OLD = """\
ModuleNotFoundError import of langchain_core.cross_encoders halted; None in sys.modules
"""


@pytest.mark.parametrize(
    ("before", "printed"),
    [
        ("", ""),
        ("sys.modules['langchain_core'] = None", MISSING),
        ("sys.modules['langchain_core.cross_encoders'] = None", TOO_OLD),
    ],
    ids=["installed", "missing", "too old"],
)
def test_the_door_imports_langchain_core_and_nothing_else(before: str, printed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == printed + "[]\n"
