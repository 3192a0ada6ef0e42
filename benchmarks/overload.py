"""Five times the load that the engine can take: who is served, who refused, how fast it recovers.

The embedded model, every document new and the pair cache off. First a closed loop finds the
capacity, then requests come at their own pace, half from threads and half from tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import describe_machine
from traffic import ClosedLoop, LoopWatch, in_ms
from workloads import SHAPES, Request, make_requests, turned

from rerank_plugins import Reranker
from rerank_plugins.errors import RerankError
from rerank_plugins.options import EMBEDDED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_plugins.results import EngineStats

POOL = 400
THREADS = 64
"""Requests from threads that are under way at most: more than a bounded queue ever holds."""

ANSWERED = "answered"


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the engine did when callers waited for their answers."""

    requests: float
    tokens: float
    lone_s: float


@dataclass(frozen=True, slots=True)
class Ended:
    """How a request ended, and after how long; *sent* is when it was due (`time.perf_counter`)."""

    outcome: str
    sent: float
    seconds: float


class Texts:
    """Requests by number, none with a document of another."""

    def __init__(self, shape: str, documents: int) -> None:
        self._pool = make_requests(SHAPES[shape], POOL * documents, documents=documents)

    def request(self, number: int) -> Request:
        """Return the request of that number."""
        turn, place = divmod(number, len(self._pool))
        return turned([self._pool[place]], turn)[0]


def find_capacity(reranker: Reranker, texts: Texts, seconds: float) -> Capacity:
    """Keep sixteen callers busy; numbers up to POOL * 100 are used."""

    def ask(number: int) -> None:
        request = texts.request(number)
        reranker.rank(request.query, request.documents)

    reranker.warmup()
    before = _stats(reranker).tokens_scored
    traffic: ClosedLoop[None] = ClosedLoop(seconds)
    traffic.from_threads([ask] * 16)
    tokens = _stats(reranker).tokens_scored - before
    alone = [_timed(reranker, texts, POOL * 90 + i) for i in range(9)]
    took = traffic.took_s
    return Capacity(len(traffic.answers) / took, tokens / took, statistics.median(alone))


def _stats(reranker: Reranker) -> EngineStats:
    return reranker.stats()[EMBEDDED]


def _timed(reranker: Reranker, texts: Texts, number: int) -> float:
    """Return the seconds of a request, and no end of them where another scorer answered."""
    request = texts.request(number)
    started = time.perf_counter()
    ranking = reranker.rank(request.query, request.documents)
    return time.perf_counter() - started if ranking.scorer == EMBEDDED else math.inf


class OpenLoop:
    """Requests that come when they come, whatever became of those before."""

    def __init__(self, reranker: Reranker, texts: Texts) -> None:
        self._reranker = reranker
        self._texts = texts
        self.ended: list[Ended] = []

    async def run(self, per_second: float, seconds: float) -> float:
        """Send requests at random moments; returns when the last was due."""
        rng = random.Random(5)
        due = time.perf_counter()
        until = due + seconds
        number = POOL * 100
        with ThreadPoolExecutor(THREADS) as threads:
            loop, sent = asyncio.get_running_loop(), []
            while (due := due + rng.expovariate(per_second)) < until:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                number += 1
                if number % 2:
                    sent.append(loop.run_in_executor(threads, self._ask, number, due))
                else:
                    sent.append(asyncio.ensure_future(self._aask(number, due)))
            await asyncio.gather(*sent)
        return until

    def _ask(self, number: int, due: float) -> None:
        request = self._texts.request(number)
        try:
            ranking = self._reranker.rank(request.query, request.documents)
            self._note(f"{ANSWERED} by {ranking.scorer}", due)
        except RerankError as exc:
            self._note(type(exc).__name__, due)

    async def _aask(self, number: int, due: float) -> None:
        request = self._texts.request(number)
        try:
            ranking = await self._reranker.arank(request.query, request.documents)
            self._note(f"{ANSWERED} by {ranking.scorer}", due)
        except RerankError as exc:
            self._note(type(exc).__name__, due)

    def _note(self, outcome: str, due: float) -> None:
        self.ended.append(Ended(outcome, due, time.perf_counter() - due))


async def overload(
    reranker: Reranker, texts: Texts, capacity: Capacity, seconds: float, times: float
) -> None:
    """Send *times* what the engine can take, and show what became of it."""
    load, watch = OpenLoop(reranker, texts), LoopWatch()
    watching = asyncio.create_task(watch.run())
    started = time.perf_counter()
    recovery = asyncio.create_task(
        asyncio.to_thread(recover, reranker, texts, started + seconds, 2 * capacity.lone_s)
    )
    until = await load.run(times * capacity.requests, seconds)
    watching.cancel()
    report(load.ended, capacity, until - started)
    print(f"event loop late, ms         {in_ms(watch.late_s)}")
    print(
        f"capacity is back            {1000 * await recovery:.0f} ms after the load ended: a lone "
        f"request took at most twice its {1000 * capacity.lone_s:.0f} ms"
    )


def recover(reranker: Reranker, texts: Texts, until: float, normal_s: float) -> float:
    """Ask alone once the load has ended, until that takes *normal_s*; returns after how long."""
    time.sleep(max(0.0, until - time.perf_counter()))
    number = POOL * 200
    while time.perf_counter() - until < 60:
        number += 1
        try:
            if _timed(reranker, texts, number) <= normal_s:
                return time.perf_counter() - until
        except RerankError:
            time.sleep(0.005)
    return math.inf


def report(ended: Sequence[Ended], capacity: Capacity, seconds: float) -> None:
    """Print outcomes with their times, and how much was answered beside the capacity."""
    counts = Counter(each.outcome for each in ended)
    for outcome, count in counts.most_common():
        times = [each.seconds for each in ended if each.outcome == outcome]
        print(f"{outcome:<28}{count:5} ({count / len(ended):.0%}), ms: {in_ms(times)}")
    # What was answered after the load ended had still been sent in it.
    last = max(each.sent + each.seconds for each in ended)
    took = max(seconds, last - min(each.sent for each in ended))
    rate = counts[f"{ANSWERED} by {EMBEDDED}"] / took
    print(f"answered a second           {rate:.1f}, {rate / capacity.requests:.0%} of the capacity")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=float, default=5.0, help="the capacity")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--documents", type=int, default=5, help="of a request")
    parser.add_argument("--shape", default="web search", choices=SHAPES)
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds a request may take")
    parser.add_argument("--queue", type=float, default=0.5, help="seconds of work that may wait")
    parser.add_argument("--fallback", action="store_true", help='on_error="fallback" in turn')
    parser.add_argument("--quick", action="store_true", help="ten seconds")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds = 3.0
    return arguments


def main() -> None:
    arguments = read_arguments()
    print(describe_machine())
    texts = Texts(arguments.shape, arguments.documents)
    with Reranker(cache_entries=0) as reranker:
        capacity = find_capacity(reranker, texts, max(2.0, arguments.seconds / 2))
    queue_tokens = max(1, round(capacity.tokens * arguments.queue))
    print(
        f"{arguments.documents} documents ({arguments.shape}): capacity {capacity.requests:.1f} "
        f"requests/s, {capacity.tokens:.0f} tokens/s; alone {1000 * capacity.lone_s:.0f} ms\n"
        f"{arguments.times:g} x that for {arguments.seconds:g} s, timeout_s={arguments.timeout:g}, "
        f"queue_tokens={queue_tokens} ({arguments.queue:g} s of work)"
    )
    for on_error in ("raise", "fallback") if arguments.fallback else ("raise",):
        print(f'\non_error="{on_error}"')
        settings = {"queue_tokens": queue_tokens, "timeout_s": arguments.timeout}
        with Reranker(
            cache_entries=0, on_error=on_error, fallback=("lexical",), **settings
        ) as reranker:
            reranker.warmup()
            load = overload(reranker, texts, capacity, arguments.seconds, arguments.times)
            asyncio.run(load)


if __name__ == "__main__":
    main()
