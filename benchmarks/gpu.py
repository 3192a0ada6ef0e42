"""CUDA beside sentence-transformers in half precision: `make bench-gpu`, eight minutes at most.

Without a CUDA device it says so and ends well.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import numpy as np
from comparison import STARTED, Entry, compare, say, table
from engines import OURS, PLAIN, ST, Setup
from full_size import MODELS, ensure_model
from rates import matrix_rate, token_lengths, work_of
from workers import Worker
from workloads import SHAPES, have_data, make_requests

BUDGETS = (16_384, 32_768, 65_536)
"""Tokens in a batch of this package."""

SIZES = (32, 64, 128, 256, 512)
"""Pairs in a batch of the other engines."""

DEVICE = "cuda"
PAIRS = 1024
MAX_LENGTH = 512
LAST_START_S = 330
"""No model is begun later: each takes a minute or two, and all must end within eight."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="minilm-l6,bge-v2-m3,gte-modernbert")
    parser.add_argument("--shape", default="RAG chunk", choices=SHAPES)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs a run, in one request")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the models are kept between runs")
    arguments = parser.parse_args()
    if (reason := _no_cuda()) is not None:
        print(f"bench-gpu skipped: {reason}")
        return
    print(_machine(), flush=True)
    failed = []
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in arguments.models.split(","):
            if time.perf_counter() - STARTED > LAST_START_S:
                print(f"\n{name}: left out, the eight minutes would not hold it")
                continue
            try:
                print(f"\n{measure(ensure_model(folder, name), name, arguments)}", flush=True)
            except SystemExit as exc:
                # One model's failure must not cost the figures of the others.
                failed.append(name)
                print(f"\n{name}: {exc}", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def measure(folder: Path, name: str, arguments: argparse.Namespace) -> str:
    """Return a block of text: the parity and speed of a model in fp16 and bf16."""
    row = SHAPES[arguments.shape]
    requests = make_requests(row, arguments.pairs, documents=arguments.pairs)
    longest = min(MAX_LENGTH, MODELS[name].longest)
    lengths = token_lengths(folder, requests, longest)
    work = work_of(folder)
    with Worker(PLAIN, Setup(folder, "fp32", longest, DEVICE)) as plain:
        reference, _ = plain.score(requests, 32)
    runs, limits = [], {}
    for precision, peers in (("fp16", (ST, PLAIN)), ("bf16", ())):
        setup = Setup(folder, precision, longest, DEVICE)
        say(f"{name} in {precision}")
        rate = matrix_rate(work, precision, DEVICE)
        with ExitStack() as stack:
            # A worker for each budget: its peak of memory is then its own.
            chosen = [*((OURS, (budget,)) for budget in BUDGETS), *((p, SIZES) for p in peers)]
            entries = [Entry(stack.enter_context(Worker(e, setup)), sizes) for e, sizes in chosen]
            runs += compare(entries, precision, requests, rounds=arguments.rounds, sweeps=2)
        rate = max(rate, matrix_rate(work, precision, DEVICE))
        limits[precision] = rate * len(lengths) / work.flops(lengths)
    rates = ", ".join(
        f"{precision} {limit * work.flops(lengths) / len(lengths) / 1e12:.0f} TFLOP/s "
        f"({limit:.0f} pairs/s)"
        for precision, limit in limits.items()
    )
    text = (
        f"{arguments.shape}: {len(requests)} request of {len(requests[0].documents)} documents; "
        f"{np.mean(lengths):.0f} tokens a pair (most {max(lengths)}, max_length {longest}); logits "
        f"spread by {np.std(np.concatenate(reference)):.1f}. Best matrix rate, and the limit it "
        f"sets: {rates}. Differences are to transformers in float32 on the same device."
    )
    head = f"### {name} ({MODELS[name].like})"
    return "\n".join((head, "", text, "", table(runs, reference, limits)))


def _no_cuda() -> str | None:
    """Why there is nothing to measure, or None."""
    try:
        import torch
    except ImportError:
        return 'torch is not installed; pip install "rerank-plugins[torch]"'
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    return None


def _machine() -> str:
    import torch

    names = ("torch", "transformers", "sentence-transformers")
    versions = ", ".join(f"{package} {version(package)}" for package in names)
    text = "real text" if have_data() else "text of this project's documentation"
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {versions}; {text}."


if __name__ == "__main__":
    main()
