"""A real infinity-emb server on loopback: the same logits as here.

Opt-in: RERANK_PLUGINS_INFINITY_PYTHON names a Python in whose environment infinity-emb is.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rerank_plugins import Reranker

    Connect = Callable[..., Reranker]

PYTHON = os.environ.get("RERANK_PLUGINS_INFINITY_PYTHON")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="no RERANK_PLUGINS_INFINITY_PYTHON"),
]

PROGRAM = """
import sys
import uvicorn
from infinity_emb import EngineArgs, create_server
engine = EngineArgs(
    model_name_or_path=sys.argv[1], engine="torch", device="cpu", dtype="float32",
    trust_remote_code=False, model_warmup=False, bettertransformer=False,
)
app = create_server(engine_args_list=[engine])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), http="h11", log_level="warning")
"""
"""Its own command line does not run with every version of what it is built on."""

QUERIES = ("where does the river meet the sea", "a dog sat", "the")
DOCUMENTS = [
    "the river meets the sea in a wide delta",
    "a dog sat on the mat",
    "river",
    "the sea " * 200,
    *(f"number {n} of the rivers and the seas" for n in range(150)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_torch import write_torch_model

    return write_torch_model(tmp_path_factory.mktemp("infinity") / "bert", "bert")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    command = [str(PYTHON), "-W", "ignore", "-c", PROGRAM, str(folder), str(port)]
    server = subprocess.Popen(command, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/health", server)
        yield url
    finally:
        server.terminate()
        server.wait(20)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        assert server.poll() is None, "infinity-emb ended before it answered"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("infinity-emb did not answer in 90 s")


def test_its_logits_are_those_of_the_model_here(
    address: str, folder: Path, connect: Connect, record_property: Callable[[str, object], None]
) -> None:
    remote = connect(address)
    here = connect(str(folder), backend="torch", device="cpu", precision="fp32")

    worst = 0.0
    for query in QUERIES:
        theirs = {each.index: each.logit for each in remote.rank(query, DOCUMENTS)}
        ours = {each.index: each.logit for each in here.rank(query, DOCUMENTS)}
        assert theirs.keys() == ours.keys() == set(range(len(DOCUMENTS)))
        worst = max(worst, *(abs(theirs[n] - ours[n]) for n in ours))

    record_property("largest difference of a logit", worst)
    print(f"largest difference of a logit: {worst:.2e}")
    assert worst <= 1e-4


def test_it_is_recognised_and_named(address: str, folder: Path, connect: Connect) -> None:
    ranking = connect(address).rank("river", ["the river"])

    # It calls a folder by the last two parts of its path.
    assert ranking.scorer == f"remote/{folder.parent.name}/{folder.name}"
    assert ranking.activation == "sigmoid"


def test_a_model_that_it_does_not_serve_is_named(address: str, connect: Connect) -> None:
    from rerank_plugins import ModelLoadError

    with pytest.raises(ModelLoadError, match="remote_model is 'other'"):
        connect(address, remote_model="other").warmup()
