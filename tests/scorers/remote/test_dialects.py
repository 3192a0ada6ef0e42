"""Each dialect is spoken as its schema says, and answers are read whatever their order."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import ConfigError, RerankConfig
from tests.loopback_rerankers import PATHS, scored, shared_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from rerank_plugins import Reranker
    from tests.loopback_rerankers import RerankServer

    Connect = Callable[..., Reranker]
    Serve = Callable[..., RerankServer]

QUERY = "where does the river meet the sea"
DOCUMENTS = ["a dog", "the river and the sea", "sea", 'an odd one: "ä" 河 😀 \\ \n', "the river"]

LOGITS = ("tei", "infinity", "vllm", "nim", "own")
SCORES = ("jina", "cohere")
TELLS = ("tei", "infinity", "vllm", "own")


def _settings(dialect: str) -> dict[str, Any]:
    if dialect in TELLS:
        return {}
    needs_name = {} if dialect == "nim" else {"remote_model": "acme/ranker"}
    return {"dialect": dialect, **needs_name}


@pytest.mark.parametrize("dialect", LOGITS)
def test_logits_come_back_to_their_documents(dialect: str, serve: Serve, connect: Connect) -> None:
    server = serve(dialect)
    reranker = connect(server, **_settings(dialect))

    ranking = reranker.rank(QUERY, DOCUMENTS)

    expected = {text: shared_words(QUERY, text) for text in DOCUMENTS}
    assert {each.text: each.logit for each in ranking} == pytest.approx(expected, abs=1e-6)
    for each in ranking:
        assert each.score == pytest.approx(1 / (1 + math.exp(-each.logit)), abs=1e-6)
    assert ranking.scorer == "remote/acme/ranker"
    assert ranking.activation == "sigmoid"
    assert [each.path for each in server.asked] == [PATHS[dialect]]


@pytest.mark.parametrize("dialect", SCORES)
def test_scores_alone_are_left_as_they_are(dialect: str, serve: Serve, connect: Connect) -> None:
    server = serve(dialect)
    reranker = connect(server, **_settings(dialect))

    ranking = reranker.rank(QUERY, DOCUMENTS)

    for each in ranking:
        logit = shared_words(QUERY, each.text)
        assert each.score == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)
        assert each.score == each.logit
    assert ranking.activation == "logit"


BODIES: dict[str, dict[str, Any]] = {
    "tei": {
        "query": "q",
        "texts": ["a", "b"],
        "raw_scores": True,
        "return_text": False,
        "truncate": True,
    },
    "infinity": {
        "query": "q",
        "documents": ["a", "b"],
        "model": "acme/ranker",
        "raw_scores": True,
        "return_documents": False,
    },
    "own": {
        "query": "q",
        "documents": ["a", "b"],
        "model": "acme/ranker",
        "raw_scores": True,
        "return_documents": False,
    },
    "vllm": {
        "query": "q",
        "documents": ["a", "b"],
        "model": "acme/ranker",
        "top_n": 0,
        "use_activation": False,
        "activation": False,
        "truncate_prompt_tokens": -1,
    },
    "jina": {
        "query": "q",
        "documents": ["a", "b"],
        "model": "acme/ranker",
        "top_n": 2,
        "return_documents": False,
    },
    "cohere": {"query": "q", "documents": ["a", "b"], "model": "acme/ranker", "top_n": 2},
    "nim": {
        "query": {"text": "q"},
        "passages": [{"text": "a"}, {"text": "b"}],
        "model": "acme/ranker",
        "truncate": "END",
    },
}


@pytest.mark.parametrize("dialect", BODIES)
def test_a_request_is_as_the_schema_has_it(dialect: str, serve: Serve, connect: Connect) -> None:
    server = serve(dialect)

    connect(server, **_settings(dialect)).rank("q", ["a", "b"])

    (asked,) = server.asked
    assert asked.body == BODIES[dialect]
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["user-agent"].startswith("rerank-plugins/")
    assert "authorization" not in asked.headers


def test_a_request_has_no_more_documents_than_the_server_takes(
    serve: Serve, connect: Connect
) -> None:
    server = serve("tei", info={"max_client_batch_size": 7}, documents=7)
    documents = [f"river {n} " + "sea " * (n % 5) for n in range(60)]

    ranking = connect(server).rank(QUERY, documents)

    assert max(len(each.body["texts"]) for each in server.asked) == 7
    assert {each.index: each.logit for each in ranking} == pytest.approx(
        {n: shared_words(QUERY, text) for n, text in enumerate(documents)}, abs=1e-6
    )


def test_requests_of_one_batch_are_sent_at_the_same_time(serve: Serve, connect: Connect) -> None:
    import threading

    server = serve("tei", info={"max_client_batch_size": 4, "max_concurrent_requests": 64})
    reranker = connect(server)
    reranker.warmup()
    # Nobody is answered before all four are there.
    server.gate = threading.Barrier(4)

    assert len(reranker.rank(QUERY, [f"sea {n}" for n in range(16)])) == 16


def test_half_of_the_permits_of_tei_are_left_to_others(serve: Serve, connect: Connect) -> None:
    from rerank_plugins.scorers import open_scorer

    server = serve("tei", info={"max_client_batch_size": 4, "max_concurrent_requests": 17})
    scorer = open_scorer(RerankConfig(model=server.url))

    entered = []
    # One that holds its documents' permits: who comes third finds the others inside.
    server.always = lambda handler: (
        entered.append(server.at_once),
        time.sleep(0.05),
        handler.answer(*scored(server, handler.body)),
    )
    scorer.forward(scorer.encode(QUERY, [f"sea {n}" for n in range(64)]))
    scorer.close()

    assert len(entered) == 16
    assert max(entered) == 2


def test_pairs_of_several_queries_become_a_request_each(serve: Serve, connect: Connect) -> None:
    server = serve("infinity")
    pairs = [(f"query {n % 3}", f"document {n} query") for n in range(12)]

    scores = connect(server, activation="logit").score(pairs)

    assert scores == pytest.approx([shared_words(*pair) for pair in pairs], abs=1e-6)
    assert all(isinstance(each.body["query"], str) for each in server.asked)


def test_a_text_that_infinity_would_refuse_is_cut_and_marked(
    serve: Serve, connect: Connect
) -> None:
    server = serve("infinity")

    ranking = connect(server).rank(QUERY, ["sea " * 40_000, "sea"])

    assert {each.index: each.truncated for each in ranking} == {0: True, 1: False}
    assert max(len(text) for text in server.asked[0].body["documents"]) == 122_880


def test_a_body_stays_below_what_servers_take(serve: Serve, connect: Connect) -> None:
    server = serve("vllm")
    documents = [f"{n} " + "sea " * 100_000 for n in range(8)]

    ranking = connect(server, batch_tokens=10_000_000).rank(QUERY, documents)

    assert len(ranking) == 8
    assert max(each.size for each in server.asked) < 2_000_000


def test_our_own_service_is_told_an_instruction(serve: Serve, connect: Connect) -> None:
    server = serve("own", info={"instructed": ["acme/ranker"]})
    reranker = connect(server)

    first = reranker.rank("q", ["a"])
    told = reranker.rank("q", ["a"], instruction="find the opposite")

    assert reranker.takes_instruction
    assert "instruction" not in server.asked[0].body
    assert server.asked[1].body["instruction"] == "find the opposite"
    assert not first[0].cached
    assert not told[0].cached


def test_a_server_that_takes_no_instruction_is_not_told_one(serve: Serve, connect: Connect) -> None:
    reranker = connect(serve("tei"), instruction="find facts")

    with pytest.raises(ConfigError, match="instruction"):
        reranker.rank("q", ["a"])


@pytest.mark.parametrize("dialect", SCORES)
def test_scores_are_not_squashed_twice(dialect: str, serve: Serve, connect: Connect) -> None:
    with pytest.raises(ConfigError, match="gives scores and no logits"):
        connect(serve(dialect), activation="sigmoid", **_settings(dialect))
