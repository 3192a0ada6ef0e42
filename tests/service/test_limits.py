"""What a service bears: wrong and huge bodies, too many requests, clients that hang up, no keys."""

from __future__ import annotations

import gc
import gzip
import json
import logging
import socket
import threading
import weakref
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from rerank_plugins.errors import (
    ClosedError,
    ConfigError,
    OutOfMemoryError,
    QueueFullError,
    ScoringError,
)
from rerank_plugins.reranker import Reranker
from rerank_plugins.service.access import JsonFormatter
from rerank_plugins.service.app import create_app
from rerank_plugins.service.keys import Keys
from rerank_plugins.service.settings import ServiceSettings
from rerank_plugins.testing import FakeScorer
from tests.service.conftest import DOCUMENTS, QUERY, Gate, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    Serve = Callable[..., httpx.Client]

PLAIN = {"query": QUERY, "documents": DOCUMENTS}
TEXTS = {"query": QUERY, "texts": DOCUMENTS}
RERANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/ranking", "/infinity/rerank")


def _alive(client: httpx.Client) -> bool:
    return client.post("/rerank", json=TEXTS).status_code == 200


def _deep(depth: int) -> bytes:
    return b'{"query": "a", "documents": ' + b"[" * depth + b"]" * depth + b"}"


BODIES: dict[str, bytes] = {
    "nothing": b"",
    "deep": _deep(100_000),
    "deep enough for a parser": _deep(190),
    "half": b'{"query": "a", "documents": ["b"',
    "invalid UTF-8": b'{"query": "\xff\xfe", "documents": ["b"]}',
    "a lone surrogate": b'{"query": "a", "documents": ["\\ud800"]}',
    "a lone surrogate in raw bytes": b'{"query": "a", "documents": ["\xed\xa0\x80"]}',
    "NaN": b'{"query": "a", "documents": ["b"], "top_n": NaN}',
    "NaN where nobody looks": b'{"query": "a", "documents": ["b"], "x": NaN}',
    "infinity": b'{"query": "a", "documents": ["b"], "top_n": 1e999}',
    "a number of a million digits": b'{"top_n": ' + b"9" * 1_000_000 + b"}",
    "a list": b"[]",
    "null": b"null",
    "a blank query": json.dumps({"query": " \t\n", "documents": ["b"]}).encode(),
    "a query of odd blanks": json.dumps({"query": "\x1c\x85", "documents": ["b"]}).encode(),
    "null documents": b'{"query": "a", "documents": null, "texts": null}',
    "an object of documents": b'{"query": "a", "documents": {"0": "b"}}',
    "numbers for documents": json.dumps({"query": "a", "documents": [1.5] * 100}).encode(),
    "another encoding": json.dumps(PLAIN).encode("utf-16"),
    "100 000 documents": json.dumps({"query": "a", "documents": ["b"] * 100_000}).encode(),
    "100 000 texts": json.dumps({"query": "a", "texts": ["b"] * 100_000}).encode(),
}


@pytest.mark.parametrize("path", RERANK_PATHS)
@pytest.mark.parametrize("body", BODIES)
def test_a_wrong_body_is_refused_and_the_service_lives(
    client: httpx.Client, path: str, body: str
) -> None:
    answer = client.post(path, content=BODIES[body])

    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()
    assert _alive(client)


@pytest.mark.parametrize("path", ["/rerank", "/tei/rerank", "/cohere/v2/rerank"])
def test_fifty_megabytes_are_too_many_by_what_is_said_and_by_what_comes(
    client: httpx.Client, path: str
) -> None:
    block = b" " * 2**20

    def pieces() -> Iterator[bytes]:
        yield b'{"query": "'
        for _ in range(50):
            yield block

    assert client.post(path, content=block * 50).status_code == 413
    assert client.post(path, content=pieces()).status_code == 413
    assert _alive(client)


def test_a_body_of_the_longest_length_is_read(serve: Serve) -> None:
    body = json.dumps(TEXTS).encode()
    client = serve(max_body_bytes=len(body))

    assert client.post("/rerank", content=body).status_code == 200
    assert client.post("/rerank", content=body + b" ").status_code == 413
    chunked = client.post("/rerank", content=iter([body, b" "]))
    assert chunked.status_code == 413
    assert chunked.json()["message"] == f"the body is longer than {len(body)} bytes"


def test_a_body_that_does_not_come_gives_its_place_free(serve: Serve) -> None:
    client = serve(body_timeout_s=0.2, max_requests=1)
    with socket.create_connection((client.base_url.host, client.base_url.port)) as sock:
        sock.settimeout(60)
        sock.sendall(b"POST /tei/rerank HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")

        answer = b"".join(iter(lambda: sock.recv(4096), b""))

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"the body did not come within 0.2 seconds"' in answer
    assert _alive(client)


def test_bodies_are_counted_together_until_they_are_answered() -> None:
    models = {"fake": Reranker(FakeScorer())}
    app = create_app(models, ServiceSettings(max_bodies_bytes=1000), registry=CollectorRegistry())
    service = app.state.service
    body = json.dumps(TEXTS).encode().ljust(800)
    head = b"POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-length: 800\r\n\r\n"
    with running(app) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as sock:
            sock.settimeout(60)
            sock.sendall(head + body[:700])
            while service.body_bytes != 700:
                pass
            refused = client.post("/rerank", content=body)
            small = client.post("/rerank", json=TEXTS)
            sock.sendall(body[700:])
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")

        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert small.status_code == 200
        # One alone may be longer than all together.
        assert client.post("/rerank", content=body.ljust(2000)).status_code == 200
    assert service.body_bytes == 0


def test_a_compressed_body_is_refused_by_name(client: httpx.Client) -> None:
    body = gzip.compress(json.dumps(PLAIN).encode())

    answer = client.post("/cohere/v2/rerank", content=body, headers={"content-encoding": "gzip"})

    assert (answer.status_code, "content-encoding" in answer.json()["message"]) == (400, True)


@pytest.mark.parametrize("path", ["/v1/rerank", "/jina/v1/rerank", "/cohere/v1/rerank"])
def test_a_number_beyond_all_floats_does_not_come_back_as_no_json(
    client: httpx.Client, path: str
) -> None:
    body = b'{"query": "a", "documents": [{"text": "a", "x": 1e999}], "return_documents": true}'

    answer = client.post(path, content=body)

    assert "Infinity" not in answer.text
    assert answer.json()["results"][0]["document"] == {"text": "a", "x": None}


def test_a_field_that_is_named_twice_is_read_once(client: httpx.Client) -> None:
    body = PLAIN | {"documents": [{"text": "red"}], "rank_fields": ["text"] * 100}

    answer = client.post("/v1/rerank", json=body)

    assert answer.json()["usage"]["total_tokens"] == 1


def test_keys_that_stand_twice_do_no_harm(client: httpx.Client) -> None:
    body = b'{"query": "x", "documents": ["no"], "query": "red", "documents": ["a", "red"]}'

    answer = client.post("/v1/rerank", content=body)

    assert [each["index"] for each in answer.json()["results"]] == [1, 0]


def test_documents_and_characters_are_counted(serve: Serve) -> None:
    client = serve(max_documents=3, max_characters=20)
    cases = [
        ("/rerank", {"query": QUERY, "texts": ["a"] * 4}, 422, "texts: at most 3"),
        ("/vllm/rerank", {"query": QUERY, "documents": ["a"] * 4}, 400, "documents: at most 3"),
        ("/score", {"text_1": QUERY, "text_2": ["a"] * 4}, 400, "text_2: at most 3"),
        ("/v2/rerank", {"query": QUERY, "documents": ["a", "b" * 21]}, 400, "documents[1]: lo"),
        ("/v1/rerank", {"query": "b" * 21, "documents": ["a"]}, 422, "query: longer than 20"),
    ]

    for path, body, status, message in cases:
        answer = client.post(path, json=body)
        assert (answer.status_code, message in answer.text) == (status, True), answer.text
    assert _alive(client)


@pytest.mark.parametrize(
    ("error", "statuses"),
    [
        (QueueFullError("full", retry_after_s=2.2), (429, 429, 429)),
        (ScoringError("secret document"), (424, 500, 500)),
        (ScoringError("busy secret", retryable=True), (503, 503, 503)),
        (OutOfMemoryError("secret"), (424, 500, 500)),
        (ClosedError("closed"), (503, 503, 503)),
        (RuntimeError("a secret of somebody's plugin"), (424, 500, 500)),
    ],
)
def test_errors_of_the_engine_have_the_dialects_status_and_tell_no_secret(
    client: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    statuses: tuple[int, ...],
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Reranker, "arank", fail)
    answers = [
        client.post("/tei/rerank", json=TEXTS),
        client.post("/cohere/v2/rerank", json=PLAIN),
        client.post("/vllm/rerank", json=PLAIN),
    ]

    assert tuple(answer.status_code for answer in answers) == statuses
    for answer in answers:
        assert "secret" not in answer.text
        expected = {429: "3", 503: "1"}.get(answer.status_code)
        assert answer.headers.get("retry-after") == expected


def test_a_full_queue_and_a_deadline_are_told(serve: Serve) -> None:
    gate = Gate()
    client = serve(FakeScorer(gate), {"queue_tokens": 3, "cache_entries": 0})
    gate.shut()
    with ThreadPoolExecutor(4) as threads:
        try:
            first = threads.submit(client.post, "/rerank", json={"query": "a", "texts": ["b"]})
            assert gate.entered.wait(60)
            soon = {"x-timeout-s": "0.2"}
            late = client.post("/rerank", json={"query": "a", "texts": ["c"]}, headers=soon)
            # All wait behind the first one, and the second of them overfills the queue.
            three = [
                threads.submit(client.post, "/v2/rerank", json={"query": "a", "documents": [text]})
                for text in ("d e", "f g", "h i")
            ]
            done, waiting = wait(three, 60, FIRST_COMPLETED)
        finally:
            gate.open.set()
        answers = [future.result(60) for future in (first, *done, *waiting)]
    assert (late.status_code, late.json()["error_type"]) == (504, "backend")
    assert [answer.status_code for answer in answers] == [200, 429, 200, 200]
    assert int(answers[1].headers["retry-after"]) >= 1


def test_many_rankings_of_one_request_do_not_fill_the_queue(serve: Serve) -> None:
    gate = Gate()
    client = serve(FakeScorer(gate), {"queue_tokens": 1000, "cache_entries": 0})
    places = range(2000)
    pairs = {
        "text_1": [f"query {place}" for place in places],
        "text_2": [f"document {place}" for place in places],
    }
    gate.shut()
    with ThreadPoolExecutor(1) as threads:
        try:
            asked = threads.submit(client.post, "/score", json=pairs)
            # Were all of them begun at once, it would be refused by now.
            wait([asked], 1)
        finally:
            gate.open.set()
        answer = asked.result(60)

    assert (answer.status_code, len(answer.json().get("data", ()))) == (200, 2000)
    late = client.post("/score", json=pairs, headers={"x-timeout-s": "0.01"})
    assert late.status_code == 504


def test_a_client_may_wait_less_than_the_service_would_but_not_longer(serve: Serve) -> None:
    gate = Gate()
    client = serve(FakeScorer(gate), {"timeout_s": 0.2})
    gate.shut()
    try:
        answer = client.post("/v1/rerank", json=PLAIN, headers={"x-timeout-s": "1000"})
    finally:
        gate.open.set()

    assert answer.status_code == 504
    for wrong in ("soon", "-1", "nan", "1e99"):
        answer = client.post("/v1/rerank", json=PLAIN, headers={"x-timeout-s": wrong})
        assert (answer.status_code, "x-timeout-s" in answer.text) == (422, True)


def test_more_requests_than_allowed_are_told_to_come_back(serve: Serve) -> None:
    gate = Gate()
    client = serve(FakeScorer(gate), max_requests=1)
    gate.shut()
    with ThreadPoolExecutor(1) as threads:
        try:
            first = threads.submit(client.post, "/rerank", json=TEXTS)
            assert gate.entered.wait(60)
            second = client.post("/rerank", json=TEXTS)
            health = client.get("/health")
        finally:
            gate.open.set()
        assert first.result(60).status_code == 200
    assert (second.status_code, second.headers["retry-after"]) == (429, "1")
    assert health.status_code == 200
    assert client.post("/rerank", json=TEXTS).status_code == 200


def test_the_pairs_of_a_client_that_hangs_up_are_not_scored(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="rerank_plugins.access")
    gate = Gate()
    scorer = FakeScorer(gate)
    client = serve(scorer)
    gate.shut()
    gone = threading.Event()

    class Hears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if " status=499 " in record.getMessage():
                gone.set()

    handler = Hears()
    logging.getLogger("rerank_plugins.access").addHandler(handler)
    body = json.dumps({"query": "gone", "texts": ["nobody waits"]}).encode()
    head = f"POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with ThreadPoolExecutor(1) as threads:
        try:
            first = threads.submit(client.post, "/rerank", json=TEXTS)
            assert gate.entered.wait(60)
            with socket.create_connection((client.base_url.host, client.base_url.port)) as sock:
                sock.sendall(head + body)
                while client.get("/metrics").text.count("in_flight 3.0") == 0:
                    assert not gone.is_set()
            assert gone.wait(60)
        finally:
            gate.open.set()
            logging.getLogger("rerank_plugins.access").removeHandler(handler)
        assert first.result(60).status_code == 200
    assert _alive(client)
    assert ("gone", "nobody waits") not in scorer.pairs_scored


KEYS = ("first-key", "second-key")
GUARDED = ("/info", "/v1/models", "/metrics", "/openapi.json", "/docs", "/nothing")


def test_a_key_opens_everything_and_health_needs_none(serve: Serve) -> None:
    client = serve(api_keys=KEYS)

    for given in (None, "Bearer wrong", "Bearer", "Digest first-key", "first-key", "Bearer first-"):
        headers = {} if given is None else {"authorization": given}
        tei = client.post("/tei/rerank", json=TEXTS, headers=headers)
        assert (tei.status_code, tei.json()["error_type"]) == (401, "validation")
        assert tei.headers["www-authenticate"] == "Bearer"
        cohere = client.post("/cohere/v2/rerank", content=b"{", headers=headers)
        assert (cohere.status_code, list(cohere.json())) == (401, ["message"])
        assert {client.get(path, headers=headers).status_code for path in GUARDED} == {401}
    for key in KEYS:
        for scheme in ("Bearer", "bearer"):
            headers = {"authorization": f"{scheme} {key}"}
            assert client.post("/rerank", json=TEXTS, headers=headers).status_code == 200
            assert client.get("/info", headers=headers).status_code == 200
    assert {client.get(path).status_code for path in ("/health", "/ready", "/tei/health")} == {200}


def test_all_keys_are_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared = []
    compare = hmac.compare_digest

    def noted(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noted)

    assert Keys(KEYS).admit([(b"authorization", b"Bearer first-key")])
    # Digests are equally long, and the second is looked at though the first one fits.
    assert compared == [(32, 32), (32, 32)]


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\n"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match=r"^api_keys\[1\]: expected ASCII") as error:
        ServiceSettings(api_keys=("good", key))
    assert not key or key not in str(error.value)
    assert "good" not in repr(ServiceSettings(api_keys=("good",)))


def test_one_text_is_no_list_of_keys() -> None:
    with pytest.raises(ConfigError, match=r"^api_keys: expected a tuple of keys"):
        ServiceSettings(api_keys="secret")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_a_limit_of_time_is_some_seconds(value: float) -> None:
    with pytest.raises(ConfigError, match=r"^body_timeout_s: expected seconds above 0"):
        ServiceSettings(body_timeout_s=value)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_a_limit_is_a_number(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^max_documents: expected a whole number"):
        ServiceSettings(max_documents=value)


def test_a_service_without_models_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^models: a service needs at least one"):
        create_app({}, registry=CollectorRegistry())
    with Reranker(FakeScorer()) as reranker, pytest.raises(ConfigError, match=r"^models: expected"):
        create_app({" ": reranker}, registry=CollectorRegistry())


def test_a_request_keeps_its_id_where_it_can_stand_in_a_log(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="rerank_plugins.access")

    kept = client.post("/v2/rerank", json=PLAIN, headers={"x-request-id": "trace-1/2:3"})
    assert kept.headers["x-request-id"] == kept.json()["id"] == "trace-1/2:3"
    for wrong in ("a b", "x" * 129, "a\tb", 'a"b'):
        made = client.post("/v2/rerank", json=PLAIN, headers={"x-request-id": wrong})
        assert len(made.headers["x-request-id"]) == 32
    assert "request_id=trace-1/2:3" in caplog.text
    assert 'a"b' not in caplog.text


def test_the_access_log_has_numbers_and_no_texts(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="rerank_plugins.access")
    answers = [
        client.post("/v1/rerank", json=PLAIN),
        client.post("/v1/rerank", json=PLAIN | {"documents": [QUERY, 3]}),
        client.get('/no%20such%0aINFO path="fake"?key=secret'),
        client.get("/health"),
    ]

    # Another test's server may log its last request late.
    ids = [answer.headers["x-request-id"] for answer in answers]
    records = [
        record
        for record in caplog.records
        if "access" in record.name and any(each in record.getMessage() for each in ids)
    ]
    lines = [record.getMessage() for record in records]
    assert len(lines) == 3
    first = dict(field.split("=", 1) for field in lines[0].split())
    assert float(first.pop("ms")) > 0
    assert len(first.pop("request_id")) == 32
    assert first == {
        "method": "POST", "path": "/v1/rerank", "status": "200", "model": "fake",
        "scorer": "fake", "documents": "3", "tokens": "9",
    }  # fmt: skip
    assert "status=422" in lines[1]
    assert "error=RefusedError" in lines[1]
    assert r'path="/no such\nINFO path=\"fake\""' in lines[2]
    for text in (QUERY, "secret", *DOCUMENTS):
        assert text not in caplog.text
    logged = json.loads(JsonFormatter().format(records[0]))
    assert (logged["path"], logged["documents"], logged["level"]) == ("/v1/rerank", 3, "INFO")


def test_metrics_count_requests_by_path_dialect_and_status(serve: Serve) -> None:
    client = serve()
    client.post("/rerank", json=TEXTS)
    client.post("/rerank", json=PLAIN)
    client.post("/tei/rerank", content=b"")
    client.get("/whatever/" + "x" * 50)

    text = client.get("/metrics").text
    counted = [line for line in text.splitlines() if "http_requests_total{" in line]
    assert sorted(counted) == [
        f'rerank_plugins_http_requests_total{{dialect="{dialect}",path="{path}",'
        f'status="{status}"}} 1.0'
        for dialect, path, status in [
            ("common", "/rerank", 200),
            ("common", "other", 404),
            ("tei", "/rerank", 200),
            ("tei", "/tei/rerank", 400),
        ]
    ]


def test_a_service_that_goes_refuses_what_comes_and_says_so(no_leaks: None) -> None:
    gate = Gate()
    app = create_app({"fake": Reranker(FakeScorer(gate))}, registry=CollectorRegistry())
    service = app.state.service
    with running(app) as client:
        assert client.get("/ready").json() == {"status": "ready"}
        gate.shut()
        with ThreadPoolExecutor(1) as threads:
            try:
                accepted = threads.submit(client.post, "/rerank", json=TEXTS)
                assert gate.entered.wait(60)
                service.drain()
                ready = client.get("/ready")
                refused = client.post("/cohere/v2/rerank", json=PLAIN)
                health = client.get("/health")
            finally:
                gate.open.set()
            assert accepted.result(60).status_code == 200
    assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert (refused.headers["connection"], list(refused.json())) == ("close", ["message"])
    assert health.status_code == 200
    with pytest.raises(ClosedError):
        service.models.rerankers[0].rank("a", ["b"])


def test_a_service_is_ready_once_its_models_are_open(no_leaks: None) -> None:
    app = create_app({"fake": Reranker(FakeScorer())}, registry=CollectorRegistry())

    assert not app.state.service.ready
    with running(app) as client:
        assert client.get("/ready").status_code == 200
        info = client.get("/tei/info").json()
    assert not app.state.service.ready
    assert (info["model_id"], info["max_client_batch_size"]) == ("fake", 10_000)
    assert info["auto_truncate"] is True
    assert list(info["model_type"]) == ["reranker"]


def test_an_application_that_is_forgotten_lets_its_models_go() -> None:
    scorer = FakeScorer()
    app = create_app({"fake": Reranker(scorer)}, registry=CollectorRegistry())
    service = weakref.ref(app.state.service)
    app.state.service.models.rerankers[0].warmup()

    del app
    gc.collect()

    assert service() is None
