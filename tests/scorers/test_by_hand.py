"""The engine agrees with a scoring loop written by hand, the example that users can read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from examples.rerank_by_hand import score_by_hand
from rerank_plugins import Reranker
from tests.tiny_models import MAX_TOKENS, Kind, write_model

SCRIPT = Path(__file__).parents[2] / "examples" / "rerank_by_hand.py"
QUERY = "the cat on a tree"
DOCUMENTS = ["a dog", "the cat sat", "river bank " * 60, "a dog", "tree", "Die Katze", "[x] 😀"]


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "roberta"])
@pytest.mark.parametrize("batch_tokens", [None, 1, 100])
def test_the_engine_agrees_with_the_hand(
    kind: Kind, batch_tokens: int | None, tmp_path: Path
) -> None:
    write_model(tmp_path, kind)
    by_hand = score_by_hand(tmp_path, QUERY, DOCUMENTS, MAX_TOKENS)

    with Reranker(
        str(tmp_path), backend="onnx", normalizer=None, batch_tokens=batch_tokens
    ) as reranker:
        fresh = reranker.rank(QUERY, DOCUMENTS)
        again = reranker.rank(QUERY, DOCUMENTS)

    order = sorted(range(len(DOCUMENTS)), key=lambda i: -by_hand[i])
    assert [document.index for document in fresh] == order
    assert [document.logit for document in again] == [document.logit for document in fresh]
    for document in fresh:
        assert document.logit == pytest.approx(by_hand[document.index], rel=1e-6, abs=1e-6)
        assert document.truncated == (document.index == 2)


def test_the_example_runs_as_a_script(tmp_path: Path) -> None:
    write_model(tmp_path)

    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), QUERY, "a dog", "the cat sat"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    by_hand = score_by_hand(tmp_path, QUERY, ["a dog", "the cat sat"])
    best = max(by_hand)
    assert done.stdout.splitlines()[0].split()[0] == f"{best:.4f}"
    assert len(done.stdout.splitlines()) == 2


def test_the_example_stays_short() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 40
