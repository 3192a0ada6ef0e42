"""Under the same traffic: a lock around sentence-transformers, and infinity-emb's engine."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from bench import describe_machine
from comparison import largest_difference, say, spearman
from full_size import ensure_model
from subjects import INFINITY, LOCKED, OURS, OURS_TASKS, Subject, figures
from workloads import SHAPES

if TYPE_CHECKING:
    from collections.abc import Sequence

CALLERS = (1, 2, 4, 8, 16, 32, 64, 128)
COMPARED = 16
"""Requests whose logits are compared."""


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", help="the Python that has infinity-emb; without, no row")
    parser.add_argument("--callers", type=int, nargs="+", default=CALLERS)
    parser.add_argument("--seconds", type=float, default=4.0, help="in which requests are sent")
    parser.add_argument("--documents", type=int, default=5, help="of a request")
    parser.add_argument("--shape", default="web search", choices=SHAPES)
    parser.add_argument("--quick", action="store_true", help="half a minute")
    parser.add_argument("--folder", type=Path, help="where the model is kept between runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.callers, arguments.seconds = (1, 16), 1.0
    return arguments


def main() -> None:
    arguments = read_arguments()
    print(describe_machine())
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = for_any_version(
            ensure_model(arguments.folder or temporary, "minilm-l6"), temporary
        )
        names = [OURS, OURS_TASKS, LOCKED]
        if arguments.peer_python:
            names.append(INFINITY)
        else:
            say("no --peer-python: infinity-emb is left out")
        subjects = []
        for name in names:
            python = arguments.peer_python if name == INFINITY else None
            shape, documents = arguments.shape, arguments.documents
            subject = Subject(name, folder, shape=shape, documents=documents, python=python)
            subjects.append(stack.enter_context(subject))
            print(f"{name}: {subject.versions}")
        compare_scores(subjects)
        print(
            f"\nfp32, {arguments.documents} documents ({arguments.shape}), {arguments.seconds:g} s"
        )
        measure(subjects, arguments.callers, arguments.seconds)


def for_any_version(folder: Path, temporary: Path) -> Path:
    """Copy the model with a tokenizer class that older transformers know too."""
    copy = Path(shutil.copytree(folder, temporary / "model"))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    return copy


def compare_scores(subjects: Sequence[Subject]) -> None:
    """Print how far the others' logits lie from ours, asked for one after the other."""
    ours, *others = subjects
    reference = ours.serial(COMPARED)
    for other in others:
        found = other.serial(COMPARED)
        gap, agreement = largest_difference(found, reference), spearman(found, reference)
        print(f"{other.name}: logits differ by {gap:.1e} at most, Spearman {agreement:.5f}")


def measure(subjects: Sequence[Subject], callers: Sequence[int], seconds: float) -> None:
    """Print a row for each number of callers and engine, and where a peer was ahead."""
    print("| callers | engine | requests | pairs/s | p50 ms | p95 ms | p99 ms |")
    print("|--:|---|--:|--:|--:|--:|--:|")
    ahead: list[str] = []
    for turn, count in enumerate(callers, start=1):
        rows = {}
        for subject in subjects:
            # The first requests after another engine has run are not measured.
            subject.load(min(count, 4), min(1.0, seconds / 4), 1000 + turn)
            found = subject.load(count, seconds, turn)
            rows[subject.name] = figures(found)
            cells = " | ".join(f"{value:.0f}" for value in rows[subject.name])
            sent = len(found["latencies"])
            print(f"| {count} | {subject.name} | {sent} | {cells} |", flush=True)
        ahead += _ahead(count, rows)
    print("\nwhere a peer was ahead: " + ("; ".join(ahead) or "nowhere"))


def _ahead(callers: int, rows: dict[str, list[float]]) -> list[str]:
    """Say in what a peer was better than ours, called as it is called."""
    found = []
    for peer, ours in ((LOCKED, OURS), (INFINITY, OURS_TASKS)):
        if peer not in rows:
            continue
        better = [rows[peer][0] >= rows[ours][0]]
        better += [a <= b for a, b in zip(rows[peer][1:], rows[ours][1:], strict=True)]
        names = zip(("pairs/s", "p50", "p95", "p99"), better, strict=True)
        found += [f"{peer} with {callers} callers, {name}" for name, is_so in names if is_so]
    return found


if __name__ == "__main__":
    main()
