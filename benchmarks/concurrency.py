"""Threads and tasks at once through both doors, over the embedded model."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from rerank_plugins import Reranker
from rerank_plugins.langchain import RerankCompressor
from rerank_plugins.llama_index import RerankPostprocessor

if TYPE_CHECKING:
    from collections.abc import Iterable

THREADS, TASKS = 8, 200
TICK_S = 0.001

WORDS = [
    "river",
    "fox",
    "ocean",
    "paper",
    "engine",
    "garden",
    "music",
    "number",
    "winter",
    "window",
    "market",
    "doctor",
]
TEXTS = [" ".join(WORDS[(i * k) % 12] for k in range(2, 40)) + f" {i}" for i in range(60)]
QUERIES = [f"what is the {first} of the {second}?" for first in WORDS[:5] for second in WORDS[5:9]]


class LoopWatch:
    """How late a timer of one millisecond comes, and how long the loop's thread itself worked.

    Where other threads run Python, most of the lateness is the wait for the interpreter's lock.
    """

    def __init__(self) -> None:
        self._late_s: list[float] = []
        self._worked_s: list[float] = []

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            started, worked = time.perf_counter(), time.thread_time()
            await asyncio.sleep(TICK_S)
            self._late_s.append(time.perf_counter() - started - TICK_S)
            self._worked_s.append(time.thread_time() - worked)

    def report(self, name: str) -> None:
        """Print milliseconds."""
        p50, p99, most = np.percentile(np.array(self._late_s) * 1000, [50, 99, 100])
        print(
            f"{name:<32}late, ms: p50 {p50:.1f}, p99 {p99:.1f}, most {most:.1f}; "
            f"own work at most {max(self._worked_s) * 1000:.1f}"
        )


async def control(seconds: float) -> None:
    """Watch the loop beside threads that only count: what Python does without any library."""
    end = time.perf_counter() + seconds

    def count() -> None:
        number = 0
        while time.perf_counter() < end:
            number += 1

    watch = LoopWatch()
    watching = asyncio.create_task(watch.run())
    with ThreadPoolExecutor(THREADS) as threads:
        await asyncio.gather(*(asyncio.wrap_future(threads.submit(count)) for _ in range(THREADS)))
    watching.cancel()
    watch.report("event loop, counting threads")


async def main() -> None:
    documents = [Document(page_content=text, id=str(i)) for i, text in enumerate(TEXTS)]
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(TEXTS)]
    with Reranker(cache_entries=1) as serial:
        expected = {q: {d.index: d.score for d in serial.rank(q, TEXTS)} for q in QUERIES}
    with Reranker() as reranker:
        compressor = RerankCompressor(reranker=reranker)
        postprocessor = RerankPostprocessor(reranker=reranker)
        worst = 0.0

        def check(query: str, found: dict[int, float]) -> None:
            nonlocal worst
            worst = max(worst, *(abs(score - expected[query][i]) for i, score in found.items()))

        def of_documents(found: Iterable[Document]) -> dict[int, float]:
            return {int(str(d.id)): d.metadata["relevance_score"] for d in found}

        def by_thread(number: int) -> None:
            for i in range(len(QUERIES)):
                query = QUERIES[(i + number) % len(QUERIES)]
                if number % 2:
                    check(query, of_documents(compressor.compress_documents(documents, query)))
                else:
                    found = postprocessor.postprocess_nodes(nodes, query_str=query)
                    check(query, {int(n.node_id): n.get_score() for n in found})

        async def by_task(number: int) -> None:
            query = QUERIES[number % len(QUERIES)]
            if number % 2:
                check(query, of_documents(await compressor.acompress_documents(documents, query)))
            else:
                found = await postprocessor.apostprocess_nodes(nodes, query_str=query)
                check(query, {int(n.node_id): n.get_score() for n in found})

        watch = LoopWatch()
        watching = asyncio.create_task(watch.run())
        started = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as threads:
            await asyncio.gather(
                *(asyncio.wrap_future(threads.submit(by_thread, i)) for i in range(THREADS)),
                *(by_task(i) for i in range(TASKS)),
            )
        seconds = time.perf_counter() - started
        watching.cancel()
        stats = reranker.stats()["embedded"]
    asked = stats.cache_hits + stats.cache_misses + stats.pairs_joined
    distinct = len(QUERIES) * len(set(TEXTS))
    print(f"{THREADS} threads x {len(QUERIES)} queries and {TASKS} tasks, {len(TEXTS)} documents")
    print(f"seconds                         {seconds:.2f}")
    print(f"pairs asked / scored / distinct {asked} / {stats.pairs_scored} / {distinct}")
    print(f"largest difference to serial    {worst:.1e}")
    watch.report("event loop")
    await control(seconds)


if __name__ == "__main__":
    asyncio.run(main())
