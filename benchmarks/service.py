"""Over HTTP on loopback: how near to the engine itself, and beside infinity-emb's own server.

Each server is a process of its own; the client is this one. Every document is new and the pair
cache is off.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from bench import describe_machine
from comparison import say
from full_size import ensure_model
from peers import for_any_version
from subjects import QUIET
from traffic import ClosedLoop, percentile
from workloads import SHAPES, Request, make_requests, turned

from rerank_plugins import Reranker
from rerank_plugins.options import EMBEDDED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    Ask = Callable[[int], Awaitable[int]]

CONNECTIONS = (1, 8, 32, 128)
POOL = 400
START_S = 120
ENGINE, SERVICE, INFINITY = "engine, in process", "rerank-plugins serve", "infinity-emb's server"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", help="the Python that has infinity-emb; without, no row")
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS)
    parser.add_argument("--seconds", type=float, default=60.0, help="in which requests are sent")
    parser.add_argument("--documents", type=int, default=20, help="of a request")
    parser.add_argument("--shape", default="web search", choices=SHAPES)
    parser.add_argument("--models", nargs="+", default=(EMBEDDED, "minilm-l6"))
    parser.add_argument("--quick", action="store_true", help="two minutes")
    parser.add_argument("--folder", type=Path, help="where the model is kept between runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.connections, arguments.seconds = (1, 16, 64), 5.0
    return arguments


def main() -> None:
    arguments = read_arguments()
    print(describe_machine())
    shape, documents = arguments.shape, arguments.documents
    pool = make_requests(SHAPES[shape], POOL * documents, documents=documents)
    print(f"{documents} documents a request ({shape}), {arguments.seconds:g} s")
    with tempfile.TemporaryDirectory() as temporary:
        for model in arguments.models:
            name = model
            if model != EMBEDDED:
                kept = ensure_model(arguments.folder or Path(temporary), model)
                name = str(for_any_version(kept, Path(temporary)))
            print(f"\n### {model}\n")
            asyncio.run(measure(name, pool, arguments))


async def measure(model: str, pool: Sequence[Request], arguments: argparse.Namespace) -> None:
    """Print a row by connections and subject, with its share of the engine's rate."""
    print("| connections | subject | requests | pairs/s | share | p50 ms | p99 ms | errors |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|")
    with ExitStack() as stack:
        urls = {SERVICE: stack.enter_context(ours(model))}
        if model != EMBEDDED and arguments.peer_python:
            urls[INFINITY] = stack.enter_context(infinity(model, arguments.peer_python))
        elif model != EMBEDDED:
            say("no --peer-python: infinity-emb is left out")
        reranker = stack.enter_context(Reranker(model, **_settings(model)))
        reranker.warmup()
        texts = Texts(pool)
        for connections in arguments.connections:
            engine_rate = 0.0
            for name in (ENGINE, *urls):
                asks = (
                    [in_process(reranker, texts)] * connections
                    if name == ENGINE
                    else [over_http(urls[name], texts) for _ in range(connections)]
                )
                # The first requests after another subject has run are not measured.
                await ClosedLoop[int](min(1.0, arguments.seconds / 4)).from_tasks(asks)
                loop = ClosedLoop[int](arguments.seconds)
                await loop.from_tasks(asks)
                rate = sum(max(0, each.answer) for each in loop.answers) / loop.took_s
                engine_rate = rate if name == ENGINE else engine_rate
                print(
                    f"| {connections} | {name} | {len(loop.answers)} | {rate:.1f} "
                    f"| {100 * rate / engine_rate:.0f} % "
                    f"| {1000 * percentile(loop.latencies, 50):.0f} "
                    f"| {1000 * percentile(loop.latencies, 99):.0f} "
                    f"| {sum(each.answer < 0 for each in loop.answers)} |",
                    flush=True,
                )


def _settings(model: str) -> dict[str, object]:
    own: dict[str, object] = {"backend": "torch", "device": "cpu", "precision": "fp32"}
    return {"cache_entries": 0, **({} if model == EMBEDDED else own)}


class Texts:
    """Requests, none with a document of another."""

    def __init__(self, pool: Sequence[Request]) -> None:
        self._pool = pool
        self._numbers = count()

    def next(self) -> Request:
        """Return a request that nobody had."""
        turn, place = divmod(next(self._numbers), len(self._pool))
        return turned([self._pool[place]], turn)[0]


def in_process(reranker: Reranker, texts: Texts) -> Ask:
    """Return what asks the engine, and gives the pairs that it answered."""

    async def ask(_: int) -> int:
        request = texts.next()
        return len(await reranker.arank(request.query, request.documents))

    return ask


def over_http(url: str, texts: Texts) -> Ask:
    """Return what asks over one connection that it keeps while the server does; -1 is an error.

    By hand: a client of the usual kind would take as much of the machine as the server.
    """
    host, port = url.removeprefix("http://").split(":")
    streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(_: int) -> int:
        try:
            return await answered(texts.next())
        except (OSError, EOFError):
            while streams:
                streams.pop()[1].close()
            return -1

    async def answered(request: Request) -> int:
        if streams and streams[0][0].at_eof():
            # Servers end what was idle for some seconds, as it is while others are waited for.
            streams.pop()[1].close()
        if not streams:
            streams.append(await asyncio.open_connection(host, int(port)))
        reader, writer = streams[0]
        body = json.dumps({"query": request.query, "documents": request.documents}).encode()
        writer.write(
            b"POST /infinity/rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        answer = await reader.readexactly(length)
        return len(json.loads(answer)["results"]) if head.split()[1] == b"200" else -1

    return ask


@contextmanager
def ours(model: str) -> Iterator[str]:
    """Run this package's service; gives its URL."""
    settings = _settings(model).items()
    flags = [part for k, v in settings for part in (f"--{k.replace('_', '-')}", str(v))]
    program = "import sys; from rerank_plugins.cli import main; sys.exit(main())"
    with _server(
        [sys.executable, "-c", program, "serve", model, "--port", "0", "--log", "off", *flags]
    ) as server:
        line = server.stdout.readline() if server.stdout else ""
        if " on http" not in line:
            raise SystemExit(f"{SERVICE}: it did not start")
        yield line.split(" on ")[1].strip()


INFINITY_PROGRAM = """
import sys, uvicorn
from infinity_emb import EngineArgs
from infinity_emb.infinity_server import create_server
engine = EngineArgs(
    model_name_or_path=sys.argv[1], engine="torch", device="cpu", dtype="float32",
    model_warmup=False, bettertransformer=False,
)
app = create_server(engine_args_list=[engine], url_prefix="/infinity")
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False)
"""


@contextmanager
def infinity(model: str, python: str) -> Iterator[str]:
    """Run infinity-emb's server, its engine set as in `subjects`; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with _server([python, "-c", INFINITY_PROGRAM, model, str(port)], PYTHONPATH=""):
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _server(command: Sequence[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    environment = dict(os.environ) | QUIET | environment
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        try:
            yield server
        finally:
            server.terminate()


def _wait_for(port: int) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit(f"{INFINITY}: it did not start in {START_S} s")


if __name__ == "__main__":
    main()
