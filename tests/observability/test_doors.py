"""`observers=` goes through both doors, and never shows more than its type."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from rerank_plugins import ConfigError, Observer, RequestEvent
from rerank_plugins.langchain import RerankCompressor, RerankCrossEncoder
from rerank_plugins.llama_index import RerankPostprocessor

if TYPE_CHECKING:
    from tests.observability.conftest import Seen

DOORS: tuple[Any, ...] = (RerankCompressor, RerankCrossEncoder, RerankPostprocessor)


@dataclass
class Secretive(Observer):
    """Equal to others of its kind, with a repr that nobody should see."""

    token: str = "secret"
    heard: list[RequestEvent] = field(default_factory=list)

    def on_request(self, event: RequestEvent) -> None:
        self.heard.append(event)


def ask(door: Any) -> None:
    if isinstance(door, RerankCompressor):
        door.compress_documents([Document("a fox")], "red fox")
    elif isinstance(door, RerankCrossEncoder):
        door.score([("red fox", "a fox")])
    else:
        nodes = [NodeWithScore(node=TextNode(text="a fox"))]
        door.postprocess_nodes(nodes, query_str="red fox")


@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_heard_and_so_are_its_copies(door: Any, seen: Seen) -> None:
    made = door(model="lexical", observers=[seen])
    for each in (made, copy.copy(made), copy.deepcopy(made), made.model_copy(deep=True)):
        assert each.observers[0] is seen
        ask(each)

    assert [event.model for event in seen.requests] == ["lexical"] * 4


@pytest.mark.parametrize("door", DOORS)
def test_a_pickled_door_brings_its_observers(door: Any) -> None:
    other = pickle.loads(pickle.dumps(door(model="lexical", observers=[Secretive()])))

    ask(other)

    assert len(other.observers[0].heard) == 1


@pytest.mark.parametrize("door", DOORS)
def test_a_door_shows_observers_by_their_type(door: Any) -> None:
    shown = repr(door(model="lexical", observers=[Secretive()]))

    assert "observers=('Secretive',)" in shown
    assert "secret" not in shown
    assert "observers" not in repr(door(model="lexical"))


def test_an_observer_that_replaces_an_equal_one_is_heard() -> None:
    one, two = Secretive(), Secretive()
    door = RerankCrossEncoder(model="lexical", observers=[one])
    door.score([])
    assert len(one.heard) == 1
    one.heard.clear()

    assert one == two
    door.observers = (two,)
    door.score([])

    assert (len(one.heard), len(two.heard)) == (0, 1)


def test_a_door_with_observers_has_no_json() -> None:
    door = RerankPostprocessor(model="lexical", observers=[Secretive()])

    with pytest.raises(ConfigError, match="observers: an observer cannot be written") as raised:
        door.to_json()
    assert "secret" not in str(raised.value)
    assert RerankPostprocessor.from_json(door.to_json(exclude={"observers"})).observers == ()
    assert RerankPostprocessor.from_json(RerankPostprocessor().to_json()).observers == ()
