"""Engines under load: one in a process of its own, which is told on its input what to do.

Each line of the input is a JSON object and gets one on the output. `Subject` starts and asks such a
process; the environment that runs it need not be this one.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol

from traffic import ClosedLoop, percentile
from workloads import SHAPES, Request, make_requests, turned

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Self

POOL = 400
"""Requests before the first comes again, its words turned."""

OURS, OURS_TASKS = "rerank-plugins, threads", "rerank-plugins, tasks"
# Each takes max_length, 512, from the model's files.
LOCKED, INFINITY = "lock + sentence-transformers", "infinity-emb"
PACKAGES = {LOCKED: "sentence-transformers", INFINITY: "infinity-emb"}


class Target(Protocol):
    """An engine that is open; logits are in the order of the documents."""

    def ask(self, request: Request) -> list[float]:
        """Score a request from a thread."""

    async def aask(self, request: Request) -> list[float]:
        """Score a request from a task."""


class Ours:
    """`Reranker` with its cache and the cleaning of texts off: the others have neither."""

    def __init__(self, folder: str) -> None:
        from rerank_plugins import Reranker

        self._reranker = Reranker(
            folder,
            backend="torch",
            device="cpu",
            precision="fp32",
            activation="logit",
            cache_entries=0,
            normalizer=None,
            language_detector=None,
        )
        self._reranker.warmup()

    def ask(self, request: Request) -> list[float]:
        """Score a request from a thread."""
        return _in_order(self._reranker.rank(request.query, request.documents))

    async def aask(self, request: Request) -> list[float]:
        """Score a request from a task."""
        return _in_order(await self._reranker.arank(request.query, request.documents))


class Locked:
    """`CrossEncoder.predict` behind a lock, as a service does that knows it is not safe."""

    def __init__(self, folder: str) -> None:
        import torch
        from sentence_transformers import CrossEncoder

        self._lock = threading.Lock()
        self._model = CrossEncoder(
            folder,
            device="cpu",
            activation_fn=torch.nn.Identity(),
            local_files_only=True,
        )

    def ask(self, request: Request) -> list[float]:
        """Score a request from a thread."""
        pairs = [(request.query, document) for document in request.documents]
        with self._lock:
            logits = self._model.predict(pairs, show_progress_bar=False)
        return [float(logit) for logit in logits]

    async def aask(self, request: Request) -> list[float]:
        """Score a request from a task, in a thread of the loop's."""
        return await asyncio.to_thread(self.ask, request)


class Infinity:
    """infinity-emb's engine in this process, as it sets itself, but for the precision."""

    def __init__(self, folder: str) -> None:
        from infinity_emb import AsyncEmbeddingEngine, EngineArgs

        self._engine = AsyncEmbeddingEngine.from_args(
            EngineArgs(
                model_name_or_path=folder,
                engine="torch",
                device="cpu",
                dtype="float32",
                trust_remote_code=False,
                model_warmup=False,
                # Its optimum takes no transformers that runs with this torch.
                bettertransformer=False,
            )
        )
        self._started = False

    def ask(self, request: Request) -> list[float]:
        """Score a request from a thread: it has no such door."""
        raise TypeError(f"infinity-emb is asked from tasks: {request.query!r:.40}")

    async def aask(self, request: Request) -> list[float]:
        """Score a request from a task."""
        if not self._started:
            self._started = True
            await self._engine.astart()
        found, _ = await self._engine.rerank(
            query=request.query, docs=list(request.documents), raw_scores=True
        )
        return _in_order(found, "relevance_score")


def _in_order(found: Any, name: str = "logit") -> list[float]:  # noqa: ANN401  any engine's
    by_place = {each.index: float(getattr(each, name)) for each in found}
    return [by_place[i] for i in range(len(by_place))]


TARGETS: dict[str, Callable[[str], Target]] = {"ours": Ours, LOCKED: Locked, INFINITY: Infinity}


class Subject:
    """An engine in another process; leave the context to end it."""

    def __init__(
        self, name: str, folder: Path, *, shape: str, documents: int, python: str | None = None
    ) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [python or sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ) | QUIET | ({"PYTHONPATH": ""} if python else {}),
        )
        self.versions: str = self._ask(
            {"name": name, "folder": str(folder), "shape": shape, "documents": documents}
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate()

    def serial(self, requests: int) -> list[list[float]]:
        """Return the logits of the first requests, asked for one after the other."""
        logits: list[list[float]] = self._ask({"serial": requests})
        return logits

    def load(self, callers: int, seconds: float, turn: int) -> dict[str, Any]:
        """Run the closed loop; returns pairs/s, latencies in seconds, and the first logits."""
        found: dict[str, Any] = self._ask({"load": callers, "seconds": seconds, "turn": turn})
        return found

    def _ask(self, message: dict[str, object]) -> Any:  # noqa: ANN401  as the message wants it
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise AssertionError("both are pipes")
        stdin.write(json.dumps(message) + "\n")
        stdin.flush()
        if not (line := stdout.readline()):
            raise SystemExit(f"{self.name}: its process ended with {self._process.wait()}")
        return json.loads(line)


QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "INFINITY_LOG_LEVEL": "error",
    "TRANSFORMERS_VERBOSITY": "error",
}


class _Served:
    """What the process of a subject holds: an open engine and the requests it gets."""

    def __init__(self, name: str, folder: str, shape: str, documents: int) -> None:
        self._tasks = name in (OURS_TASKS, INFINITY)
        kind = "ours" if name in (OURS, OURS_TASKS) else name
        self._pool = make_requests(SHAPES[shape], POOL * documents, documents=documents)
        self._target = TARGETS[kind](folder)

    async def serial(self, count: int) -> list[list[float]]:
        """Score the first requests as they are."""
        return [await self._aask(number) for number in range(count)]

    async def load(self, callers: int, seconds: float, turn: int) -> dict[str, object]:
        """Run a closed loop over requests that no other *turn* had."""
        first = turn * POOL
        traffic: ClosedLoop[list[float]] = ClosedLoop(seconds)
        if self._tasks:
            await traffic.from_tasks([lambda i: self._aask(first + i)] * callers)
        else:
            asks = [lambda i: self._target.ask(self._request(first + i))] * callers
            await asyncio.to_thread(traffic.from_threads, asks)
        took = traffic.took_s
        answers = sorted(traffic.answers, key=lambda answered: answered.number)
        return {
            "rate": sum(len(each.answer) for each in answers) / took,
            "latencies": [each.seconds for each in answers],
            "logits": [each.answer for each in answers[:16]],
        }

    async def _aask(self, number: int) -> list[float]:
        request = self._request(number)
        if self._tasks:
            return await self._target.aask(request)
        return self._target.ask(request)

    def _request(self, number: int) -> Request:
        turn, place = divmod(number, len(self._pool))
        return turned([self._pool[place]], turn)[0]


def _versions(names: Sequence[str]) -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


async def _serve() -> None:
    # What an engine prints must not come among the answers.
    out, sys.stdout = sys.stdout, sys.stderr
    served: _Served | None = None
    while line := await asyncio.to_thread(sys.stdin.readline):
        message = json.loads(line)
        answer: object
        if served is None:
            served = _Served(**message)
            own = PACKAGES.get(message["name"])
            answer = _versions([*([own] if own else []), "torch", "transformers"])
        elif "serial" in message:
            answer = await served.serial(message["serial"])
        else:
            answer = await served.load(message["load"], message["seconds"], message["turn"])
        print(json.dumps(answer), file=out, flush=True)


def figures(found: dict[str, Any]) -> list[float]:
    """Return pairs/s, then the 50th, 95th and 99th percentile of the latency in milliseconds."""
    shares = (50, 95, 99)
    return [found["rate"], *(1000 * percentile(found["latencies"], share) for share in shares)]


if __name__ == "__main__":
    asyncio.run(_serve())
    # Some engines leave threads behind that would hold the process.
    os._exit(0)
