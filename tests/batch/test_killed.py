"""A batch that is killed half-way goes on, and ends as if nothing had been."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.batch.conftest import rows_of, write_lines

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("onnxruntime", reason="the embedded model needs onnxruntime")

# The process kills itself inside a forward pass: SIGKILL, with a chunk half done and another begun.
PROGRAM = """
import os, signal, sys
from rerank_plugins import registry
from rerank_plugins.cli import main

limit = int(sys.argv[1])
open_scorer, seen = registry.open_scorer, 0

def open_mortal(config):
    scorer = open_scorer(config)
    forward = scorer.forward

    def mortal(pairs):
        global seen
        seen += len(pairs)
        if limit and seen > limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(pairs)

    scorer.forward = mortal
    return scorer

registry.open_scorer = open_mortal
sys.exit(main(sys.argv[2:]))
"""


def _run(limit: int, *argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(limit), "batch", *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_the_output_of_a_killed_batch_is_that_of_an_uninterrupted_one(tmp_path: Path) -> None:
    words = ["fox", "eats", "rain", "red", "sky", "grain", "mouse", "winter", "sleeps", "green"]
    queries = [
        {
            "query": f"what does the {words[i % 10]} {words[i * 3 % 10]} do?",
            "documents": [
                " ".join(words[j % 7 : j % 7 + i % 9 + 1]) + f" {i} {j}" for j in range(8)
            ],
        }
        for i in range(40)
    ]
    source = write_lines(tmp_path / "run.jsonl", queries)
    # Pairs of other lengths and queries stand side by side where chunks are large.
    whole = _run(0, source, tmp_path / "whole.parquet", "--chunk-pairs", 32)
    killed = tmp_path / "killed.parquet"

    first = _run(130, source, killed, "--chunk-pairs", 32)
    parts = len(list((tmp_path / "killed.parquet.parts").glob("part-*.parquet")))
    second = _run(130, source, killed, "--chunk-pairs", 32, "--resume")
    last = _run(0, source, killed, "--chunk-pairs", 32, "--resume")

    assert (whole.returncode, last.returncode) == (0, 0), whole.stderr + last.stderr
    assert (first.returncode, second.returncode) == (-signal.SIGKILL, -signal.SIGKILL)
    assert 0 < parts < 10
    assert "pairs were done before" in last.stderr
    # To the last bit: a logit of the embedded model depends on its pair alone.
    assert rows_of(killed) == rows_of(tmp_path / "whole.parquet")
    assert len(rows_of(killed)) == 320
    assert not (tmp_path / "killed.parquet.parts").exists()
