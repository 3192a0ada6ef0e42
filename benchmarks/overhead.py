"""What the engine costs beside its scorer: one lone request, cold and cached, sync and async."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

from rerank_plugins import RerankConfig, Reranker
from rerank_plugins.scorers import open_scorer
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 200
DOCUMENTS = [f"document {i} about rivers and foxes" for i in range(50)]


def median_ms(call: Callable[[int], object]) -> float:
    """Median of ROUNDS calls in milliseconds; each gets its number."""
    times = []
    for i in range(ROUNDS):
        started = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def main() -> None:
    def row(name: str, milliseconds: float) -> None:
        print(f"{name:<52} {milliseconds:8.3f} ms")

    print(f"50 documents, median of {ROUNDS} requests")
    scorer = FakeScorer()
    row(
        "fake scorer by itself",
        median_ms(lambda i: scorer.forward(scorer.encode(f"q {i}", DOCUMENTS))),
    )
    with Reranker(FakeScorer()) as reranker:
        row(
            "rank over the fake scorer, nothing cached",
            median_ms(lambda i: reranker.rank(f"q {i}", DOCUMENTS)),
        )
        row("rank, all cached", median_ms(lambda _: reranker.rank("q 0", DOCUMENTS)))
        with asyncio.Runner() as runner:
            row(
                "arank, nothing cached",
                median_ms(lambda i: runner.run(reranker.arank(f"a {i}", DOCUMENTS))),
            )
            row(
                "arank, all cached",
                median_ms(lambda _: runner.run(reranker.arank("q 0", DOCUMENTS))),
            )
    for model in ("lexical", "embedded"):
        direct = open_scorer(RerankConfig(model=model))
        row(
            f"{model} scorer by itself, same documents",
            median_ms(lambda i, s=direct: s.forward(s.encode(f"what about river {i}?", DOCUMENTS))),
        )
        with Reranker(model) as reranker:
            row(
                f"rank with {model}, nothing cached",
                median_ms(lambda i, r=reranker: r.rank(f"what about river {i}?", DOCUMENTS)),
            )


if __name__ == "__main__":
    main()
