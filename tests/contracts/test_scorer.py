"""What every scorer promises, whatever runs inside it.

To put a scorer under this contract, add a line to SCORERS: its name, and a function that opens one
and may use a folder of its own.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugins.config import RerankConfig
from rerank_plugins.protocols import Scorer
from rerank_plugins.scorers.embedded import EmbeddedScorer
from rerank_plugins.scorers.lexical import LexicalScorer
from rerank_plugins.scorers.onnx.scorer import OnnxScorer
from rerank_plugins.testing import FakeScorer
from tests.loopback_rerankers import serving
from tests.tiny_models import write_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rerank_plugins.protocols import AnyScorer


def open_onnx(folder: Path) -> OnnxScorer:
    return OnnxScorer.open(RerankConfig(model=str(write_model(folder / "bert"))))


def open_onnx_roberta(folder: Path) -> OnnxScorer:
    model = str(write_model(folder / "xlm-roberta", "xlm-roberta"))
    return OnnxScorer.open(RerankConfig(model=model, truncation="only_second"))


def open_torch(name: str) -> Callable[[Path], AnyScorer]:
    def open_it(folder: Path) -> AnyScorer:
        from rerank_plugins.scorers.torch.opening import open_torch_scorer
        from tests.tiny_torch import write_torch_model

        model = str(write_torch_model(folder / "torch", name))
        return open_torch_scorer(RerankConfig(model=model, device="cpu", precision="fp32"))

    return open_it


def open_remote(_: Path) -> AnyScorer:
    from rerank_plugins.scorers.remote.opening import open_remote_scorer

    both = ExitStack()
    server = both.enter_context(serving("infinity"))
    scorer = open_remote_scorer(RerankConfig(model=server.url))
    both.callback(scorer.close)
    scorer.close = both.close  # type: ignore[method-assign]  # the server ends with its scorer
    return scorer


SCORERS: dict[str, Callable[[Path], AnyScorer]] = {
    "fake": lambda _: FakeScorer(),
    "lexical": lambda _: LexicalScorer.open(),
    "embedded": lambda _: EmbeddedScorer.open(RerankConfig()),
    "onnx": open_onnx,
    "onnx xlm-roberta": open_onnx_roberta,
    "remote": open_remote,
    "torch packed": open_torch("xlm-roberta"),
    "torch packed modernbert": open_torch("modernbert mean"),
    "torch padded": open_torch("deberta-v2"),
}

QUERY = "where does the river meet the sea"
DOCUMENTS = (
    "the river meets the sea in a wide delta",
    "a dog sat on the mat",
    "river",
    "the sea " * 20,
    "Der Fluss mündet ins Meer",
)
ODD_TEXTS = (
    "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "النهر يصب في البحر",
    "河流在哪里入海",
    "e\u0301 \u200b\u200d\u2060 \ufeff",
    "\x00\x07\x1b[31m",
    "\u202eright to left\u202c",
    "a" * 5000,
    "[CLS] [SEP] <s></s> <pad> <mask> <|endoftext|>",
    "\U0010ffff\ufffd",
    "𝔯𝔦𝔳𝔢𝔯 ﬁ Å İ ß",  # noqa: RUF001
    ".",
    " ",
    "",
)
TOLERANCE = 1e-5
"""Rounding differs with the shape of a batch; anything more is a pair that reads its neighbours."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that share such small models mostly wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=SCORERS, ids=str)
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AnyScorer]:
    scorer = SCORERS[request.param](tmp_path_factory.mktemp("contract"))
    yield scorer
    scorer.close()


@pytest.fixture
def scorer(opened: AnyScorer) -> AnyScorer:
    return opened


def logits(scorer: AnyScorer, query: str, documents: Sequence[str]) -> np.ndarray:
    found = np.asarray(scorer.forward(scorer.encode(query, documents)), dtype=np.float32)
    assert found.shape == (len(documents),)
    assert np.isfinite(found).all()
    return found


def test_it_is_a_scorer(scorer: AnyScorer) -> None:
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer.name, str)
    assert scorer.name
    assert isinstance(scorer.identity, str)
    assert scorer.identity
    assert scorer.activation in {"sigmoid", "logit"}
    assert scorer.batch_tokens >= 1
    assert isinstance(scorer.padded, bool)
    assert scorer.languages is None or all(
        len(code) == 2 and code.islower() for code in scorer.languages
    )


@pytest.mark.parametrize("name", SCORERS)
def test_identity_and_logits_are_the_same_after_reopening(name: str, tmp_path: Path) -> None:
    first, second = SCORERS[name](tmp_path), SCORERS[name](tmp_path)

    assert first.identity == second.identity
    np.testing.assert_array_equal(logits(first, QUERY, DOCUMENTS), logits(second, QUERY, DOCUMENTS))
    first.close()
    second.close()


@pytest.mark.parametrize("name", SCORERS)
def test_close_after_the_last_forward(name: str, tmp_path: Path) -> None:
    scorer = SCORERS[name](tmp_path)
    logits(scorer, QUERY, DOCUMENTS)
    scorer.close()


@pytest.mark.parametrize("name", SCORERS)
def test_close_without_a_forward(name: str, tmp_path: Path) -> None:
    SCORERS[name](tmp_path).close()


def test_no_documents_are_no_pairs(scorer: AnyScorer) -> None:
    assert len(scorer.encode(QUERY, [])) == 0


def test_order_is_kept(scorer: AnyScorer) -> None:
    forward = logits(scorer, QUERY, DOCUMENTS)
    backward = logits(scorer, QUERY, DOCUMENTS[::-1])

    np.testing.assert_allclose(forward, backward[::-1], rtol=0, atol=TOLERANCE)


def test_documents_differ(scorer: AnyScorer) -> None:
    """A scorer that answers the same for all would pass the rest."""
    first, second, *_ = logits(scorer, QUERY, DOCUMENTS)

    assert abs(first - second) > 100 * TOLERANCE


def test_the_query_counts(scorer: AnyScorer) -> None:
    first = logits(scorer, QUERY, DOCUMENTS[:2])
    second = logits(scorer, "a dog on a mat", DOCUMENTS[:2])

    assert np.abs(first - second).max() > 100 * TOLERANCE


def test_duplicates_get_the_same_logit(scorer: AnyScorer) -> None:
    found = logits(scorer, QUERY, [DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[0]])

    assert abs(found[0] - found[2]) <= TOLERANCE


def test_encoding_reads_and_changes_nothing(scorer: AnyScorer) -> None:
    documents = list(DOCUMENTS)
    first = [pair.tokens for pair in scorer.encode(QUERY, documents)]

    assert documents == list(DOCUMENTS)
    assert [pair.tokens for pair in scorer.encode(QUERY, tuple(documents))] == first


@pytest.mark.parametrize("text", [*ODD_TEXTS, *DOCUMENTS])
def test_every_text_has_tokens_and_a_logit(text: str, scorer: AnyScorer) -> None:
    pairs = [*scorer.encode(QUERY, [text]), *scorer.encode(text, DOCUMENTS[:1])]

    assert all(pair.tokens >= 1 for pair in pairs)
    assert all(isinstance(pair.truncated, bool) for pair in pairs)
    logits(scorer, QUERY, [text])
    logits(scorer, text, DOCUMENTS)


def test_a_short_document_is_whole(scorer: AnyScorer) -> None:
    (pair,) = scorer.encode("river", ["the sea"])

    assert not pair.truncated


def test_a_very_long_document_is_scored(scorer: AnyScorer) -> None:
    """It may be cut, and says so; it costs no more than what is read of it."""
    words = 50_000
    (pair,) = scorer.encode(QUERY, ["the river and the sea " * (words // 5)])

    assert pair.truncated == (pair.tokens < words)
    assert np.isfinite(np.asarray(scorer.forward([pair]))).all()


def test_a_very_long_query_is_scored(scorer: AnyScorer) -> None:
    logits(scorer, "where is the river " * 5_000, DOCUMENTS)


texts = st.one_of(
    st.sampled_from([*DOCUMENTS, *ODD_TEXTS]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
)


@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=8), seed=st.integers(0, 1000))
def test_a_logit_depends_on_its_pair_alone(
    opened: AnyScorer, pairs: list[tuple[str, str]], seed: int
) -> None:
    """Alone, in company of other queries, and in another order."""
    encoded = [opened.encode(query, [document])[0] for query, document in pairs]
    alone = np.array([opened.forward([pair])[0] for pair in encoded])
    shuffled = random.Random(seed).sample(range(len(pairs)), k=len(pairs))

    together = np.asarray(opened.forward(encoded))
    in_disorder = np.asarray(opened.forward([encoded[i] for i in shuffled]))

    np.testing.assert_allclose(together, alone, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(in_disorder, alone[shuffled], rtol=TOLERANCE, atol=TOLERANCE)


def test_threads_encode_at_once(scorer: AnyScorer) -> None:
    """As requests do, while one thread runs the model."""
    queries = [f"{QUERY} {i}" for i in range(16)]
    expected = [logits(scorer, query, DOCUMENTS) for query in queries]
    together = threading.Barrier(4)

    def work(start: int) -> list[Sequence[object]]:
        together.wait()
        return [scorer.encode(query, DOCUMENTS) for query in queries[start::4]]

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(work, range(4)))

    for i, query in enumerate(queries):
        found = np.asarray(scorer.forward(answers[i % 4][i // 4]), dtype=np.float32)
        np.testing.assert_allclose(found, expected[i], rtol=0, atol=TOLERANCE, err_msg=query)
