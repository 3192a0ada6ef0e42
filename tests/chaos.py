"""Many callers, a scorer that fails in every way, rerankers that come and go: who was wronged?"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_plugins import (
    ClosedError,
    ModelLoadError,
    QueueFullError,
    RerankTimeoutError,
    ScoringError,
    registry,
)
from rerank_plugins.jobs import Job, Piece, Ticket
from tests.chaos_calls import ENGINES, KINDS, USERS, Handle, Request
from tests.chaos_scorer import ChaosScorer, Journal, Rates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rerank_plugins import RerankConfig

OURS = (Job, Ticket, Piece)
"""Of these, none may be left: one for each request would be a leak."""

GROWTH_MIB = 24
"""What a process may grow by after its warm-up: caches fill, and memory falls to pieces."""

THREADS = 6
LOOPS = 3
TASKS = 8


@dataclass
class Report:
    """What a run came to; all but the counters and the memory should be empty."""

    requests: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    miscounted: list[str] = field(default_factory=list)
    memory_mib: tuple[float, float] = (0.0, 0.0)
    """Resident, after the warm-up and at the end."""

    @property
    def faultless(self) -> bool:
        """Whether nobody was wronged, and nothing was left behind."""
        warm, end = self.memory_mib
        flawed = self.wrong or self.hung or self.left or self.miscounted
        return not flawed and end - warm < GROWTH_MIB


class Chaos:
    """One run: callers, somebody who closes and reopens, and a watchdog."""

    def __init__(self, seed: int, seconds: float, rates: Rates, hang_s: float) -> None:
        self.report = Report()
        self._seed = seed
        self._seconds = seconds
        self._hang_s = hang_s
        self._journal = Journal(seed, rates)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._active: set[Request] = set()
        self._handles: list[Handle] = []

    def run(self) -> Report:
        """Return what it came to."""
        gc.collect()
        before = self._footprint()
        with self._models():
            self._handles = [Handle({**engine, **user}) for engine in ENGINES for user in USERS]
            threads = [
                threading.Thread(target=target, args=(number,), name=f"chaos {name} {number}")
                for name, target, count in (
                    ("thread", self._by_thread, THREADS),
                    ("loop", self._by_loops, LOOPS),
                    ("closer", self._close_and_reopen, 1),
                )
                for number in range(count)
            ]
            for thread in threads:
                thread.daemon = True
                thread.start()
            self._watch()
            for thread in threads:
                thread.join(self._hang_s)
                if thread.is_alive():
                    self._hang(thread.name)
            if not self.report.hung:
                self._check_counters()
            memory = resident_mib()
            for handle in self._handles:
                handle.close()
        self.report.memory_mib = self.report.memory_mib[0], memory
        self._handles.clear()
        self._check_footprint(before)
        self.report.faults = self._journal.done
        return self.report

    @contextlib.contextmanager
    def _models(self) -> Iterator[None]:
        """Models by name are scorers of ours."""
        real = registry.open_scorer
        # Workers die by the hundred here, and each death is logged.
        logger = logging.getLogger("rerank_plugins")
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)

        def open_chaos(config: RerankConfig) -> ChaosScorer:
            return ChaosScorer(config.model, self._journal)

        registry.open_scorer = open_chaos
        try:
            yield
        finally:
            registry.open_scorer = real
            logger.setLevel(level)

    def _watch(self) -> None:
        """Wait for the end, or for a request that has waited too long."""
        until = time.monotonic() + self._seconds
        warm = time.monotonic() + self._seconds / 4
        while time.monotonic() < until and not self.report.hung:
            self._stop.wait(0.2)
            if warm and time.monotonic() > warm:
                gc.collect()
                self.report.memory_mib, warm = (resident_mib(), 0.0), 0.0
            with self._lock:
                oldest = min(self._active, key=lambda request: request.started_s, default=None)
            if oldest and time.monotonic() - oldest.started_s > self._hang_s:
                self._hang(f"{oldest.kind} on {oldest.handle.settings}")
        self._stop.set()

    def _hang(self, who: str) -> None:
        self.report.hung.append(who)
        if len(self.report.hung) == 1:
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)

    def _request(self, chance: random.Random) -> Request:
        documents = [
            f"d{chance.randrange(300)}" + " w" * chance.randrange(4)
            for _ in range(chance.choice([1, 3, 8, 8, 20, 100]))
        ]
        if chance.random() < 0.1:
            bad = chance.choice(["poison", "nan"])
            documents[chance.randrange(len(documents))] = f"{bad} {chance.randrange(20)}"
        return Request(
            handle=chance.choice(self._handles),
            kind=chance.choice(KINDS),
            query=f"q{chance.randrange(5)}",
            documents=documents,
            instruction=chance.choice([None, None, "refute"]),
            timeout_s=chance.choice([None, None, None, 0.001, 0.05]),
            started_s=time.monotonic(),
        )

    @contextlib.contextmanager
    def _begun(self, chance: random.Random) -> Iterator[Request]:
        request = self._request(chance)
        with self._lock:
            self.report.requests += 1
            self._active.add(request)
        try:
            yield request
        finally:
            with self._lock:
                self._active.discard(request)

    def _by_thread(self, number: int) -> None:
        chance = random.Random(f"{self._seed} thread {number}")
        while not self._stop.is_set():
            with self._begun(chance) as request:
                try:
                    answer = request.call()()
                except BaseException as exc:  # noqa: BLE001  each is judged
                    self._judge(request, exc)
                else:
                    self._check(request, answer)

    def _by_loops(self, number: int) -> None:
        chance = random.Random(f"{self._seed} loop {number}")
        while not self._stop.is_set():
            asyncio.run(self._by_tasks(chance))

    async def _by_tasks(self, chance: random.Random) -> None:
        """Event loops come and go, some with requests under way."""
        tasks = [asyncio.create_task(self._by_task(chance)) for _ in range(TASKS)]
        await asyncio.wait(tasks, timeout=chance.choice([0.05, 2.0]))
        if chance.random() < 0.5:
            await asyncio.wait(tasks)

    async def _by_task(self, chance: random.Random) -> None:
        for _ in range(10):
            if self._stop.is_set():
                return
            with self._begun(chance) as request:
                task = asyncio.ensure_future(request.acall())
                # Where this caller is taken along, nobody asks for it: asyncio would log it, and a
                # record that is kept keeps the frames of the call.
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
                try:
                    if chance.random() < 0.15:
                        await asyncio.wait([task], timeout=chance.random() * 0.02)
                        request.cancelled = True
                        task.cancel()
                    answer = await task
                except asyncio.CancelledError as exc:
                    if not request.cancelled:
                        # The loop goes, and takes this caller along.
                        self._count("abandoned")
                        raise
                    self._judge(request, exc)
                except BaseException as exc:  # noqa: BLE001  each is judged
                    self._judge(request, exc)
                else:
                    self._check(request, answer)

    def _close_and_reopen(self, number: int) -> None:
        chance = random.Random(f"{self._seed} closer {number}")
        while not self._stop.wait(chance.random() * 0.3):
            places = [chance.randrange(len(self._handles))]
            if chance.random() < 0.3:
                # All who share an engine: it goes, and comes back.
                first = places[0] // len(USERS) * len(USERS)
                places = list(range(first, first + len(USERS)))
            for place in places:
                old = self._handles[place]
                if chance.random() < 0.5:
                    self._handles[place] = Handle(old.settings)
                    old.close()
                else:
                    old.close()
                    self._handles[place] = Handle(old.settings)
            chance.choice(self._handles).reranker.clear_cache()

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.report.outcomes[outcome] += 1

    def _check(self, request: Request, answer: Any) -> None:
        """An answer is each document's own logit."""
        self._count("answered")
        places = range(len(request.documents))
        expected = {place: request.pair(place).logit for place in places}
        if request.logits(answer) != expected or any(request.pair(p).poisoned for p in places):
            self._wrong(request, f"answered {answer!r:.300}")

    def _judge(self, request: Request, error: BaseException) -> None:
        """An error is the request's own, or one that it could share."""
        self._count(type(error).__name__)
        if not self._justified(request, error):
            self._wrong(request, f"{type(error).__name__}: {error}")

    def _justified(self, request: Request, error: BaseException) -> bool:
        if isinstance(error, asyncio.CancelledError):
            return request.cancelled
        if isinstance(error, QueueFullError):
            return request.handle.settings.get("when_full") != "wait" and error.retry_after_s >= 0
        if isinstance(error, RerankTimeoutError):
            own = request.timeout_s if request.kind in ("rank", "score") else None
            return (own or request.handle.settings.get("timeout_s")) is not None
        if isinstance(error, ClosedError):
            return request.handle.closing
        number = re.search(r"fault (\d+)", str(error))
        if isinstance(error, ModelLoadError):
            model = request.handle.settings["model"]
            return number is not None and self._journal.explains_load(int(number[1]), model)
        return isinstance(error, ScoringError) and self._blamed(request, str(error), number)

    def _blamed(self, request: Request, message: str, number: re.Match[str] | None) -> bool:
        """Whether the pair that an error names is to blame for it."""
        model = request.handle.settings["model"]
        if f"no worker of {model} is left" in message:
            return self._journal.loads_failed(model)
        where = re.search(r"(?:documents|pairs)\[(\d+)\]", message)
        if where is None:
            return False
        pair = request.pair(int(where[1]))
        if number is not None:
            return self._journal.explains(int(number[1]), pair)
        if "the logit is nan" in message:
            return self._journal.explains_no_number(pair)
        return pair.document.startswith("poison") and message.endswith(pair.document)

    def _wrong(self, request: Request, what: str) -> None:
        self._count("wrong")
        with self._lock:
            if len(self.report.wrong) < 20:
                told = request.instruction, request.timeout_s, request.handle.settings
                self.report.wrong.append(f"{request.kind} {told}: {what}")

    def _check_counters(self) -> None:
        """Whatever was to be scored was scored, failed or dropped, once."""
        for handle in self._handles[:: len(USERS)]:
            until = time.monotonic() + self._hang_s
            while True:
                (stats,) = handle.reranker.stats().values()
                ended = stats.pairs_scored + stats.pairs_failed + stats.pairs_dropped
                if stats.tokens_waiting == 0 and stats.cache_misses == ended:
                    break
                if time.monotonic() > until:
                    self.report.miscounted.append(str(stats))
                    break
                time.sleep(0.01)

    def _footprint(self) -> dict[str, int]:
        kept = Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in OURS)
        files = Path("/proc/self/fd")
        return {
            "threads": threading.active_count(),
            "files": len(list(files.iterdir())) if files.exists() else 0,
            "engines": len(registry.ENGINES),
            **kept,
        }

    def _check_footprint(self, before: dict[str, int]) -> None:
        """Nothing is left: workers that were let go may still be ending."""
        until = time.monotonic() + self._hang_s
        while True:
            gc.collect()
            left = {
                name: count - before.get(name, 0)
                for name, count in self._footprint().items()
                if count > before.get(name, 0)
            }
            if not left or time.monotonic() > until:
                break
            time.sleep(0.1)
        self.report.left = left


def resident_mib() -> float:
    """Return the memory of this process; 0 where the system does not say it this way."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return 0.0
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def run(seed: int, seconds: float, *, stall_s: float, hang_s: float) -> Report:
    """Let chaos reign for *seconds*; whoever waits longer than *hang_s* hangs."""
    return Chaos(seed, seconds, Rates(stall_s=stall_s), hang_s).run()
