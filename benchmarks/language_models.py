"""Language models as rerankers, beside the model card's code and sentence-transformers, on the CPU.

One request of 50 documents, with the card's short instruction and with one of 500 tokens together
with its query: `make bench-language-models`. `--models qwen3-tiny` tries the benchmark itself out.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from bench import describe_machine, names_of
from comparison import Run, largest_difference, say, spearman
from engines import APART, CARD, LAST, OURS, ST, Setup
from language_model import (
    BODY,
    CARD_LENGTH,
    INSTRUCTION,
    LANGUAGE_MODELS,
    PREFIX,
    SUFFIX,
    ensure_language_model,
)
from workers import Worker
from workloads import SHAPES, Request, have_data, make_requests, turned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

ENGINES = (OURS, APART, CARD, ST, LAST)
PEER_SIZES = (1, 2, 4, 8, 16)
SIZES: dict[str, tuple[int | None, ...]] = {OURS: (None,), APART: (None,)}
"""Batch sizes that an engine may choose its best of; PEER_SIZES where it is not here."""

AS_WRITTEN: dict[str, int | None] = {CARD: None, ST: 32}
"""What runs if nobody chooses: the card scores all pairs in one batch."""

QUERY_TOKENS = {"short instruction": None, "500-token instruction": 500}
"""Tokens of instruction and query together; None leaves the card's instruction."""


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="qwen3-0.6b", help=", ".join(LANGUAGE_MODELS))
    parser.add_argument("--workloads", default=",".join(QUERY_TOKENS), help="comma-separated")
    parser.add_argument("--engines", default=f"{OURS},{APART},{CARD},{ST}", help=f"also {LAST}")
    parser.add_argument("--precision", default="bf16", help="of all engines: fp32, bf16 or fp16")
    parser.add_argument("--documents", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--peer-sizes",
        default=",".join(map(str, PEER_SIZES)),
        help="batch sizes that a peer may choose its best of, ascending",
    )
    parser.add_argument("--as-written", action="store_true", help="peers at their own batch too")
    parser.add_argument("--folder", type=Path, help="where the models are kept between runs")
    parser.add_argument("--output", type=Path, help="write the tables there too")
    arguments = parser.parse_args()
    for name, known in (
        ("models", LANGUAGE_MODELS),
        ("workloads", QUERY_TOKENS),
        ("engines", ENGINES),
    ):
        chosen = names_of(getattr(arguments, name))
        if unknown := [value for value in chosen if value not in known]:
            parser.error(f"--{name}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    return arguments


def main() -> None:
    arguments = read_arguments()
    if not have_data():
        say("no data folder (RERANK_PLUGINS_DATA): the text is this project's documentation")
    blocks = [describe_machine()]
    print(blocks[0], flush=True)
    with ExitStack() as stack:
        kept = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in names_of(arguments.models):
            say(f"{name}: making the model, unless it is there")
            folder = ensure_language_model(kept, name)
            found: dict[str, int | None] = {}
            for workload in names_of(arguments.workloads):
                task = _task(folder, workload, arguments)
                head = f"### {name} ({LANGUAGE_MODELS[name].like}), {workload}"
                blocks.append(f"{head}\n\n{_measure(task, found, arguments)}")
                print(f"\n{blocks[-1]}", flush=True)
    if arguments.output is not None:
        arguments.output.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    say("done")


@dataclass(frozen=True, slots=True)
class Task:
    """What all engines do: one request, how the model is opened, and both in words."""

    setup: Setup
    requests: list[Request]
    text: str


def _task(folder: Path, workload: str, arguments: argparse.Namespace) -> Task:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    requests = make_requests(SHAPES["RAG chunk"], arguments.documents)
    query = requests[0].query
    tokens = QUERY_TOKENS[workload]
    instruction = (
        None if tokens is None else _instruction(tokenizer, tokens - _count(tokenizer, query))
    )
    start = PREFIX + BODY.format(instruction=instruction or INSTRUCTION, query=query, document="")
    shared = _count(tokenizer, start)
    lengths = [shared + _count(tokenizer, d + SUFFIX) for d in requests[0].documents]
    text = (
        f"1 request of {len(lengths)} documents; {np.mean(lengths):.0f} tokens a pair (median "
        f"{np.median(lengths):.0f}, most {max(lengths)}), of which {shared} are the same for all "
        f"documents. {arguments.precision}; differences are to transformers in float32."
    )
    return Task(Setup(folder, arguments.precision, CARD_LENGTH, "cpu", instruction), requests, text)


def _instruction(tokenizer: Tokenizer, tokens: int) -> str:
    """Return that many tokens of real text; what it says is all the same to random weights."""
    (request,) = make_requests(SHAPES["RAG chunk"], 8, seed=2)
    text = " ".join(request.documents)
    return text[: tokenizer.encode(text).offsets[tokens - 1][1]].strip()


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text).ids)


def _measure(task: Task, found: dict[str, int | None], arguments: argparse.Namespace) -> str:
    """Return text and table; *found* keeps each engine's best batch size from task to task."""
    with Worker(LAST, replace(task.setup, precision="fp32")) as exact:
        reference, seconds = exact.score(task.requests, 1)
    say(f"reference in float32: {seconds:.1f} s")
    engines = names_of(arguments.engines)
    for engine in engines:
        sizes = SIZES.get(engine) or tuple(map(int, names_of(arguments.peer_sizes)))
        found[engine] = _best_size(engine, sizes, task, found.get(engine))
    rows = [(engine, found[engine]) for engine in engines]
    if arguments.as_written:
        rows += [(engine, AS_WRITTEN[engine]) for engine in engines if engine in AS_WRITTEN]
    with ExitStack() as stack:
        # New processes: memory is of one batch size alone.
        workers = [stack.enter_context(Worker(engine, task.setup)) for engine, _ in rows]
        runs = [_first(worker, size, task) for worker, (_, size) in zip(workers, rows, strict=True)]
        for number in range(1, arguments.rounds + 1):
            _round(number, workers, runs, task)
    spread = np.concatenate(reference).std()
    return f"{task.text} Logits spread by {spread:.1f}.\n\n{table(runs, reference)}"


def _best_size(
    engine: str, sizes: tuple[int | None, ...], task: Task, known: int | None
) -> int | None:
    """Return the fastest of *sizes*; near *known*, if a task before this one found that."""
    if known is not None:
        sizes = tuple(size for size in sizes if known // 2 <= (size or 0) <= 2 * known)
    if len(sizes) == 1:
        return sizes[0]
    times: dict[int | None, float] = {}
    with Worker(engine, task.setup) as worker:
        for number, size in enumerate(sizes):
            worker.score(turned([_short(task.requests[0])], 99), size)
            _, times[size] = worker.score(turned(task.requests, 100 + number), size)
            if len(times) > 2 and min(times.values()) < min(list(times.values())[-2:]):
                # Two sizes in a row were slower: larger ones pad more.
                break
    say(f"{engine}: " + ", ".join(f"{size}: {seconds:.1f} s" for size, seconds in times.items()))
    return min(times, key=times.__getitem__)


def _first(worker: Worker, size: int | None, task: Task) -> Run:
    """Measure memory, on the texts as they are: these logits are the ones that are compared."""
    logits, gib = worker.growth(task.requests, size)
    say(f"{worker.name}, {size or 'no size'}: {'?' if gib is None else f'{gib:.2f}'} GiB")
    peak = float("nan") if gib is None else gib
    return Run(worker.name, task.setup.precision, size, best=True, logits=logits, peak_gib=peak)


def _round(number: int, workers: Sequence[Worker], runs: Sequence[Run], task: Task) -> None:
    texts = turned(task.requests, number)
    pairs = sum(len(request.documents) for request in texts)
    pairings = list(zip(workers, runs, strict=True))
    # Each round begins with another engine: the machine's moods are shared out.
    first = number % len(pairings)
    for worker, run in [*pairings[first:], *pairings[:first]]:
        _, seconds = worker.score(texts, run.batch)
        run.rates.append(pairs / seconds)
    say(f"round {number}: " + ", ".join(f"{r.engine} {r.rates[-1]:.2f}/s" for r in runs))


def _short(request: Request) -> Request:
    return Request(request.query, request.documents[:2])


HEADER = (
    "engine",
    "batch",
    "pairs/s",
    "±",
    "to card",
    "to ST",
    "GiB above the weights",
    "of card's",
    "of ST's",
    "max Δ logit",
    "Spearman",
)


def table(runs: Sequence[Run], reference: Sequence[Sequence[float]]) -> str:
    """Return a Markdown table; ratios are to each peer's best batch size, the first of its rows."""
    peers = {run.engine: run for run in reversed(runs)}
    lines = [" | ".join(HEADER), "|".join(["---", *["--:"] * (len(HEADER) - 1)])]
    for run in runs:
        others = [peers.get(name) for name in (CARD, ST)]
        batch = "own" if run.engine in SIZES else "all" if run.batch is None else str(run.batch)
        cells = (
            run.engine,
            batch,
            f"{run.rate:.2f}",
            f"{run.spread:.0%}",
            *("" if other is None else f"{run.rate / other.rate:.2f}" for other in others),
            f"{run.peak_gib:.2f}",
            *("" if o is None else f"{run.peak_gib / o.peak_gib:.0%}" for o in others),
            f"{largest_difference(run.logits, reference):.1e}",
            f"{spearman(run.logits, reference):.4f}",
        )
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    main()
