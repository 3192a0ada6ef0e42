"""Pairs per second on the CPU beside sentence-transformers and plain transformers: `make bench`."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from comparison import Entry, compare, pairs_for, say, table
from engines import ENGINES, ONNX, OURS, PLAIN, ST, Setup
from full_size import MODELS, ensure_model
from rates import matrix_rate, token_lengths, work_of
from workers import Worker
from workloads import SHAPES, have_data, make_requests

if TYPE_CHECKING:
    from comparison import Run
    from rates import Work
    from workloads import Request

DEFAULT_SHAPES = {
    "bge-v2-m3": ("RAG chunk",),
    "minilm-l6": ("RAG chunk",),
    "gte-modernbert": ("RAG chunk",),
}
"""What fits into forty minutes of two cores; --shapes measures others."""

PEER_SIZES = (4, 8, 16, 32, 64)
SIZES = {OURS: (None,), ONNX: (None,), ST: PEER_SIZES, PLAIN: PEER_SIZES}
LEAST_PAIRS, MOST_PAIRS = 32, 400


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="names, comma-separated")
    parser.add_argument("--shapes", help=f"of {', '.join(SHAPES)}; each model's own few if not set")
    parser.add_argument("--precision", default="fp32,bf16", help="fp32, bf16, fp16")
    parser.add_argument("--engines", default=f"{OURS},{ST},{PLAIN}", help=f"also {ONNX}, fp32 only")
    parser.add_argument("--pairs", type=int, help="pairs a run; by --seconds if not set")
    parser.add_argument("--seconds", type=float, default=6.0, help="of one float32 run, about")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--quick", action="store_true", help="the smallest model, two minutes")
    parser.add_argument("--folder", type=Path, help="where the models are kept between runs")
    parser.add_argument("--output", type=Path, help="write the tables there too")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.shapes = "minilm-l6", "RAG chunk"
        arguments.seconds, arguments.rounds = 2.0, 2
    for name, known in (("models", MODELS), ("shapes", SHAPES), ("engines", ENGINES)):
        chosen = names_of(getattr(arguments, name) or "")
        if unknown := [value for value in chosen if value not in known]:
            parser.error(f"--{name}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    return arguments


def main() -> None:
    arguments = read_arguments()
    if not have_data():
        say("no data folder (RERANK_PLUGINS_DATA): the text is this project's documentation")
    lines = [describe_machine()]
    print(lines[0], flush=True)
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in names_of(arguments.models):
            say(f"{name}: making the model, unless it is there")
            for block in measure(ensure_model(folder, name), name, arguments):
                lines.append(block)
                print(f"\n{block}", flush=True)
    if arguments.output is not None:
        arguments.output.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    say("done")


def measure(folder: Path, name: str, arguments: argparse.Namespace) -> list[str]:
    """Return a block of text for every shape: what was measured, and the table."""
    longest = min(arguments.max_length, MODELS[name].longest)
    workloads = _workloads(folder, name, longest, arguments)
    work = work_of(folder)
    rates: dict[str, float] = {}
    for precision in names_of(arguments.precision):
        setup = Setup(folder, precision, longest)
        say(f"{name} in {precision}: matrix rate, then the engines")
        rates[precision] = matrix_rate(work, precision)
        with ExitStack() as stack:
            entries = [
                Entry(stack.enter_context(Worker(engine, setup)), SIZES[engine])
                for engine in names_of(arguments.engines)
                if engine != ONNX or precision == "fp32"
            ]
            for workload in workloads:
                requests, rounds = workload.requests, arguments.rounds
                workload.runs += compare(entries, precision, requests, rounds=rounds)
        # Once more, so that a busy moment at the first does not lower the limit.
        rates[precision] = max(rates[precision], matrix_rate(work, precision))
    return [_block(name, workload, work, rates, folder, longest) for workload in workloads]


@dataclass(slots=True)
class Workload:
    """A shape's requests, their logits by transformers in float32, and what was measured."""

    shape: str
    requests: list[Request]
    reference: list[list[float]]
    runs: list[Run] = field(default_factory=list)

    @property
    def pairs(self) -> int:
        """Pairs of all requests."""
        return sum(len(request.documents) for request in self.requests)


def _workloads(
    folder: Path, name: str, longest: int, arguments: argparse.Namespace
) -> list[Workload]:
    """Choose how many pairs the time allows, and score them with transformers in float32."""
    made = []
    with Worker(PLAIN, Setup(folder, "fp32", longest)) as plain:
        for shape in names_of(arguments.shapes or "") or DEFAULT_SHAPES[name]:
            row = SHAPES[shape]
            if row.chinese and not MODELS[name].chinese:
                say(f"{name} reads no Chinese: {shape} left out")
                continue
            sample = make_requests(row, LEAST_PAIRS)
            bounds = (LEAST_PAIRS, MOST_PAIRS)
            pairs = arguments.pairs or pairs_for(plain, sample, arguments.seconds, bounds)
            requests = make_requests(row, pairs)
            made.append(Workload(shape, requests, plain.score(requests, 8)[0]))
            say(f"{name}, {shape}: {made[-1].pairs} pairs")
    return made


def _block(
    name: str, workload: Workload, work: Work, rates: dict[str, float], folder: Path, longest: int
) -> str:
    lengths = token_lengths(folder, workload.requests, longest)
    flops = work.flops(lengths) / len(lengths)  # of a pair
    limits = {precision: rate / flops for precision, rate in rates.items()}
    logits = np.concatenate(workload.reference)
    rate_text = ", ".join(
        f"{precision} {rate / 1e12:.2f} TFLOP/s ({limits[precision]:.1f} pairs/s)"
        for precision, rate in rates.items()
    )
    requests = workload.requests
    text = (
        f"{len(requests)} requests of {len(requests[0].documents)} documents; "
        f"{np.mean(lengths):.0f} tokens a pair (median {np.median(lengths):.0f}, most "
        f"{max(lengths)}, max_length {longest}), {flops / 1e9:.1f} GFLOP a pair; logits spread "
        f"by {logits.std():.1f}. Best matrix rate, and the limit it sets: {rate_text}."
    )
    head = f"### {name} ({MODELS[name].like}), {workload.shape}"
    return "\n".join((head, "", text, "", table(workload.runs, workload.reference, limits)))


def describe_machine() -> str:
    """Date, processor and versions, as the performance log wants them."""
    import torch

    from rerank_plugins.scorers.torch.hardware import fast_bf16

    names = ("torch", "transformers", "sentence-transformers", "tokenizers")
    versions = ", ".join(f"{package} {version(package)}" for package in names)
    cpu = f"{torch.backends.cpu.get_cpu_capability()}, bf16 by {fast_bf16() or 'nothing'}"
    return (
        f"{datetime.now(tz=UTC):%Y-%m-%d}, {os.cpu_count()} cores ({platform.machine()}, {cpu}), "
        f"{torch.get_num_threads()} threads; Python {platform.python_version()}, {versions}."
    )


def names_of(text: str) -> list[str]:
    """Return the names of a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    main()
