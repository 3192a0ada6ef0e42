"""What a server may do to a request, and what its caller gets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins import QueueFullError, RerankTimeoutError, ScoringError
from rerank_plugins.scorers.remote import retries, scorer
from rerank_plugins.scorers.remote.failures import retry_after_s
from tests.loopback_rerankers import Stall, answering, half, reset, status

if TYPE_CHECKING:
    from collections.abc import Callable

    from rerank_plugins import Reranker
    from tests.loopback_rerankers import RerankServer

    Connect = Callable[..., Reranker]
    Serve = Callable[..., RerankServer]

DOCUMENTS = ["a river", "the sea", "a dog"]
PAGE = b"<!DOCTYPE html><html><body>Bad gateway, says the proxy</body></html>"

GOES_AWAY = {
    "500": status(500, {"error": "inference failed", "error_type": "backend"}),
    "424": status(424, {"error": "inference failed", "error_type": "backend"}),
    "502 as a page": status(502, PAGE),
    "503": status(503, {"error": "unhealthy"}),
    "503 with Retry-After": status(503, {"error": "unhealthy"}, retry_after="0"),
    "429": status(429, {"error": "overloaded"}),
    "reset": reset,
    "half an answer": half,
}


@pytest.mark.parametrize("name", GOES_AWAY)
def test_a_failure_that_goes_away_is_not_noticed(name: str, serve: Serve, connect: Connect) -> None:
    server = serve("infinity")
    server.faults.append(GOES_AWAY[name])

    ranking = connect(server).rank("the river", DOCUMENTS)

    assert len(ranking) == 3
    assert len(server.asked) == 2
    assert server.asked[0].body == server.asked[1].body


WRONG = {
    "no JSON": (b"{'results': []}", "what is no JSON"),
    "a page": (PAGE, "an HTML page"),
    "cut JSON": (b'{"results": [{"index": 0, "relev', "what is no JSON"),
    "deep JSON": (b"[" * 100_000, "what is no JSON"),
    "no results": ({"data": []}, "no a list named 'results'"),
    "a bare list": ([], "'results'"),
    "one is missing": ({"results": [{"index": 0, "relevance_score": 1.0}]}, "2 of 3 documents"),
    "an index twice": (
        {"results": [{"index": 1, "relevance_score": 1.0}] * 3},
        "index 1 comes twice",
    ),
    "an index too high": ({"results": [{"index": 3, "relevance_score": 1.0}]}, "none of 0 to 2"),
    "an index below 0": ({"results": [{"index": -1, "relevance_score": 1.0}]}, "none of 0 to 2"),
    "an index that is true": (
        {"results": [{"index": True, "relevance_score": 1.0}]},
        "none of 0 to 2",
    ),
    "no index": ({"results": [{"relevance_score": 1.0}]}, "none of 0 to 2"),
    "a score in words": (
        {"results": [{"index": 0, "relevance_score": "high"}]},
        "'relevance_score' is no number",
    ),
    "a score that is null": (
        {"results": [{"index": 0, "relevance_score": None}]},
        "'relevance_score' is no number",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_an_error_that_says_so(name: str, serve: Serve, connect: Connect) -> None:
    server = serve("infinity")
    body, words = WRONG[name]
    server.always = answering(body)

    with pytest.raises(ScoringError, match=words) as caught:
        connect(server).rank("the river", DOCUMENTS)

    assert not caught.value.retryable
    assert server.url in str(caught.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e60", "1" + "0" * 400])
def test_a_logit_that_is_none_fails_its_own_document(
    number: str, serve: Serve, connect: Connect
) -> None:
    server = serve("infinity")
    body = (
        '{"results": [{"index": 1, "relevance_score": 2.5}, {"index": 0, "relevance_score": %s}]}'
    )
    server.always = answering((body % number).encode())
    reranker = connect(server)

    with pytest.raises(ScoringError, match=r"documents\[0\].*no logit"):
        reranker.rank("the river", ["a", "b"])

    assert reranker.rank("the river", ["b"])[0].cached


def test_an_answer_without_end_is_not_read_to_it(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rerank_plugins.scorers.remote import exchange

    monkeypatch.setattr(exchange, "MOST_ANSWER_BYTES", 100_000)
    server = serve("infinity")
    server.always = answering(b" " * 200_000)

    with pytest.raises(ScoringError, match="answers without end"):
        connect(server).rank("the river", DOCUMENTS)


@pytest.mark.parametrize(
    ("code", "body", "words"),
    [
        (400, {"error": {"message": "bad model kind", "code": 400}}, "400: bad model kind"),
        (422, {"error": "cannot be tokenized", "error_type": "tokenizer"}, "422: cannot be tok"),
        (422, {"detail": [{"loc": ["body"], "msg": "too long", "input": "x"}]}, "422: too long"),
        (404, {"message": "no such model"}, "404: no such model"),
        (418, PAGE, "answered 418$"),
    ],
)
def test_what_the_request_is_to_blame_for_is_not_tried_again(
    code: int, body: Any, words: str, serve: Serve, connect: Connect
) -> None:
    server = serve("infinity")
    server.always = status(code, body)

    with pytest.raises(ScoringError, match=words) as caught:
        connect(server).rank("the river", ["a river"])

    assert not caught.value.retryable
    assert len(server.asked) == 1


def test_a_redirect_is_named_and_not_followed(serve: Serve, connect: Connect) -> None:
    server, other = serve("infinity"), serve("infinity")
    server.always = status(307, b"", location=f"{other.url}/rerank")

    with pytest.raises(ScoringError, match="a redirect, which is not followed"):
        connect(server).rank("the river", DOCUMENTS)

    assert not other.requests


def test_a_document_that_the_server_fails_on_fails_alone(serve: Serve, connect: Connect) -> None:
    server = serve("tei", poison="arsenic")
    reranker = connect(server)
    documents = [f"sea {n}" for n in range(8)]
    documents[5] = "arsenic"

    with pytest.raises(ScoringError, match=r"documents\[5\].*424: inference failed") as caught:
        reranker.rank("the river", documents)

    assert caught.value.retryable
    healthy = documents[:5] + documents[6:]
    asked = len(server.asked)
    assert all(each.cached for each in reranker.rank("the river", healthy))
    assert len(server.asked) == asked


def test_too_many_documents_are_sent_as_fewer_from_then_on(serve: Serve, connect: Connect) -> None:
    server = serve("infinity", documents=8)
    reranker = connect(server)

    assert len(reranker.rank("the river", [f"sea {n}" for n in range(32)])) == 32
    asked = len(server.asked)
    assert len(reranker.rank("a river", [f"sea {n}" for n in range(32)])) == 32

    assert len(server.asked) - asked == 4


def test_a_server_that_is_busy_too_long_is_a_full_queue(serve: Serve, connect: Connect) -> None:
    server = serve("infinity")
    server.always = status(429, {"error": "overloaded"}, retry_after="120")

    with pytest.raises(QueueFullError, match="429: overloaded") as caught:
        connect(server).rank("the river", DOCUMENTS)

    assert caught.value.retry_after_s == 120
    assert len(server.asked) == 1


def test_retry_after_is_kept_to(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.0)
    server = serve("infinity")
    reranker = connect(server)
    reranker.warmup()
    server.faults.append(status(429, b"", retry_after="1"))

    began = time.monotonic()
    reranker.rank("the river", DOCUMENTS)

    assert time.monotonic() - began >= 1.0


def test_a_wait_that_nobody_would_wait_for_is_not_begun(serve: Serve, connect: Connect) -> None:
    server = serve("infinity")
    reranker = connect(server)
    reranker.warmup()
    server.always = status(429, b"", retry_after="9")

    # Without it the deadline itself would be what fails.
    with pytest.raises(QueueFullError):
        reranker.rank("the river", DOCUMENTS, timeout_s=8)


def test_retries_are_a_share_of_the_requests(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.0)
    server = serve("infinity")
    reranker = connect(server, cache_entries=0)
    reranker.warmup()
    server.always = status(503, b"", retry_after="0")
    asked = len(server.asked)

    for _ in range(40):
        with pytest.raises(ScoringError):
            reranker.rank("the river", DOCUMENTS)

    # 40 requests, 10 retries that were saved, 4 earned, and some for the seconds that this took.
    retried = len(server.asked) - asked - 40
    assert 0 < retried <= 30


def test_a_server_that_does_not_answer_is_left_at_the_deadline(
    serve: Serve, connect: Connect
) -> None:
    server, stall = serve("infinity"), Stall()
    reranker = connect(server)
    reranker.warmup()
    server.faults.append(stall)

    with pytest.raises(RerankTimeoutError):
        reranker.rank("the river", DOCUMENTS, timeout_s=0.5)

    # The worker is not held by it: the server still says nothing to the first request.
    assert len(reranker.rank("another", DOCUMENTS, timeout_s=15)) == 3
    assert not stall.over.is_set()
    stall.over.set()


def test_who_joins_with_more_time_is_waited_for(serve: Serve, connect: Connect) -> None:
    from concurrent.futures import ThreadPoolExecutor

    server, stall = serve("infinity"), Stall()
    late = []

    def slow(handler: Any) -> None:
        stall(handler)
        late.append(True)
        handler.answer(200, {"results": [{"index": n, "relevance_score": 1.0} for n in range(3)]})

    reranker = connect(server)
    reranker.warmup()
    server.faults.append(slow)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(reranker.rank, "the river", DOCUMENTS, timeout_s=1.0)
        assert stall.entered.wait(15)
        second = threads.submit(reranker.rank, "the river", DOCUMENTS, timeout_s=60.0)
        with pytest.raises(RerankTimeoutError):
            first.result(15)
        stall.over.set()
        assert len(second.result(15)) == 3

    assert late
    assert len(server.asked) == 2


def test_a_request_that_nobody_bounds_has_an_end(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer, "REQUEST_TIMEOUT_S", 0.3)
    server, stall = serve("infinity"), Stall()
    server.always = stall

    with pytest.raises(ScoringError, match=r"no answer within 0\.3 s") as caught:
        connect(server).rank("the river", DOCUMENTS)

    stall.over.set()
    assert caught.value.retryable


def test_a_server_that_ended_is_a_retryable_error(connect: Connect) -> None:
    from tests.loopback_rerankers import serving

    with serving("infinity") as server:
        reranker = connect(server)
        reranker.warmup()

    with pytest.raises(ScoringError, match="cannot be asked") as caught:
        reranker.rank("the river", DOCUMENTS)

    assert caught.value.retryable


def test_where_the_server_is_gone_the_fallback_answers(connect: Connect) -> None:
    from tests.loopback_rerankers import serving

    with serving("infinity") as server:
        reranker = connect(server, on_error="fallback", fallback=["lexical"])
        assert reranker.rank("the river", DOCUMENTS).scorer == "remote/acme/ranker"

    ranking = reranker.rank("a river", DOCUMENTS)

    assert ranking.scorer == "lexical"
    assert ranking[0].text == "a river"


def test_a_server_that_never_was_there_falls_back_too(connect: Connect) -> None:
    from tests.loopback_rerankers import UNREACHABLE

    reranker = connect(UNREACHABLE, on_error="fallback", fallback=["lexical"])

    assert reranker.rank("a river", DOCUMENTS).scorer == "lexical"


def test_one_failing_query_of_a_batch_leaves_the_others_alone(
    serve: Serve, connect: Connect
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    server, stall = serve("infinity"), Stall()
    reranker = connect(server)
    reranker.warmup()
    # While one request is held, the others gather into one batch.
    server.faults.append(stall)
    bad = status(400, {"error": {"message": "not this one"}})

    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(reranker.rank, "first", ["a"])
        assert stall.entered.wait(15)
        others = [threads.submit(reranker.rank, f"query {n}", [f"b {n}"]) for n in range(3)]
        while reranker.stats()[server.url].tokens_waiting < 6:
            time.sleep(0.01)
        server.always = lambda handler: (
            bad(handler)
            if handler.body["query"] == "query 1"
            else handler.answer(200, {"results": [{"index": 0, "relevance_score": 1.0}]})
        )
        stall.over.set()
        found = [each.exception(30) for each in (first, *others)]

    assert isinstance(found[2], ScoringError)
    assert "not this one" in str(found[2])
    assert [found[0], found[1], found[3]] == [None, None, None]


def test_what_is_packed_is_not_unpacked(serve: Serve, connect: Connect) -> None:
    import gzip

    server = serve("infinity")
    # Each byte of it would be a million, before anybody could count them.
    bomb = gzip.compress(gzip.compress(b" " * 100_000))
    server.always = status(200, bomb, content_encoding="gzip, gzip")

    with pytest.raises(ScoringError, match="was asked not to"):
        connect(server).rank("the river", DOCUMENTS)

    assert server.asked[0].headers["accept-encoding"] == "identity"


def test_who_goes_without_a_deadline_lets_the_worker_go(serve: Serve, connect: Connect) -> None:
    import asyncio

    server, stall = serve("infinity"), Stall()
    reranker = connect(server)
    reranker.warmup()
    server.faults.append(stall)

    async def go() -> None:
        call = asyncio.create_task(reranker.arank("the river", DOCUMENTS))
        assert await asyncio.to_thread(stall.entered.wait, 15)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(go())

    assert len(reranker.rank("another", DOCUMENTS, timeout_s=15)) == 3
    assert not stall.over.is_set()
    stall.over.set()


@pytest.mark.parametrize(
    "header",
    ["soon", "Mon, 01 Jan 99999999999 00:00:00 GMT", "Mon, 01 Jan 2020 00:00:00 +99999999999999"],
)
def test_a_retry_after_that_says_nothing_is_none(header: str) -> None:
    assert retry_after_s(header, 0.0) is None
