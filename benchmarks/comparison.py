"""Engines side by side on the same requests: speed in alternating rounds, scores, memory."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from engines import OURS, ST
from workloads import turned

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers import Worker
    from workloads import Request

ST_DEFAULT_BATCH = 32
STARTED = time.perf_counter()


@dataclass(frozen=True, slots=True)
class Entry:
    """A worker and the batch sizes that it may choose its best of.

    They are pairs, or tokens for this package; None is the engine's own choice.
    """

    worker: Worker
    sizes: tuple[int | None, ...]


@dataclass(slots=True)
class Run:
    """One engine at one batch size: pairs/s of every round, and its logits on the first texts."""

    engine: str
    precision: str
    batch: int | None
    best: bool
    logits: list[list[float]]
    rates: list[float] = field(default_factory=list)
    peak_gib: float = 0.0

    @property
    def rate(self) -> float:
        """Median of the rounds, in pairs/s."""
        return statistics.median(self.rates)

    @property
    def spread(self) -> float:
        """Half of the range of the rounds as a share of the median."""
        return (max(self.rates) - min(self.rates)) / 2 / self.rate


def say(text: str) -> None:
    """Show how far the run is, away from the table."""
    print(f"[{time.perf_counter() - STARTED:6.0f} s] {text}", file=sys.stderr, flush=True)


def compare(
    entries: Sequence[Entry],
    precision: str,
    requests: Sequence[Request],
    *,
    rounds: int,
    sweeps: int = 1,
) -> list[Run]:
    """Return the runs of all entries: each at its best batch size, and ST at its default too.

    *sweeps* runs at each batch size say which is the best; then come the *rounds*, in turn.
    """
    runs: list[tuple[Worker, Run]] = []
    for entry in entries:
        worker = entry.worker
        run = _sweep(entry, precision, requests, sweeps)
        runs.append((worker, run))
        if worker.name == ST and run.batch != ST_DEFAULT_BATCH:
            logits, _ = worker.score(requests, ST_DEFAULT_BATCH)
            runs.append((worker, Run(ST, precision, ST_DEFAULT_BATCH, best=False, logits=logits)))
    pairs = sum(len(request.documents) for request in requests)
    for number in range(1, rounds + 1):
        texts = turned(requests, number)
        # Each round begins with another engine: the machine's moods are shared out.
        first = number % len(runs)
        for worker, run in [*runs[first:], *runs[:first]]:
            _, seconds = worker.score(texts, run.batch)
            run.rates.append(pairs / seconds)
        say(f"round {number}: " + ", ".join(f"{r.engine} {r.rates[-1]:.1f}/s" for _, r in runs))
    for worker, run in runs:
        run.peak_gib = worker.peak_gib()
    return [run for _, run in runs]


def _sweep(entry: Entry, precision: str, requests: Sequence[Request], sweeps: int) -> Run:
    """Run each batch size that differs, and keep the fastest.

    The first run has the texts as they are: its logits are the ones that are compared.
    """
    worker = entry.worker
    longest = max(len(request.documents) for request in requests)
    sizes = [
        size
        for size in entry.sizes
        # A batch that is not filled is the same as the next smaller one.
        if size is None or worker.name == OURS or size // 2 < longest
    ]
    worker.score(turned(_small(requests), 99), sizes[0])
    logits: list[list[float]] = []
    seconds = {}
    for i, size in enumerate(sizes):
        times = []
        for turn in range(i * sweeps, (i + 1) * sweeps):
            found, took = worker.score(turned(requests, 100 * turn), size)
            logits = logits or found
            times.append(took)
        seconds[size] = min(times)
        if len(seconds) > 2 and min(seconds.values()) < min(list(seconds.values())[-2:]):
            # Two sizes in a row were slower: larger ones pad more.
            break
    fastest = min(seconds, key=seconds.__getitem__)
    say(f"{worker.name}: " + ", ".join(f"{s or 'own'}: {t:.2f} s" for s, t in seconds.items()))
    return Run(worker.name, precision, fastest, best=True, logits=logits)


def pairs_for(
    worker: Worker, requests: Sequence[Request], seconds: float, bounds: tuple[int, int]
) -> int:
    """Return how many pairs *worker* scores in *seconds*, within *bounds*."""
    sample = _small(requests)
    worker.score(turned(sample, 1), 8)
    _, took = worker.score(turned(sample, 2), 8)
    least, most = bounds
    return int(np.clip(8 / took * seconds, least, most))


def _small(requests: Sequence[Request]) -> list[Request]:
    first = requests[0]
    return [type(first)(first.query, first.documents[:8])]


def largest_difference(
    found: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]
) -> float:
    """Largest difference between two engines' logits."""
    return float(np.abs(np.concatenate(found) - np.concatenate(reference)).max())


def spearman(found: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> float:
    """Spearman's rank correlation of each request's documents, mean over the requests."""
    ranks = [[np.argsort(np.argsort(logits)) for logits in side] for side in (found, reference)]
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*ranks, strict=True)]))


HEADER = (
    "engine",
    "precision",
    "batch",
    "pairs/s",
    "±",
    "to ST best",
    "to ST default",
    "of limit",
    "max Δ logit",
    "Spearman",
    "peak GiB",
)


def table(
    runs: Sequence[Run],
    reference: Sequence[Sequence[float]],
    limits: Mapping[str, float],
) -> str:
    """Return a Markdown table of *runs*; *limits* are the pairs/s of the matrix rate by precision.

    Differences are to *reference*, the logits of transformers in float32.
    """
    best: dict[str, float] = {}
    for run in runs:
        if run.engine == ST:
            best[run.precision] = max(run.rate, best.get(run.precision, 0.0))
    default = {
        run.precision: run.rate
        for run in runs
        if run.engine == ST and run.batch == ST_DEFAULT_BATCH
    }
    lines = [" | ".join(HEADER), "|".join(["---", "---", *["--:"] * (len(HEADER) - 2)])]
    for run in runs:
        name = run.engine + ("" if run.best or run.engine != ST else ", default batch")
        cells = (
            name,
            run.precision,
            "own" if run.batch is None else str(run.batch),
            f"{run.rate:.1f}",
            f"{run.spread:.0%}",
            _ratio(run.rate, best.get(run.precision)),
            _ratio(run.rate, default.get("fp32")),
            f"{run.rate / limits[run.precision]:.0%}",
            f"{largest_difference(run.logits, reference):.1e}",
            f"{spearman(run.logits, reference):.4f}",
            f"{run.peak_gib:.1f}",
        )
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def _ratio(rate: float, other: float | None) -> str:
    return "" if other is None else f"{rate / other:.2f}"
