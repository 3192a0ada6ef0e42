"""The model that ships with the package."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugins import ConfigError, ModelLoadError, RerankConfig, Reranker, ScoringError
from rerank_plugins.models.embedded_model import (
    TextFeatures,
    match_tokens,
    plan_passes,
    split_windows,
)
from rerank_plugins.scorers import embedded
from rerank_plugins.scorers.embedded import EmbeddedScorer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORDS = (
    *("river", "fox", "ocean", "paper", "engine", "garden", "music", "number", "winter", "window"),
    *("market", "doctor", "planet", "bridge", "the", "a", "of", "in", "and", "to", "is", "was"),
    *("for", "with", "eats", "makes", "found", "under", "between", "old", "red", "quick"),
)


@pytest.fixture(scope="module")
def scorer() -> Iterator[EmbeddedScorer]:
    opened = EmbeddedScorer.open(RerankConfig())
    yield opened
    opened.close()


def _texts(count: int, longest: int = 400) -> list[str]:
    chance = random.Random(7)
    return [
        f"{i} " + " ".join(chance.choices(WORDS, k=chance.randint(1, longest)))
        for i in range(count)
    ]


def test_a_logit_is_the_same_alone_and_in_a_batch_of_500_and_through_both_doors() -> None:
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    from rerank_plugins.langchain import RerankCompressor
    from rerank_plugins.llama_index import RerankPostprocessor

    documents = _texts(500, longest=60)
    query = "does the red fox eat under the old bridge?"
    alone = EmbeddedScorer.open(RerankConfig())
    sample = range(0, 500, 10)
    expected = [float(alone.forward(alone.encode(query, [documents[i]]))[0]) for i in sample]
    settings: dict[str, Any] = {"activation": "logit", "top_n": None}

    with Reranker(activation="logit", cache_entries=0) as reranker:
        whole = {d.index: d.logit for d in reranker.rank(query, documents)}
    by_langchain = RerankCompressor(**settings, cache_entries=501).compress_documents(
        [Document(page_content=text, id=str(i)) for i, text in enumerate(documents)], query
    )
    by_llama_index = RerankPostprocessor(**settings, cache_entries=502).postprocess_nodes(
        [NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(documents)],
        query_str=query,
    )

    scores = {int(str(d.id)): d.metadata["relevance_score"] for d in by_langchain}
    nodes = {int(n.node_id): n.score for n in by_llama_index}
    for logits in (whole, scores, nodes):
        assert [logits[i] for i in sample] == pytest.approx(expected, abs=1e-4)


def test_a_logit_does_not_depend_on_what_was_scored_before(scorer: EmbeddedScorer) -> None:
    texts = _texts(40)
    pairs = scorer.encode("red fox", texts)
    first = scorer.forward(pairs)

    again = scorer.forward(pairs[::-1])[::-1]

    np.testing.assert_allclose(again, first, atol=1e-5)


def test_it_tells_an_answer_from_its_neighbours() -> None:
    documents = [
        "The weather is fine.",
        "Foxes live in dens that they dig themselves.",
        "A red fox eats rodents, birds and fruit.",
        "What do people say of foxes? That they are clever.",
    ]
    with Reranker() as reranker:
        ranking = reranker.rank("what do foxes eat?", documents)

    assert ranking[0].index == 2
    assert ranking[-1].index == 0
    assert ranking.scorer == "embedded"


def test_a_document_beyond_the_limit_is_read_to_the_limit_and_marked(
    scorer: EmbeddedScorer,
) -> None:
    head = "fox " * 510
    fits, longer = scorer.encode("red fox", [head, head + "river"])

    assert (fits.truncated, longer.truncated) == (False, True)
    assert fits.document == longer.document


def test_a_shorter_limit_is_part_of_the_identity() -> None:
    short = EmbeddedScorer.open(RerankConfig(max_length=16))

    assert short.encode("q", ["fox " * 20])[0].truncated
    assert short.identity != EmbeddedScorer.open(RerankConfig()).identity


def test_special_token_text_is_plain_text(scorer: EmbeddedScorer) -> None:
    (pair,) = scorer.encode("fox [SEP]", ["[CLS] river [SEP]"])

    assert not {scorer._start, scorer._end} & {*pair.query, *pair.document}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 9999}, "max_length: the embedded model reads"),
        ({"device": "cuda"}, "device: the embedded model runs on the CPU"),
    ],
)
def test_what_the_model_cannot_do_is_a_config_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EmbeddedScorer.open(RerankConfig(**settings))


def test_damaged_files_say_install_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "FOLDER", tmp_path)

    with pytest.raises(ModelLoadError, match="install again"):
        EmbeddedScorer.open(RerankConfig())


def test_a_runtime_failure_is_a_scoring_error(scorer: EmbeddedScorer) -> None:
    broken = EmbeddedScorer.open(RerankConfig())
    broken.close()

    with pytest.raises(ScoringError, match="onnxruntime failed"):
        broken.forward(scorer.encode("q", ["d"]))


@given(st.lists(st.integers(0, 9), max_size=300), st.integers(1, 60))
def test_windows_hold_every_token_once_and_are_even(ids: list[int], width: int) -> None:
    windows = split_windows(tuple(ids), width)

    assert [token for window in windows for token in window] == ids
    assert all(len(window) <= width for window in windows)
    assert len(windows) <= max(1, -(-len(ids) // width))


@given(st.lists(st.integers(1, 130), max_size=80), st.integers(1, 1000))
def test_passes_hold_every_window_once_within_the_budget(lengths: list[int], budget: int) -> None:
    passes = plan_passes(lengths, budget)

    assert sorted(index for rows in passes for index in rows) == list(range(len(lengths)))
    for rows in passes:
        assert len(rows) == 1 or len(rows) * max(lengths[i] for i in rows) <= budget


def test_token_matching_is_the_mean_of_the_best_cosines() -> None:
    def features(*tokens: tuple[float, float]) -> TextFeatures:
        states = np.array([(1, 0), *tokens, (1, 0)], dtype=np.float32)
        return TextFeatures.of_windows([states])

    query, document = features((1, 0), (0, 2)), features((3, 4), (5, 0))

    assert match_tokens(query, document) == pytest.approx((1.0 + 0.8) / 2, abs=1e-3)
    assert match_tokens(features(), document) == 0.0


@pytest.mark.slow
def test_a_program_that_ends_in_the_middle_of_a_pass_ends_well() -> None:
    program = """
import threading, time
from rerank_plugins import ClosedError, Reranker

reranker = Reranker()
reranker.warmup()
documents = [f"{i} foxes and birds " * 60 for i in range(600)]


def rank():
    try:
        reranker.rank("what do foxes eat?", documents)
    except ClosedError:
        pass


threading.Thread(target=rank, daemon=True).start()
time.sleep(0.5)
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=90, check=False
    )

    assert answer.returncode == 0, answer.stderr
