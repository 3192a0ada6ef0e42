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
from tests.scorers.torch.conftest import open_exact
from tests.tiny_language_models import make_language_pairs, write_language_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOLERANCE = 1e-4
QUERY = "where is the cat"
TOLD = "find the cat on the mat"
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


def test_an_instruction_by_setting_or_by_call_is_that_of_the_card(
    language_folder: Callable[..., Path],
) -> None:
    """And each instruction has answers of its own in the cache."""
    folder = str(language_folder("qwen3"))
    pairs = [(QUERY, document) for document in DOCUMENTS[::6]]
    card = ModelCard(language_folder("qwen3"), "qwen3-reranker", max_length=512).logits(pairs)
    told = ModelCard(
        language_folder("qwen3"), "qwen3-reranker", instruction=TOLD, max_length=512
    ).logits(pairs)

    with (
        Reranker(folder, activation="logit", **EXACT) as plain,
        Reranker(folder, activation="logit", instruction=TOLD, **EXACT) as set_to,
    ):
        assert_close(plain.score(pairs), card)
        assert_close(plain.score(pairs, instruction=TOLD), told)
        assert_close(set_to.score(pairs), told)
        (stats,) = plain.stats().values()
        assert set_to.stats() == plain.stats()
        assert stats.pairs_scored == 2 * len(set(pairs))
        assert stats.cache_hits == len(pairs)
    assert np.abs(card - told).max() > 0.1


def test_both_doors_take_the_instruction(language_folder: Callable[..., Path]) -> None:
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    from rerank_plugins.langchain import RerankCompressor
    from rerank_plugins.llama_index import RerankPostprocessor

    folder, texts = language_folder("qwen3"), DOCUMENTS[:8]
    settings = {"model": str(folder), "instruction": TOLD, "activation": "logit", **EXACT}
    card = ModelCard(folder, "qwen3-reranker", instruction=TOLD, max_length=512)
    told = sorted(card.logits([(QUERY, text) for text in texts]), reverse=True)

    documents = RerankCompressor(top_n=None, **settings).compress_documents(
        [Document(page_content=text) for text in texts], QUERY
    )
    nodes = RerankPostprocessor(top_n=None, **settings).postprocess_nodes(
        [NodeWithScore(node=TextNode(text=text)) for text in texts], query_str=QUERY
    )

    assert_close([d.metadata["relevance_score"] for d in documents], np.array(told))
    assert_close([node.get_score() for node in nodes], np.array(told))


def test_the_command_line_takes_family_and_instruction(
    tmp_path: Path, language_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("the cat sat on the mat")
    flags = ["--backend", "torch", "--device", "cpu", "--precision", "fp32", "--json"]
    model = ["--model", str(language_folder("qwen3")), "--family", "mxbai-rerank-v2"]

    code = main(["rank", QUERY, str(tmp_path / "a.txt"), *model, *flags, "--instruction", TOLD])

    assert code == 0
    (found,) = json.loads(capsys.readouterr().out)["documents"]
    card = ModelCard(language_folder("qwen3"), "mxbai-rerank-v2", instruction=TOLD, max_length=400)
    assert_close(found["logit"], card.logits([(QUERY, "the cat sat on the mat")])[0])


@pytest.mark.parametrize("name", ["qwen3", "gemma"])
@pytest.mark.parametrize("score", ["max", "mean"])
def test_windows_give_what_truncation_gives_where_a_document_fits_and_all_of_it_where_not(
    name: str, score: str, language_folder: Callable[..., Path]
) -> None:
    folder = str(language_folder(name))
    short, long = "the dog sat", " ".join(["cat", "dog", "river", "bank"] * 60)
    settings = {"activation": "logit", "max_length": 200, **EXACT}
    windows = {"long_documents": "window", "window_overlap": 8, "window_score": score}

    with Reranker(folder, **settings) as cut, Reranker(folder, **windows, **settings) as whole:
        (fits,) = whole.rank(QUERY, [short])
        (beyond,) = whole.rank(QUERY, [long])
        assert fits.logit == cut.rank(QUERY, [short])[0].logit
        assert fits.window is None
        assert cut.rank(QUERY, [long])[0].truncated
        assert not beyond.truncated
        assert beyond.window is not None
        assert beyond.window.count > 1
        part = long[beyond.window.start : beyond.window.end].strip()
        (best,) = cut.rank(QUERY, [part])
        (start,) = cut.rank(QUERY, [long])

    if score == "mean":
        assert start.logit != beyond.logit
    elif name == "qwen3":  # to Gemma's tokenizer the window begins with a blank of its own
        assert_close(beyond.logit, np.array(best.logit))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_weights_of_fewer_bits_rank_nearly_alike(
    precision: str, tmp_path: Path, reranker: Reranker, expected: np.ndarray
) -> None:
    write_language_model(tmp_path, "qwen3")
    settings = {**EXACT, "precision": precision, "activation": "logit"}

    with Reranker(str(tmp_path), **settings) as rounded:
        found = np.array(rounded.score([(QUERY, document) for document in DOCUMENTS]))

    drift = np.abs(found - expected)
    assert 0 < drift.mean() < (0.1 if precision == "int8" else 1.0)


def test_a_length_that_is_the_familys_is_said_to_be_so(
    language_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = language_folder("qwen3")
    shorter = tmp_path / "shorter.json"
    shorter.write_text(json.dumps({"base": "qwen3-reranker", "max_length": 300}))
    scorers = [open_exact(folder), open_exact(folder, family=str(shorter))]

    lengths = [scorer.choices["max_length"] for scorer in scorers]
    for scorer in scorers:
        scorer.close()

    assert lengths == [
        ("512", "the model's own limit"),
        ("300", "usual for the family shorter"),
    ]
