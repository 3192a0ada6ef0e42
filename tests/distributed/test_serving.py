"""The service on a real Ray Serve: the same dialects, and no request lost with a replica."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.distributed.mortal import KillOnce

httpx = pytest.importorskip("httpx", reason="needs a client")
pytest.importorskip("fastapi", reason="needs the service")

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    # Ray's own: what it deprecates of itself, and sockets and files that it leaves to the end.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Is there once a replica was killed."""
    return tmp_path_factory.mktemp("serve") / "killed"


@pytest.fixture(scope="module")
def url(ray: Any, killed: Path) -> Iterator[str]:
    """Two replicas of the lexical scorer; the one that is to rank "deadly fox" first is killed."""
    from ray import serve

    from rerank_plugins.distributed import build_app

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    app = build_app(
        {
            "model": "lexical",
            "settings": {"text_hook": KillOnce("deadly fox", killed)},
            "limits": {"max_documents": 50},
            "min_replicas": 2,
            "max_replicas": 2,
            "num_cpus": 0.5,
        }
    )
    serve.run(app, name="rerank", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_dialects_and_limits_are_those_of_the_service(url: str) -> None:
    documents = ["blue sky", "a red fox"]
    with httpx.Client(base_url=url, timeout=60) as client:
        jina = client.post("/v1/rerank", json={"query": "red fox", "documents": documents})
        tei = client.post("/rerank", json={"query": "red fox", "texts": documents})
        many = client.post("/v1/rerank", json={"query": "red fox", "documents": ["a"] * 51})
        wrong = client.post("/v2/rerank", content=b"{")
        ready = client.get("/ready")
        nowhere = client.get("/nowhere")

    assert [found["index"] for found in jina.json()["results"]] == [1, 0]
    assert [found["index"] for found in tei.json()] == [1, 0]
    assert jina.headers["content-type"].startswith("application/json")
    assert 400 <= many.status_code < 500
    assert wrong.status_code == 400
    assert "message" in wrong.json()
    assert (ready.status_code, nowhere.status_code) == (200, 404)


def test_no_accepted_request_is_lost_with_a_replica_that_is_killed(url: str, killed: Path) -> None:
    answered: list[tuple[int, list[int]]] = []
    lock = threading.Lock()

    def ask(number: int) -> None:
        word = "deadly" if number == 100 else "red"
        documents = [f"blue sky {number}", f"a {word} fox {number}"]
        with httpx.Client(base_url=url, timeout=100) as client:
            answer = client.post(
                "/v1/rerank", json={"query": f"{word} fox {number}", "documents": documents}
            )
        with lock:
            answered.append((answer.status_code, [r["index"] for r in answer.json()["results"]]))

    # Sixteen at a time: other requests are inside the replica when it is killed.
    with ThreadPoolExecutor(16) as callers:
        for asked in [callers.submit(ask, number) for number in range(300)]:
            asked.result()

    assert killed.exists()
    assert answered == [(200, [1, 0])] * 300
