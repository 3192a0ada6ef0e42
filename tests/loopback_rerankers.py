"""Reranking servers on loopback, each speaking one dialect as its schema says, with faults."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import struct
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Fault = Callable[["Handler"], None]

UNREACHABLE = "http://127.0.0.1:9"
PATIENCE_S = 20.0

PATHS = {
    "tei": "/rerank",
    "infinity": "/rerank",
    "vllm": "/v1/rerank",
    "jina": "/v1/rerank",
    "cohere": "/v2/rerank",
    "nim": "/v1/ranking",
    "own": "/infinity/rerank",
}


def shared_words(query: str, document: str) -> float:
    """Return an uneven number that depends on both texts, so that no two mix-ups look alike."""
    words = set(query.split()) & set(document.split())
    return len(words) - 0.37 + len(document) / 1024 + len(query) / 4096


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    size: int


@dataclass
class RerankServer:
    """One server; ``faults`` are what the next scoring requests meet, in their order."""

    dialect: str
    model: str = "acme/ranker"
    logit: Callable[[str, str], float] = shared_words
    key: str | None = None
    documents: int = 10_000
    poison: str | None = None
    info: dict[str, Any] = field(default_factory=dict)
    faults: deque[Fault] = field(default_factory=deque)
    requests: list[Request] = field(default_factory=list)
    always: Fault | None = None
    at_once: int = 0
    most_at_once: int = 0
    gate: threading.Barrier | None = None
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def asked(self) -> list[Request]:
        """The scoring requests."""
        return [each for each in self.requests if each.method == "POST"]

    @property
    def introductions(self) -> int:
        return sum(each.method == "GET" for each in self.requests)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Without, each answer waits 40 ms for what acknowledges its head.
    disable_nagle_algorithm = True
    server: Loopback  # type: ignore[assignment]  # the only server that has this handler

    @property
    def reranker(self) -> RerankServer:
        return self.server.reranker

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self._note(None, 0)
        if not self._allowed():
            return
        known = introductions(self.reranker)
        if self.path in known:
            self.answer(200, known[self.path])
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        self.body = json.loads(content)
        self._note(self.body, len(content))
        reranker = self.reranker
        with reranker.lock:
            reranker.at_once += 1
            reranker.most_at_once = max(reranker.most_at_once, reranker.at_once)
            fault = reranker.faults.popleft() if reranker.faults else reranker.always
        try:
            if reranker.gate is not None:
                reranker.gate.wait(PATIENCE_S)
            if not self._allowed():
                return
            if fault is not None:
                fault(self)
            elif self.path != PATHS[reranker.dialect]:
                self.answer(404, {"detail": "Not Found"})
            else:
                self.answer(*scored(reranker, self.body))
        finally:
            with reranker.lock:
                reranker.at_once -= 1

    def answer(self, status: int, body: object, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)

    def _note(self, body: object, size: int) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.reranker.requests.append(Request(self.command, self.path, headers, body, size))

    def _allowed(self) -> bool:
        key = self.reranker.key
        if key is None or self.headers["authorization"] == f"Bearer {key}":
            return True
        self.answer(401, {"error": "unauthorized"})
        return False


class Loopback(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    reranker: RerankServer

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.connections: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that go away are what the tests are about."""


@contextlib.contextmanager
def serving(dialect: str, **what: Any) -> Iterator[RerankServer]:
    """Run a server of *dialect* while the context lasts."""
    reranker = RerankServer(dialect, **what)
    with running(reranker):
        yield reranker


@contextlib.contextmanager
def running(reranker: RerankServer, port: int = 0) -> Iterator[None]:
    """Run *reranker*, on a port that it had before, maybe."""
    loopback = Loopback(("127.0.0.1", port), Handler)
    loopback.reranker = reranker
    reranker.url = f"http://127.0.0.1:{loopback.server_port}"
    thread = threading.Thread(target=loopback.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        loopback.shutdown()
        loopback.server_close()
        # A process that ends takes those that are kept alive along.
        for connection in loopback.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE_S)


def introductions(server: RerankServer) -> dict[str, dict[str, Any]]:
    """What each kind of server says of itself, by path."""
    listed = {"id": server.model, "object": "model", "created": 1}
    match server.dialect:
        case "tei":
            labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
            return {
                "/info": {
                    "model_id": server.model,
                    "model_sha": "c0ffee",
                    "model_dtype": "float16",
                    "model_type": {"reranker": labels},
                    "max_concurrent_requests": 512,
                    "max_input_length": 512,
                    "max_batch_tokens": 16384,
                    "max_batch_requests": None,
                    "max_client_batch_size": 32,
                    "auto_truncate": True,
                    "tokenization_workers": 2,
                    "version": "1.9.0",
                    "sha": None,
                    "docker_label": None,
                    **server.info,
                }
            }
        case "infinity":
            embedder = {"id": "acme/embedder", "owned_by": "infinity", "capabilities": ["embed"]}
            known = {"owned_by": "infinity", "backend": "torch", "capabilities": ["rerank"]}
            data = [embedder, {**listed, **known, "stats": {}, **server.info}]
            return {"/models": {"data": data, "object": "list"}}
        case "vllm":
            known = {"owned_by": "vllm", "root": server.model, "parent": None, "permission": []}
            entry = {**listed, **known, "max_model_len": 8192, **server.info}
            return {
                "/v1/models": {"object": "list", "data": [entry]},
                "/version": {"version": "0.15.0"},
            }
        case "nim":
            entry = {**listed, "owned_by": "nvidia", **server.info}
            return {"/v1/models": {"object": "list", "data": [entry]}}
        case "own":
            return {
                "/info": {
                    "model_id": server.model,
                    "model_type": {"reranker": {}},
                    "max_client_batch_size": 10_000,
                    "max_concurrent_requests": 512,
                    "max_input_length": None,
                    "auto_truncate": True,
                    "version": "0.1.0",
                    "models": [server.model, "acme/other"],
                    "max_body_bytes": 2**25,
                    "max_characters": 1_000_000,
                    **server.info,
                }
            }
    return {}


def scored(server: RerankServer, body: Any) -> tuple[int, object]:
    """Answer a scoring request as the server of that dialect would, best first."""
    dialect = server.dialect
    query, documents = body["query"], body.get("texts", body.get("documents"))
    if dialect == "nim":
        query, documents = query["text"], [each["text"] for each in body["passages"]]
    if dialect not in ("tei", "own") and body["model"] != server.model:
        return 404, {"error": {"message": f"no model {body['model']}", "code": 404}}
    if len(documents) > server.documents:
        return 413, {"error": "too many", "error_type": "validation"}
    if server.poison is not None and any(server.poison in each for each in documents):
        return 424, {"error": "inference failed", "error_type": "backend"}
    raw = {
        "tei": body.get("raw_scores", False),
        "infinity": body.get("raw_scores", False),
        "own": body.get("raw_scores", False),
        "vllm": body.get("use_activation") is False,
        "nim": True,
    }.get(dialect, False)
    logits = [server.logit(query, document) for document in documents]
    values = logits if raw else [1 / (1 + math.exp(-logit)) for logit in logits]
    ranked = sorted(enumerate(values), key=lambda each: -each[1])
    top_n = body.get("top_n") or None
    key = {"tei": "score", "nim": "logit"}.get(dialect, "relevance_score")
    found = [{"index": index, key: value} for index, value in ranked[:top_n]]
    if dialect == "tei":
        return 200, found
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    if dialect == "nim":
        return 200, {"rankings": found, "usage": usage}
    return 200, {"id": "x", "model": server.model, "results": found, "usage": usage}


def status(code: int, body: object = b"", **headers: str) -> Fault:
    """A fault: an answer with this *code*."""
    return lambda handler: handler.answer(code, body, **headers)


def answering(body: object) -> Fault:
    """A fault: a success with this *body*."""
    return status(200, body)


def reset(handler: Handler) -> None:
    """A fault: the connection is reset before a byte of an answer."""
    _cut(handler)


def half(handler: Handler) -> None:
    """A fault: the connection is reset within the answer."""
    _, body = scored(handler.reranker, handler.body)
    content = json.dumps(body).encode()
    handler.send_response(200)
    handler.send_header("content-length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    _cut(handler)


def _cut(handler: Handler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


class Stall:
    """A fault: nothing is said until the test lets go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.over = threading.Event()

    def __call__(self, handler: Handler) -> None:
        self.entered.set()
        self.over.wait(PATIENCE_S)
        handler.close_connection = True
