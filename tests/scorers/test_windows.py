"""Long documents in windows, through the engine, beside what onnxruntime makes of each window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from examples.rerank_by_hand import score_by_hand
from rerank_plugins import Reranker
from rerank_plugins.models.windows import window_slices
from tests.tiny_models import Kind, write_model

if TYPE_CHECKING:
    from pathlib import Path

QUERY = "the cat"
WORDS = ["the", "dog", "sat", "on", "a", "mat", "the", "river", "bank", "cat", "tree", "query"]
LONG = " ".join(WORDS[i * i % len(WORDS)] for i in range(50))


def open_windows(folder: Path, **settings: Any) -> Reranker:
    usual = {"activation": "logit", "max_length": 24, "window_overlap": 5, "normalizer": None}
    return Reranker(str(folder), **{**usual, "long_documents": "window"} | settings)


@pytest.mark.parametrize("score", ["max", "mean"])
@pytest.mark.parametrize(("kind", "room"), [("bert", 19), ("xlm-roberta", 18)])
def test_a_documents_logit_is_what_its_windows_come_to(
    kind: Kind, room: int, score: str, tmp_path: Path
) -> None:
    write_model(tmp_path, kind)
    words = LONG.split()  # one token each
    slices = window_slices(len(words), room, 5)
    windows = [" ".join(words[start:stop]) for start, stop in slices]
    logits = score_by_hand(tmp_path, QUERY, [*windows, "a dog"], 64)
    *logits, short = logits

    with open_windows(tmp_path, window_score=score, batch_tokens=64) as reranker:
        found = {ranked.index: ranked for ranked in reranker.rank(QUERY, [LONG, "a dog"])}

    expected = max(logits) if score == "max" else np.mean(logits)
    assert found[0].logit == pytest.approx(expected, abs=1e-5)
    assert found[1].logit == pytest.approx(short, abs=1e-5)
    window = found[0].window
    assert window is not None
    assert (window.index, window.count) == (int(np.argmax(logits)), len(logits))
    assert LONG[window.start : window.end].strip() == windows[window.index]
    assert found[1].window is None


def test_a_document_that_fits_has_the_logit_that_truncation_gives(tmp_path: Path) -> None:
    write_model(tmp_path)
    documents = ["cat " * n + "dog" for n in range(19)]

    with (
        open_windows(tmp_path) as windowed,
        open_windows(tmp_path, long_documents="truncate") as cut,
    ):
        found = [(ranked.index, ranked.logit) for ranked in windowed.rank(QUERY, documents)]
        assert found == [(ranked.index, ranked.logit) for ranked in cut.rank(QUERY, documents)]


def test_a_model_whose_trial_pair_is_windowed_opens(tmp_path: Path) -> None:
    write_model(tmp_path)

    with open_windows(tmp_path, max_length=8) as reranker:
        (ranked,) = reranker.rank("cat", ["dog tree mat river bank"])
    assert ranked.window is not None


def test_windows_and_truncation_are_two_engines_with_caches_of_their_own(tmp_path: Path) -> None:
    write_model(tmp_path)

    with (
        open_windows(tmp_path, long_documents="truncate") as cut,
        open_windows(tmp_path) as windowed,
    ):
        (short,) = cut.rank(QUERY, [LONG])
        (whole,) = windowed.rank(QUERY, [LONG])

    assert short.truncated
    assert not whole.cached
    assert whole.logit > short.logit


def test_an_exact_copy_has_the_window_of_its_original_and_a_near_one_none(tmp_path: Path) -> None:
    write_model(tmp_path)
    copies = [LONG, f"{LONG} cat", LONG, f"{LONG} cat"]

    with open_windows(tmp_path) as reranker:
        (alone,) = reranker.rank(QUERY, [LONG])
        found = {d.index: d for d in reranker.rank(QUERY, copies, near_duplicates=0.8)}

    assert [found[i].duplicate_of for i in range(4)] == [None, 0, 0, 0]
    assert alone.window is not None
    assert [found[i].window for i in range(4)] == [alone.window, None, alone.window, None]
    assert {ranked.logit for ranked in found.values()} == {alone.logit}
