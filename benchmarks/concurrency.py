"""Two hundred callers at once over the embedded model: threads and tasks, through both doors.

The pair cache is off, so that every pair is scored. Once all texts differ; then the same documents
are asked for with other queries: the scorer remembers them, and the engine's own work shows.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from bench import describe_machine
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from traffic import ClosedLoop, LoopWatch, in_ms
from workloads import SHAPES, Request, make_requests, turned

from rerank_plugins import RerankConfig, Reranker
from rerank_plugins.langchain import RerankCompressor
from rerank_plugins.llama_index import RerankPostprocessor
from rerank_plugins.scorers import open_scorer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence

    Way = tuple[Callable[[int], tuple[str, Any]], Callable[[str, Any], object]]

DOCUMENTS = 20
POOL, KNOWN_POOL = 400, 20
"""Requests before the first comes again: with its words turned, or with another query."""

LONE = 1_000_000
"""Requests from this number on are none of the load's."""


class Offline(NamedTuple):
    """What one call of many pairs gave: pairs/s, processor time a pair, scores by request."""

    rate: float
    processor_ms: float
    scores: np.ndarray


class Texts:
    """Requests by number. Unless *known*, no document comes twice; queries differ in any case."""

    def __init__(self, shape: str, *, known: bool) -> None:
        pairs = (KNOWN_POOL if known else POOL) * DOCUMENTS
        self._pool = make_requests(SHAPES[shape], pairs, documents=DOCUMENTS)
        self.known_numbers = range(KNOWN_POOL if known else 0)

    def request(self, number: int) -> Request:
        """Return the request of that number."""
        turn, place = divmod(number, len(self._pool))
        if not self.known_numbers:
            return turned([self._pool[place]], turn)[0]
        return Request(f"{self._pool[place].query} {turn}", self._pool[place].documents)

    def plain(self, number: int) -> tuple[str, tuple[str, ...]]:
        """Return query and documents."""
        request = self.request(number)
        return request.query, request.documents

    def documents(self, number: int) -> tuple[str, list[Document]]:
        """Return query and documents as LangChain has them."""
        request = self.request(number)
        texts = enumerate(request.documents)
        return request.query, [Document(page_content=text, id=str(i)) for i, text in texts]

    def nodes(self, number: int) -> tuple[str, list[NodeWithScore]]:
        """Return query and documents as LlamaIndex has them."""
        request = self.request(number)
        texts = enumerate(request.documents)
        nodes = [NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in texts]
        return request.query, nodes


class Doors:
    """Both doors of one reranker; every call gives the scores in the order of the documents."""

    def __init__(self, reranker: Reranker) -> None:
        self._compressor = RerankCompressor(reranker=reranker, top_n=None)
        self._postprocessor = RerankPostprocessor(reranker=reranker, top_n=None)

    def compress(self, query: str, documents: list[Document]) -> list[float]:
        """Ask through LangChain's."""
        return _of_documents(self._compressor.compress_documents(documents, query))

    async def acompress(self, query: str, documents: list[Document]) -> list[float]:
        """Ask through LangChain's, asynchronously."""
        return _of_documents(await self._compressor.acompress_documents(documents, query))

    def postprocess(self, query: str, nodes: list[NodeWithScore]) -> list[float]:
        """Ask through LlamaIndex's."""
        return _of_nodes(self._postprocessor.postprocess_nodes(nodes, query_str=query))

    async def apostprocess(self, query: str, nodes: list[NodeWithScore]) -> list[float]:
        """Ask through LlamaIndex's, asynchronously."""
        return _of_nodes(await self._postprocessor.apostprocess_nodes(nodes, query_str=query))


def _of_documents(found: Iterable[Document]) -> list[float]:
    by_place = {int(str(d.id)): d.metadata["relevance_score"] for d in found}
    return [by_place[i] for i in range(DOCUMENTS)]


def _of_nodes(found: Iterable[NodeWithScore]) -> list[float]:
    by_place = {int(node.node_id): node.get_score() for node in found}
    return [by_place[i] for i in range(DOCUMENTS)]


async def run_load(
    reranker: Reranker, texts: Texts, callers: int, seconds: float
) -> tuple[ClosedLoop[list[float]], LoopWatch]:
    """Let *callers* ask, a quarter of them in each of the four ways."""
    doors, quarter = Doors(reranker), callers // 4
    ways: list[Callable[[int], list[float]]] = [
        *[lambda i: doors.compress(*texts.documents(i))] * quarter,
        *[lambda i: doors.postprocess(*texts.nodes(i))] * quarter,
    ]
    async_ways: list[Callable[[int], Awaitable[list[float]]]] = [
        *[lambda i: doors.acompress(*texts.documents(i))] * quarter,
        *[lambda i: doors.apostprocess(*texts.nodes(i))] * quarter,
    ]
    watch = LoopWatch()
    watching = asyncio.create_task(watch.run())
    traffic: ClosedLoop[list[float]] = ClosedLoop(seconds)
    await asyncio.gather(
        asyncio.to_thread(traffic.from_threads, ways), traffic.from_tasks(async_ways)
    )
    watching.cancel()
    return traffic, watch


async def control(seconds: float) -> None:
    """Watch the loop beside two threads that only count: what Python does without any library."""
    end = time.perf_counter() + seconds

    def count() -> None:
        number = 0
        while time.perf_counter() < end:
            number += 1

    watch = LoopWatch()
    watching = asyncio.create_task(watch.run())
    counting = [threading.Thread(target=count) for _ in range(2)]
    for thread in counting:
        thread.start()
    await asyncio.sleep(seconds)
    watching.cancel()
    for thread in counting:
        thread.join()
    print(f"the same, two threads count {in_ms(watch.late_s)}")


@contextmanager
def warm_reranker(texts: Texts) -> Iterator[Reranker]:
    """Give an engine of its own, which has seen the documents that are known."""
    with Reranker(cache_entries=0) as reranker:
        reranker.warmup()
        for number in texts.known_numbers:
            request = texts.request(number)
            reranker.rank(request.query, request.documents)
        yield reranker


def offline(texts: Texts, numbers: Sequence[int]) -> Offline:
    """Score the pairs of the requests of *numbers* in one call."""
    requests = [texts.request(number) for number in numbers]
    pairs = [(request.query, text) for request in requests for text in request.documents]
    with warm_reranker(texts) as reranker:
        started, processor_s = time.perf_counter(), -time.process_time()
        scores = np.array(reranker.score(pairs)).reshape(-1, DOCUMENTS)
        seconds = time.perf_counter() - started
        processor_s += time.process_time()
    return Offline(len(pairs) / seconds, 1000 * processor_s / len(pairs), scores)


def measure(texts: Texts, callers: int, seconds: float) -> None:
    """Run the load between two offline calls of its pairs, then one request after the other."""
    # The machine's speed drifts: what stands between two calls is compared with both.
    before = offline(texts, range(callers // 2))
    with warm_reranker(texts) as reranker:
        batches = -reranker.stats()["embedded"].batches
        processor_s = -time.process_time()
        traffic, watch = asyncio.run(run_load(reranker, texts, callers, seconds))
        processor_s += time.process_time()
        batches += reranker.stats()["embedded"].batches
    answers = np.array([answered.answer for answered in traffic.answers])
    numbers = [answered.number for answered in traffic.answers]
    rate = answers.size / traffic.took_s
    processor_ms = 1000 * processor_s / answers.size
    print(f"requests                    {len(numbers)} in {traffic.took_s:.1f} s")
    print(
        f"pairs/s                     {rate:.1f}; {answers.size / batches:.0f} in a batch, "
        f"{processor_ms:.2f} ms of processor time a pair"
    )
    print(f"latency, ms                 {in_ms(traffic.latencies)}")
    print(f"event loop late, ms         {in_ms(watch.late_s)}")
    print(f"event loop's own work, ms   {in_ms(watch.worked_s)}")
    after = offline(texts, numbers)
    best = (before.rate + after.rate) / 2
    print(
        f"pairs/s, one offline call   {before.rate:.1f} before, {after.rate:.1f} after: of their "
        f"mean callers have {rate / best:.0%}"
    )
    # Where other programs run, processor time says more than time does.
    print(f"processor time a pair, ms   {before.processor_ms:.2f} before, {after.processor_ms:.2f}")
    gap = np.abs(answers - after.scores).max()
    print(f"scores, one offline call    largest difference {gap:.0e}")
    with warm_reranker(texts) as reranker:
        scores = np.array([_in_order(reranker, texts.request(number)) for number in numbers])
    gaps = np.abs(answers - scores).max(axis=1)
    print(
        f"scores, one after the other largest difference {gaps.max():.0e}, "
        f"{(gaps > 1e-6).sum()} of {len(gaps)} answers beyond 1e-6"
    )


def _in_order(reranker: Reranker, request: Request) -> list[float]:
    scores = [0.0] * len(request.documents)
    for document in reranker.rank(request.query, request.documents):
        scores[document.index] = document.score
    return scores


def lone(texts: Texts, rounds: int) -> None:
    """Show what a lone request takes beside the scorer itself, in turn."""
    direct = open_scorer(RerankConfig())
    with warm_reranker(texts) as reranker, asyncio.Runner() as runner:
        doors = Doors(reranker)
        ways: dict[str, Way] = {
            "scorer: encode, forward": (texts.plain, partial(_directly, direct)),
            "rank": (texts.plain, reranker.rank),
        }
        if texts.known_numbers:
            ways |= {
                "arank": (texts.plain, _run(runner, reranker.arank)),
                "RerankCompressor": (texts.documents, doors.compress),
                "RerankCompressor, async": (texts.documents, _run(runner, doors.acompress)),
                "RerankPostprocessor": (texts.nodes, doors.postprocess),
                "RerankPostprocessor, async": (texts.nodes, _run(runner, doors.apostprocess)),
            }
        for number in texts.known_numbers:
            _directly(direct, *texts.plain(number))
        _print_lone(_timed_in_turn(ways, len(texts.known_numbers), rounds))
    direct.close()


def _run(
    runner: asyncio.Runner, ask: Callable[[str, Any], Coroutine[Any, Any, object]]
) -> Callable[[str, Any], object]:
    return lambda query, documents: runner.run(ask(query, documents))


def _directly(scorer: Any, query: str, documents: Sequence[str]) -> None:  # noqa: ANN401  any scorer
    """Encode and score in batches of its budget, in the order of the documents."""
    batch: list[Any] = []
    for pair in scorer.encode(query, documents):
        if batch and sum(each.tokens for each in [*batch, pair]) > scorer.batch_tokens:
            scorer.forward(batch)
            batch = []
        batch.append(pair)
    scorer.forward(batch)


def _timed_in_turn(ways: dict[str, Way], known: int, rounds: int) -> dict[str, list[float]]:
    """Return seconds by way; the documents of a round are the same for all of them."""
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 2):
        # Each round begins with another way, and each has a query of its own where it can.
        for place, name in enumerate(names[turn % len(names) :] + names[: turn % len(names)]):
            number = LONE + turn + place * known * LONE
            make, ask = ways[name]
            query, documents = make(number)
            started = time.perf_counter()
            ask(query, documents)
            seconds[name].append(time.perf_counter() - started)
    return {name: took[2:] for name, took in seconds.items()}


def _print_lone(seconds: dict[str, list[float]]) -> None:
    base, *_ = seconds.values()
    for name, took in seconds.items():
        more = [a - b for a, b in zip(took, base, strict=True)]
        print(
            f"  {name:<26}{1000 * statistics.median(took):8.2f} ms, median of differences "
            f"{1000 * statistics.median(more):+.2f}"
        )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0, help="of new documents")
    parser.add_argument("--known-seconds", type=float, default=10.0, help="of known documents")
    parser.add_argument("--shape", default="web search", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=40, help="lone requests of each kind")
    parser.add_argument("--quick", action="store_true", help="forty callers, half a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.callers, arguments.rounds = 40, 4
        arguments.seconds = arguments.known_seconds = 2.0
    return arguments


def main() -> None:
    arguments = read_arguments()
    print(describe_machine())
    for known, seconds in ((False, arguments.seconds), (True, arguments.known_seconds)):
        texts = Texts(arguments.shape, known=known)
        kind = "known documents, new queries" if known else "every document new"
        print(f"\n{arguments.callers} callers, {DOCUMENTS} documents ({arguments.shape}), {kind}")
        measure(texts, arguments.callers, seconds)
        asyncio.run(control(min(2.0, seconds)))
        print("a lone request")
        lone(texts, arguments.rounds)


if __name__ == "__main__":
    main()
