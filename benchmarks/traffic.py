"""Traffic of many callers, and how long their requests took.

Only the standard library: a peer's own environment runs this file too.
"""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least *share* percent of *values* do not exceed."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share / 100 * len(values)) - 1)]


def in_ms(seconds: Sequence[float], shares: Sequence[float] = (50, 99)) -> str:
    """Say percentiles in milliseconds, and the most."""
    found = [f"p{share} {1000 * percentile(seconds, share):.1f}" for share in shares]
    return ", ".join([*found, f"most {1000 * percentile(seconds, 100):.1f}"])


@dataclass(frozen=True, slots=True)
class Answered(Generic[T]):
    """A request by its number, when it was sent and answered (`time.perf_counter`), and how."""

    number: int
    sent: float
    answered: float
    answer: T

    @property
    def seconds(self) -> float:
        """How long its caller waited."""
        return self.answered - self.sent


class ClosedLoop(Generic[T]):
    """Callers that send their next request when the last is answered, for so many *seconds*.

    Requests are numbered over all callers. What was sent in time is waited for.
    """

    def __init__(self, seconds: float) -> None:
        self.answers: list[Answered[T]] = []
        self._numbers = count()
        self._started = time.perf_counter()
        self._until = self._started + seconds

    def from_threads(self, asks: Sequence[Callable[[int], T]]) -> None:
        """Let a thread ask in each of these ways, and wait for all of them."""
        with ThreadPoolExecutor(len(asks)) as threads:
            # list: a caller that fails in silence would make the engine look idle, not wrong.
            list(threads.map(self._call, asks))

    async def from_tasks(self, asks: Sequence[Callable[[int], Awaitable[T]]]) -> None:
        """Let a task ask in each of these ways, and wait for all of them."""
        await asyncio.gather(*map(self._acall, asks))

    def _call(self, ask: Callable[[int], T]) -> None:
        while (sent := time.perf_counter()) < self._until:
            number = next(self._numbers)
            answer = ask(number)
            self.answers.append(Answered(number, sent, time.perf_counter(), answer))

    async def _acall(self, ask: Callable[[int], Awaitable[T]]) -> None:
        while (sent := time.perf_counter()) < self._until:
            number = next(self._numbers)
            answer = await ask(number)
            self.answers.append(Answered(number, sent, time.perf_counter(), answer))

    @property
    def took_s(self) -> float:
        """From the start to the last answer."""
        return max(a.answered for a in self.answers) - self._started

    @property
    def latencies(self) -> list[float]:
        """Seconds of every request."""
        return [answered.seconds for answered in self.answers]


class LoopWatch:
    """How late a timer of the event loop comes, and how long the loop's thread itself worked.

    Where other threads run Python, most of the lateness is the wait for the interpreter's lock.
    """

    def __init__(self, tick_s: float = 0.005) -> None:
        self._tick_s = tick_s
        self.late_s: list[float] = []
        self.worked_s: list[float] = []

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            started, worked = time.perf_counter(), time.thread_time()
            await asyncio.sleep(self._tick_s)
            self.late_s.append(time.perf_counter() - started - self._tick_s)
            self.worked_s.append(time.thread_time() - worked)
