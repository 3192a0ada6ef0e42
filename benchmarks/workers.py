"""An engine in a process of its own.

So each engine has its own peak of memory, and threads and caches are kept apart.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import ENGINES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection
    from typing import Self

    from engines import Engine, Setup
    from workloads import Request

GIB = 2**30


class Worker:
    """An engine in another process; leave the context to end it."""

    def __init__(self, name: str, setup: Setup) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, setup), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()
        self._process.join(timeout=60)
        self._process.kill()

    def score(
        self, requests: Sequence[Request], batch: int | None
    ) -> tuple[list[list[float]], float]:
        """Return the logits of each request, and the seconds that all took."""
        logits, seconds = self._ask(("score", requests, batch))
        return logits, seconds

    def growth(
        self, requests: Sequence[Request], batch: int | None
    ) -> tuple[list[list[float]], float | None]:
        """Return the logits of each request, and the memory in GiB that scoring took.

        It is the peak above what the process held once the model was loaded and a pair scored, so
        the weights are not in it. Only the first answer of a worker is fair: what an engine keeps
        for later counts for the one who asked first. None where the system does not tell.
        """
        logits, gib = self._ask(("growth", requests, batch))
        return logits, gib

    def peak_gib(self) -> float:
        """Most memory so far in GiB: of the CUDA device where it runs on one, else resident."""
        return self._ask(("peak", None, None))

    def _ask(self, message: tuple[str, Sequence[Request] | None, int | None]) -> Any:  # noqa: ANN401
        try:
            self._connection.send(message)
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(timeout=5)
            code = self._process.exitcode
            raise SystemExit(f"{self.name}: its process ended with status {code}") from None
        if isinstance(answer, str):
            raise SystemExit(f"{self.name} failed:\n{answer}")
        return answer


def _serve(connection: Connection, name: str, setup: Setup) -> None:
    """Answer what the parent asks until it hangs up."""
    # Nothing is loaded by name here, and no hub is to be asked whether something is new.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    engine: Engine | None = None
    while True:
        try:
            message, requests, batch = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if message == "peak":
                connection.send(_peak_gib(setup.device))
                continue
            engine = engine or ENGINES[name](setup)
            engine.use(batch)
            answer = _grown if message == "growth" else _timed
            connection.send(answer(engine, requests, setup.device))
        # Whatever an engine raises is shown by the parent, which then ends the run.
        except Exception:  # noqa: BLE001
            connection.send(traceback.format_exc())


def _timed(engine: Engine, requests: Sequence[Request], _: str) -> tuple[list[list[float]], float]:
    started = time.perf_counter()
    logits = [engine.score(request) for request in requests]
    return logits, time.perf_counter() - started


def _grown(
    engine: Engine, requests: Sequence[Request], device: str
) -> tuple[list[list[float]], float | None]:
    """Score *requests*, and say by how much memory rose above what was held before."""
    first = requests[0]
    # A mapped checkpoint is in memory once it was used, and not before.
    engine.score(type(first)(first.query, ("One short document.",)))
    if not _forget_peak(device):
        return [engine.score(request) for request in requests], None
    before = _held(device)
    logits = [engine.score(request) for request in requests]
    return logits, (_most_held(device) - before) / GIB


def _peak_gib(device: str) -> float:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In KiB, but on macOS in bytes.
    return peak / (GIB if sys.platform == "darwin" else GIB / 1024)


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _forget_peak(device: str) -> bool:
    """Give back what is free, and begin a new peak; False where the system cannot."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        return True
    if not CLEAR.exists():
        return False
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    return True


def _held(device: str) -> int:
    """Bytes that the process holds on the device."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.memory_allocated()
    return _status("VmRSS")


def _most_held(device: str) -> int:
    """Bytes that the process held at most since the peak was forgotten."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = STATUS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
