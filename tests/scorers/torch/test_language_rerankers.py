"""A language model through every door: the card's logits as scores, each pair answered once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rerank_plugins import Reranker
from rerank_plugins.cli import main
from rerank_plugins.text.normalization import normalize_text
from tests.language_cards import ModelCard
from tests.tiny_language_models import make_language_pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOLERANCE = 1e-4
QUERY = "where is the cat"
DOCUMENTS = [text for _, text in make_language_pairs(90, longest=90) if text.strip()]
EXACT = {"backend": "torch", "device": "cpu", "precision": "fp32", "normalizer": None}
FAMILIES = {
    "qwen3": "qwen3-reranker",
    "qwen2": "mxbai-rerank-v2",
    "gemma": "bge-reranker-gemma",
    "qwen3 classifier": "qwen3-reranker",
}


@pytest.fixture(scope="module")
def expected(language_folder: Callable[..., Path]) -> np.ndarray:
    """The card's logits of DOCUMENTS, (documents,)."""
    card = ModelCard(language_folder("qwen3"), "qwen3-reranker", max_length=512)
    return card.logits([(QUERY, document) for document in DOCUMENTS])


@pytest.fixture(scope="module")
def reranker(language_folder: Callable[..., Path]) -> Iterator[Reranker]:
    """One that splits a request over many batches."""
    folder = str(language_folder("qwen3"))
    with Reranker(folder, activation="logit", batch_tokens=900, **EXACT) as opened:
        yield opened


def assert_close(found: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "family"), FAMILIES.items())
def test_the_family_is_that_of_the_model_type(
    name: str, family: str, language_folder: Callable[..., Path]
) -> None:
    """And the score is the logit where its family has one answer, the sigmoid where it has two."""
    folder = language_folder(name)
    pairs = [(QUERY, document) for document in DOCUMENTS[::4]]

    with Reranker(str(folder), **EXACT) as reranker:
        scores = reranker.score(pairs)

    logits = ModelCard(folder, family, max_length=300).logits(pairs)
    assert_close(scores, logits if name == "gemma" else 1 / (1 + np.exp(-logits)))


def test_a_request_over_many_batches_has_the_logits_of_the_card(
    reranker: Reranker, expected: np.ndarray
) -> None:
    reranker.clear_cache()

    ranking = reranker.rank(QUERY, DOCUMENTS)

    logits = np.empty(len(DOCUMENTS))
    for document in ranking:
        logits[document.index] = document.logit
    assert_close(logits, expected)
    assert [d.logit for d in ranking] == sorted((d.logit for d in ranking), reverse=True)


async def test_a_pair_is_answered_once(reranker: Reranker, expected: np.ndarray) -> None:
    reranker.clear_cache()
    (before,) = reranker.stats().values()

    first = await reranker.arank(QUERY, DOCUMENTS)
    again = await reranker.arank(QUERY, DOCUMENTS[::-1])

    (after,) = reranker.stats().values()
    assert after.pairs_scored - before.pairs_scored == len(set(DOCUMENTS))
    assert all(document.cached for document in again)
    assert sorted(d.logit for d in again) == sorted(d.logit for d in first)


def test_both_doors_give_the_logits_of_the_card(reranker: Reranker, expected: np.ndarray) -> None:
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    from rerank_plugins.langchain import RerankCompressor
    from rerank_plugins.llama_index import RerankPostprocessor

    documents = [Document(page_content=text, id=str(i)) for i, text in enumerate(DOCUMENTS)]
    nodes = [
        NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(DOCUMENTS)
    ]

    reranker.clear_cache()
    compressed = RerankCompressor(reranker=reranker, top_n=None).compress_documents(
        documents, QUERY
    )
    reranker.clear_cache()
    postprocessed = RerankPostprocessor(reranker=reranker, top_n=None).postprocess_nodes(
        nodes, query_str=QUERY
    )

    of_documents = {str(d.id): d.metadata["relevance_score"] for d in compressed}
    of_nodes = {node.node_id: node.get_score() for node in postprocessed}
    numbers = [str(i) for i in range(len(DOCUMENTS))]
    assert_close([of_documents[number] for number in numbers], expected)
    assert_close([of_nodes[number] for number in numbers], expected)


def test_the_command_line_gives_the_logits_of_the_card(
    tmp_path: Path,
    language_folder: Callable[..., Path],
    expected: np.ndarray,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of texts that the normalizer leaves as they are: no flag switches it off."""
    clean = [i for i, text in enumerate(DOCUMENTS) if normalize_text(text) == text]
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(f"{json.dumps(DOCUMENTS[i])}\n" for i in clean))
    flags = ["--backend", "torch", "--device", "cpu", "--precision", "fp32"]
    model = ["--model", str(language_folder("qwen3"))]

    code = main(["rank", QUERY, str(file), "--json", "--top-n", "all", *model, *flags])

    assert code == 0
    ranked = json.loads(capsys.readouterr().out)["documents"]
    assert len(ranked) == len(clean) > 50
    assert_close([d["logit"] for d in ranked], expected[[clean[d["index"]] for d in ranked]])
