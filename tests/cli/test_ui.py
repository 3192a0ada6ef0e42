"""`rerank-plugins ui`, as far as a command line goes; the page itself is looked at elsewhere."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rerank_plugins.config import RerankConfig
    from rerank_plugins.playground.asking import Playground
    from tests.cli.conftest import Run


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], str]]:
    """What would be served: the models, and where."""
    pytest.importorskip("gradio")
    calls: list[tuple[list[str], str]] = []

    def serve(playground: Playground, host: str, taken: socket.socket) -> None:
        calls.append((playground.names, host))

    monkeypatch.setattr("rerank_plugins.playground.server.serve", serve)
    return calls


def test_the_models_are_those_of_the_command_line(
    run: Run, served: list[tuple[list[str], str]], opened: list[RerankConfig]
) -> None:
    found = run("ui", "one", "two", "one", "--port", "0", "--max-length", "64")

    assert found.code == 0, found.err
    assert served == [(["one", "two"], "127.0.0.1")]
    assert [(config.model, config.max_length) for config in opened] == [("one", 64), ("two", 64)]
    assert found.out.startswith("playground of one, two on http://127.0.0.1:")
    assert found.err == ""


def test_without_models_it_is_that_of_the_settings_beside_lexical(
    run: Run, served: list[tuple[list[str], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("ui", "--port", "0")
    monkeypatch.setenv("RERANK_PLUGINS_MODEL", "mine")
    run("ui", "--port", "0")

    assert [models for models, _ in served] == [["embedded", "lexical"], ["mine", "lexical"]]


def test_another_host_is_warned_of(run: Run, served: list[tuple[list[str], str]]) -> None:
    found = run("ui", "one", "--port", "0", "--host", "0.0.0.0")

    assert found.code == 0
    assert "warning: 0.0.0.0 is not this machine alone" in found.err


def test_a_taken_port_is_said_before_a_model_is_opened(
    run: Run, served: list[tuple[list[str], str]], opened: list[RerankConfig]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        found = run("ui", "one", "--port", port)

    assert found.code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in found.err
    assert "--port" in found.err
    assert (served, opened) == ([], [])


def test_where_nobody_can_listen_is_said(run: Run, served: list[tuple[list[str], str]]) -> None:
    found = run("ui", "one", "--host", "no.such.host.invalid")

    assert found.code == 2
    assert "cannot listen on no.such.host.invalid:7860" in found.err


@pytest.mark.parametrize("port", ["70000", "-1", "http", "٣"])
def test_a_port_is_a_number(run: Run, port: str) -> None:
    found = run("ui", "one", f"--port={port}")

    assert found.code == 2
    assert "expected a port from 0 to 65535" in found.err


def test_without_gradio_the_extra_is_named() -> None:
    program = """
import sys
sys.modules["gradio"] = None
from rerank_plugins.cli import main
sys.exit(main(["ui", "--port", "0"]))
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert answer.returncode == 2
    assert 'pip install "rerank-plugins[ui]"' in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("192.168.0.7", False),
        ("localhost.example", False),
    ],
)
def test_only_loopback_is_this_machine_alone(host: str, alone: bool) -> None:
    pytest.importorskip("gradio")
    from rerank_plugins.playground.server import is_loopback

    assert is_loopback(host) is alone
