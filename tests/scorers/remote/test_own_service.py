"""This project's own service behind the remote scorer: the engine twice, the same answers."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from rerank_plugins import ModelLoadError, RerankConfig, Reranker
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rerank_plugins.service.settings import ServiceSettings

    Connect = Callable[..., Reranker]

QUERY = "where does the river meet the sea"
DOCUMENTS = [
    "the river meets the sea in a wide delta",
    "a dog sat on the mat",
    "",
    "river " * 3000,
    'an odd one: "ä" 河 😀 \\ \n',
]


@contextmanager
def serving(*models: Reranker, settings: ServiceSettings | None = None) -> Iterator[str]:
    """Run the service over *models* on loopback."""
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    from prometheus_client import CollectorRegistry

    from rerank_plugins.service.app import create_app

    served = {model.config.model: model for model in models}
    app = create_app(served, settings, registry=CollectorRegistry())
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def test_the_same_logits_as_in_this_process(connect: Connect) -> None:
    with serving(Reranker("embedded"), Reranker("lexical")) as address:
        for model in ("embedded", "lexical"):
            remote = connect(address, remote_model=model)
            here = connect(model)

            theirs, ours = remote.rank(QUERY, DOCUMENTS), here.rank(QUERY, DOCUMENTS)

            assert theirs.scorer == f"remote/{model}"
            assert [each.index for each in theirs] == [each.index for each in ours]
            logits = [each.logit for each in ours]
            assert [each.logit for each in theirs] == pytest.approx(logits, abs=1e-5)
            scores = [each.score for each in ours]
            assert [each.score for each in theirs] == pytest.approx(scores, abs=1e-6)
            remote.close()


def test_a_key_opens_it_and_another_does_not(connect: Connect) -> None:
    from rerank_plugins.service.settings import ServiceSettings

    settings = ServiceSettings(api_keys=("open-sesame",))
    with serving(Reranker("lexical"), settings=settings) as address:
        with_key = connect(address, api_key="open-sesame")
        assert len(with_key.rank(QUERY, DOCUMENTS)) == 5
        with pytest.raises(ModelLoadError, match="it wants an api_key"):
            connect(address).warmup()
        with pytest.raises(ModelLoadError, match="it wants another api_key"):
            connect(address, api_key="sesame").warmup()
        with_key.close()


def test_a_model_that_is_not_served_is_named(connect: Connect) -> None:
    with (
        serving(Reranker("lexical")) as address,
        pytest.raises(ModelLoadError, match="serves lexical, and remote_model is 'other'"),
    ):
        connect(address, remote_model="other").warmup()


def test_what_changes_a_logit_there_is_in_the_key_here(connect: Connect) -> None:
    from rerank_plugins.scorers import open_scorer

    identities = []
    for settings in ({}, {}, {"normalizer": None}):
        with serving(Reranker("lexical", **settings)) as address:  # type: ignore[arg-type]
            scorer = open_scorer(RerankConfig(model=address))
            identities.append(scorer.identity)
            scorer.close()

    assert identities[0] == identities[1] != identities[2]


def test_an_instruction_reaches_the_model_behind_the_service(connect: Connect) -> None:
    scorer = FakeScorer(instruction="find facts")
    with serving(Reranker(scorer)) as address:
        remote = connect(address)
        remote.rank("red fox", ["a fox"])
        remote.rank("red fox", ["a fox"], instruction="find lies")
        asked = {query for batch in scorer.batches for query, _ in batch}
        assert {"find facts: red fox", "find lies: red fox"} <= asked
        remote.close()
    with serving(Reranker("lexical")) as address:
        remote = connect(address)
        assert not remote.takes_instruction
        remote.close()
