"""``rerank-plugins serve``: as a process that is told to end, and what it says before it starts."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from rerank_plugins.cli import main
from rerank_plugins.cli.server import DrainingServer
from rerank_plugins.errors import ConfigError
from rerank_plugins.events import Observer
from rerank_plugins.reranker import Reranker
from rerank_plugins.service.app import create_app
from rerank_plugins.testing import FakeScorer
from tests.service.conftest import DOCUMENTS, QUERY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXTS = {"query": QUERY, "texts": DOCUMENTS}
PROGRAM = """
import sys
from rerank_plugins import registry
from rerank_plugins.cli import main
from rerank_plugins.testing import FakeScorer
registry.open_scorer = lambda config: FakeScorer(name=config.model, delay_s=0.05)
sys.exit(main())
"""
LINE = re.compile(r"serving (?P<names>.*) on (?P<url>http://\S+)\n")


@contextmanager
def process(*argv: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Run ``serve`` on a free port; gives the process, its URL and the names it serves."""
    command = [sys.executable, "-c", PROGRAM, "serve", "--port", "0", *argv]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as running:
        try:
            assert running.stdout is not None
            found = LINE.fullmatch(running.stdout.readline())
            assert found is not None, running.communicate()[1]
            yield running, found["url"], found["names"]
        finally:
            running.kill()


class Load:
    """Clients that ask one request after another until they are refused, and count answers."""

    def __init__(self, url: str, clients: int) -> None:
        self.answers: Counter[str] = Counter()
        self.busy = threading.Event()
        self._url = url
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        outcome = "200"
        with httpx.Client(base_url=self._url, timeout=60) as client:
            turn = 0
            while outcome == "200":
                turn += 1
                # New pairs each time: none comes from the cache.
                body = TEXTS | {"query": f"{number} {turn}"}
                try:
                    outcome = str(client.post("/rerank", json=body).status_code)
                except httpx.ConnectError:
                    outcome = "refused"
                except httpx.TransportError as exc:
                    outcome = type(exc).__name__
                with self._lock:
                    self.answers[outcome] += 1
                    if self.answers["200"] >= 50:
                        self.busy.set()

    def join(self) -> Counter[str]:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        return self.answers


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to handle")
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_under_load_it_answers_what_it_accepted(ending: signal.Signals) -> None:
    with process("m") as (running, url, _):
        load = Load(url, clients=16)
        assert load.busy.wait(60)

        running.send_signal(ending)

        _, log = running.communicate(timeout=60)
        answers = load.join()
    assert running.returncode == 0, log
    logged = Counter(re.findall(r"path=/rerank status=(\d+)", log))
    # Whatever the service accepted and answered has reached its client.
    assert answers["200"] == logged["200"] >= 50
    assert answers["503"] == logged["503"]
    assert set(logged) <= {"200", "503"}
    # Others were refused: no connection any more, or an idle one that was closed.
    assert set(answers) <= {"200", "503", "refused", "RemoteProtocolError", "ReadError"}
    assert "Traceback" not in log


def test_a_signal_refuses_new_requests_at_once_and_a_second_interrupt_ends_the_rest() -> None:
    app = create_app({"fake": Reranker(FakeScorer())}, registry=CollectorRegistry())
    server = DrainingServer(uvicorn.Config(app), app.state.service, "http://x")

    server.handle_exit(signal.SIGTERM, None)

    assert app.state.service.draining
    assert (server.should_exit, server.force_exit) == (True, False)
    server.handle_exit(signal.SIGTERM, None)
    assert not server.force_exit
    server.handle_exit(signal.SIGINT, None)
    assert server.force_exit


def test_an_address_that_was_taken_meanwhile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def taken(*_: object) -> None:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(uvicorn.Server, "startup", taken)
    app = create_app({"fake": Reranker(FakeScorer())}, registry=CollectorRegistry())
    server = DrainingServer(uvicorn.Config(app, log_config=None), app.state.service, "http://x")

    with pytest.raises(ConfigError, match="cannot listen on http://x: Address already in use"):
        server.run()


@pytest.mark.slow
def test_a_request_that_does_not_end_is_given_up_after_the_drain(tmp_path: Path) -> None:
    with process("m", "--drain-s", "1") as (running, url, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(b"POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
            while "in_flight 2.0" not in httpx.get(f"{url}/metrics").text:
                pass
            running.terminate()
            _, log = running.communicate(timeout=60)
            sock.settimeout(60)
            answer = sock.recv(4096)
    assert running.returncode == 0
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert "status=503" in log
    assert "Traceback" not in log


def test_models_are_served_by_name_and_one_by_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    with process("small=embedded", str(folder)) as (_, url, names):
        assert names == "small, my-model"
        body = TEXTS | {"model": "my-model"}
        assert httpx.post(f"{url}/tei/rerank", json=body).headers["x-scorer"] == "my-model"
        assert httpx.post(f"{url}/tei/rerank", json=TEXTS).headers["x-scorer"] == "small"
        # The engine's metrics are there beside the requests'.
        assert 'requests_total{model="embedded",outcome="ok"' in httpx.get(f"{url}/metrics").text


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What would be served; nothing listens, and every model is a fake one."""
    seen: list[dict[str, object]] = []

    def note(models: dict[str, object], settings: object, *_: object, **__: object) -> None:
        seen.append({"models": list(models), "settings": settings})

    monkeypatch.setattr("rerank_plugins.cli.server.serve", note)
    monkeypatch.setattr(
        "rerank_plugins.registry.open_scorer", lambda config: FakeScorer(name=config.model)
    )
    monkeypatch.setattr("rerank_plugins.metrics.PrometheusObserver", Observer)
    for name in ("rerank_plugins", "uvicorn.error", "rerank_plugins.access"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "level", logger.level)
    return seen


def _serve(*argv: str) -> int:
    return main(["serve", "--port", "0", *argv])


def test_keys_come_from_a_variable_and_a_file(
    served: list[dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    # As Windows' editor writes it.
    file.write_text("three\n\n four \n", encoding="utf-8-sig")
    monkeypatch.setenv("RERANK_PLUGINS_SERVICE_API_KEYS", "one, two")

    assert _serve("--api-key-file", str(file)) == 0

    assert served[0]["settings"].api_keys == ("one", "two", "three", "four")


def test_flags_are_checked_against_the_model_that_is_served(
    served: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _serve("some/model", "--backend", "torch") == 0
    assert served[0]["models"] == ["some/model"]
    assert _serve("some/model", "embedded", "--backend", "torch") == 2
    assert 'model="embedded" has no PyTorch weights' in capsys.readouterr().err


def test_flags_may_stand_before_models(served: list[dict[str, object]]) -> None:
    assert _serve("--max-documents", "7", "a=x", "--max-body-mb", "2", "b=y") == 0
    assert served[0]["models"] == ["a", "b"]
    assert (served[0]["settings"].max_documents, served[0]["settings"].max_body_bytes) == (
        7,
        2 * 2**20,
    )
    assert _serve("--name", "mine", "embedded") == 0
    assert served[1]["models"] == ["mine"]


def test_the_address_of_a_server_behind_is_no_name_that_clients_see(
    served: list[dict[str, object]],
) -> None:
    assert _serve("http://10.0.0.7:8000", "mine=http://10.0.0.8:8000") == 0

    assert served[0]["models"] == ["remote", "mine"]


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("a", "a"), "two models are named 'a'; write NAME=MODEL"),
        (("a", "b", "--name", "c"), "--name: several models are named one by one"),
        (("--api-key-file", "/nowhere/keys"), "--api-key-file: cannot read /nowhere/keys"),
        (("--host", "203.0.113.7"), "cannot listen on 203.0.113.7:0"),
        (("--host", "no such host"), "cannot listen on no such host:0"),
        (("--host", "a" * 80), "cannot listen on aaa"),
    ],
)
def test_what_cannot_be_served_is_told_before_anything_is_loaded(
    served: list[dict[str, object]],
    capsys: pytest.CaptureFixture[str],
    argv: tuple[str, ...],
    complaint: str,
) -> None:
    assert _serve(*argv) == 2
    assert complaint in capsys.readouterr().err
    assert not served


def test_a_port_that_is_taken_and_a_file_without_keys_are_told(
    served: list[dict[str, object]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(" \n")
    assert _serve("--api-key-file", str(file)) == 2
    assert "no key in" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def test_whoever_opens_it_to_others_without_keys_is_warned(
    served: list[dict[str, object]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text("key\n")

    def warned(*argv: str) -> bool:
        assert _serve(*argv) == 0
        return "WARNING: 0.0.0.0 can be reached from other machines" in capsys.readouterr().err

    assert warned("--host", "0.0.0.0")
    assert not warned("--host", "0.0.0.0", "--api-key-file", str(file))
    assert not warned("--host", "localhost")


def test_help_does_not_load_the_server() -> None:
    code = """
import sys
from rerank_plugins.cli import main
try:
    main(["serve", "--help"])
except SystemExit:
    pass
assert not {"fastapi", "uvicorn", "starlette", "numpy"} & set(sys.modules)
"""
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)

    assert answer.returncode == 0, answer.stderr
    assert "--max-documents" in answer.stdout
