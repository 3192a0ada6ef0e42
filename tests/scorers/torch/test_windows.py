"""Long documents in windows, through the engine, beside what transformers makes of each window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from rerank_plugins import Reranker, Window
from rerank_plugins.models.windows import window_slices
from tests.tiny_torch import PaddedForward, make_pairs, write_torch_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

QUERY = "the cat on a tree"
MAX_LENGTH, OVERLAP = 32, 6
DOCUMENTS = [
    *(document for _, document in make_pairs(40, seed=3)),
    "river bank dog " * 60,
    "a mat, the dog; " * 15 + "query!",
]


@pytest.fixture(params=["bert", "xlm-roberta"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_torch_model(tmp_path / "model", request.param)


@pytest.fixture
def open_here(folder: Path) -> Iterator[Callable[..., Reranker]]:
    opened = []

    def open_it(**settings: Any) -> Reranker:
        usual = {"backend": "torch", "device": "cpu", "precision": "fp32", "activation": "logit"}
        usual |= {"max_length": MAX_LENGTH, "window_overlap": OVERLAP, "normalizer": None}
        opened.append(Reranker(str(folder), **{**usual, "language_detector": None} | settings))
        return opened[-1]

    yield open_it
    for reranker in opened:
        reranker.close()


def by_hand(reference: PaddedForward, query: str, document: str) -> list[float]:
    """Return transformers' logit of each window, from ids that are joined here."""
    whole = reference.tokenizer(query, document)
    sides = whole.sequence_ids(0)
    ids, kinds = whole["input_ids"], whole.get("token_type_ids", [0] * len(sides))
    start = sides.index(1)
    tokens, special = sides.count(1), sides.count(None)
    room = MAX_LENGTH - special - sides.count(0)
    logits = []
    for first, last in window_slices(tokens, room, OVERLAP):
        kept = [
            *range(start),
            *range(start + first, start + last),
            *range(start + tokens, len(ids)),
        ]
        inputs = {"input_ids": torch.tensor([[ids[i] for i in kept]])}
        if "token_type_ids" in whole:
            inputs["token_type_ids"] = torch.tensor([[kinds[i] for i in kept]])
        with torch.inference_mode():
            logits.append(reference.model(**inputs).logits.item())
    return logits


@pytest.mark.parametrize("score", ["max", "mean"])
def test_a_documents_logit_is_what_its_windows_come_to(
    folder: Path, open_here: Callable[..., Reranker], score: str
) -> None:
    reference = PaddedForward(folder)
    reranker = open_here(long_documents="window", window_score=score, batch_tokens=100)

    ranking = reranker.rank(QUERY, DOCUMENTS)

    assert sum(ranked.window is not None for ranked in ranking) > 10
    for ranked in ranking:
        logits = by_hand(reference, QUERY, DOCUMENTS[ranked.index])
        expected = max(logits) if score == "max" else np.mean(logits)
        assert ranked.logit == pytest.approx(expected, abs=1e-4)
        assert not ranked.truncated
        if len(logits) == 1:
            assert ranked.window is None
        else:
            assert ranked.window is not None
            assert ranked.window.count == len(logits)
            assert logits[ranked.window.index] == pytest.approx(max(logits), abs=1e-4)


def test_a_document_that_fits_has_the_logit_that_truncation_gives(
    open_here: Callable[..., Reranker],
) -> None:
    windowed = open_here(long_documents="window").rank(QUERY, DOCUMENTS)
    cut = {ranked.index: ranked for ranked in open_here().rank(QUERY, DOCUMENTS)}

    fitting = [ranked for ranked in windowed if ranked.window is None]
    assert len(fitting) > 10
    for ranked in fitting:
        assert not cut[ranked.index].truncated
        # Packed batches of other lengths may round otherwise.
        assert ranked.logit == pytest.approx(cut[ranked.index].logit, abs=1e-5)
    assert all(
        cut[ranked.index].truncated and cut[ranked.index].window is None
        for ranked in windowed
        if ranked.window is not None
    )


def test_the_winning_window_cut_out_of_the_text_has_the_documents_logit(
    open_here: Callable[..., Reranker],
) -> None:
    """Where its tokens are the same alone: here all but the words that a window cuts through."""
    reranker = open_here(long_documents="window")
    documents = ["the cat sat on a mat the dog " * 8, "query tree river " * 20]

    for ranked in reranker.rank(QUERY, documents):
        assert ranked.window is not None
        text = ranked.text[ranked.window.start : ranked.window.end]
        (alone,) = reranker.rank(QUERY, [text])
        assert alone.window is None
        assert alone.logit == pytest.approx(ranked.logit, abs=1e-5)


def test_what_the_cache_answers_names_the_window(open_here: Callable[..., Reranker]) -> None:
    reranker = open_here(long_documents="window")
    (first,) = reranker.rank(QUERY, DOCUMENTS[-1:])
    (again,) = reranker.rank(QUERY, DOCUMENTS[-1:])

    assert again.cached
    assert isinstance(again.window, Window)
    assert (again.logit, again.window) == (first.logit, first.window)


def test_a_model_whose_shortest_trial_is_windowed_opens(open_here: Callable[..., Reranker]) -> None:
    """Opening tries a longer document: at this length it is several pairs."""
    reranker = open_here(long_documents="window", max_length=12, window_overlap=0)

    assert reranker.rank("the cat", ["a dog " * 20])[0].window is not None
