"""What comes through to Gradio, and what does not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("starlette")

from rerank_plugins.playground.guard import MOST_BODY_BYTES, Guard  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
JOIN = "/gradio_api/queue/join"
PLAIN = {"data": ["query", None, True, ""], "fn_index": 0}
FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}


class _Behind:
    """Stands where Gradio stands, and keeps what comes through."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        if scope["method"] == "POST":
            message = await receive()
            body = message["body"]
        self.seen.append((scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
        await send({"type": "http.response.body", "body": b"ok"})


async def _ask(
    method: str,
    path: str,
    *,
    hosts: frozenset[str] | None = HOSTS,
    host: str = "127.0.0.1:7860",
    **kwargs: Any,
) -> tuple[httpx.Response, list[tuple[str, bytes]]]:
    behind = _Behind()
    transport = httpx.ASGITransport(Guard(behind, hosts))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
        answer = await client.request(method, path, **kwargs)
    return answer, behind.seen


async def test_the_page_comes_through_and_may_load_nothing_from_elsewhere() -> None:
    answer, seen = await _ask("GET", "/")

    assert (answer.status_code, seen) == (200, [("/", b"")])
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "http" not in answer.headers["content-security-policy"]
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-own"] == "1"


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:7860"])
async def test_the_names_of_this_machine_are_let_in(host: str) -> None:
    answer, _ = await _ask("GET", "/", host=host)

    assert answer.status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:7860", "192.168.0.7"])
async def test_a_foreign_name_that_points_here_is_refused(host: str) -> None:
    answer, seen = await _ask("GET", "/", host=host)
    assert (answer.status_code, seen) == (421, [])
    assert "content-security-policy" in answer.headers

    answer, _ = await _ask("GET", "/", host=host, hosts=None)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/upload",
        "/gradio_api/proxy=https://example.org/",
        "/gradio_api/info",
        "/gradio_api/call/rank",
        "/gradio_api/run/rank",
        "/gradio_api/component_server",
        "/gradio_api/stream/x",
        "/monitoring",
        "/openapi.json",
        "/file=/etc/passwd",
        "/gradio_api/queue/join/",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_the_page_does_not_ask_for_is_closed(method: str, path: str) -> None:
    answer, seen = await _ask(method, path)

    assert (answer.status_code, seen) == (404, [])


async def test_a_question_comes_through_as_it_was_asked() -> None:
    answer, seen = await _ask("POST", JOIN, json=PLAIN)

    assert answer.status_code == 200
    assert [json.loads(body) for _, body in seen] == [PLAIN]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9", "http://["]
)
async def test_another_page_may_not_ask(origin: str) -> None:
    answer, seen = await _ask("POST", JOIN, json=PLAIN, headers={"origin": origin})
    assert (answer.status_code, seen) == (403, [])

    own = {"origin": "http://127.0.0.1:7860"}
    answer, _ = await _ask("POST", JOIN, json=PLAIN, headers=own)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"data": ["query", FILE]}),
        json.dumps({"data": ["query", [FILE]]}),
        json.dumps({"data": FILE | {"data": 1}}),
        json.dumps({"data": ["query", 7]}),
        json.dumps({"data": ["query"], "event_data": FILE}),
        '{"data": "' + "[" * 5,
        '{"data": ' + "[" * 100_000,
        "[]",
        "{}",
        b"\xff",
        "",
    ],
)
async def test_only_plain_values_come_through(body: str | bytes) -> None:
    answer, seen = await _ask("POST", JOIN, content=body)

    assert (answer.status_code, seen) == (400, [])


async def test_a_body_that_is_too_long_is_not_read_to_its_end() -> None:
    sent = 0

    async def long() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(40):
            sent += 1_000_000
            yield b"x" * 1_000_000

    answer, seen = await _ask("POST", JOIN, content=long())

    assert (answer.status_code, seen) == (413, [])
    assert sent <= MOST_BODY_BYTES + 2_000_000


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_other_methods_are_refused(method: str) -> None:
    answer, seen = await _ask(method, "/")

    assert (answer.status_code, seen) == (405, [])
