"""The torch scorer on CUDA: what half precision and company cost, and what a full device does.

A drift is a mean over the pairs: of these models, whose rounding is that of no trained one, single
pairs stray by ten times as much. A wrong window, position or neighbour costs the logits' spread.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rerank_plugins import Reranker
from rerank_plugins.config import RerankConfig
from rerank_plugins.errors import ConfigError, OutOfMemoryError
from rerank_plugins.options import Precision
from tests.tiny_models import WORDS

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from rerank_plugins.scorers.torch.hardware import choose_device, choose_precision  # noqa: E402
from rerank_plugins.scorers.torch.opening import open_torch_scorer  # noqa: E402
from tests.tiny_torch import ARCHITECTURES, PaddedForward, write_torch_model  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rerank_plugins.scorers.torch.scorer import TorchScorer

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

DRIFT = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.15}
"""Mean distance to float32 on the CPU: twice what transformers' padded forward in half has."""

COMPANY = {"fp32": 1e-4, "fp16": 0.03, "bf16": 0.2}
"""Largest distance of a logit alone to the same in company: kernels round by their shapes."""

SPREAD = 0.3
"""Least deviation of the logits, or the bounds above would hold for anything."""


def make_pairs(count: int, *, seed: int = 5) -> list[tuple[str, str]]:
    """Pairs of one word to beyond the models' limit of 64 tokens."""
    rng = random.Random(seed)
    return [
        (" ".join(rng.choices(WORDS, k=rng.randint(1, 9))), " ".join(rng.choices(WORDS, k=length)))
        for length in (rng.randint(1, 80) for _ in range(count))
    ]


def write(folder: Path, name: str, **config: object) -> Path:
    """Write a model with heads of 16, which the kernels of half precision take."""
    heads = "n_heads" if ARCHITECTURES[name].model_type == "distilbert" else "num_attention_heads"
    return write_torch_model(folder, name, **{heads: 2}, **config)


@pytest.fixture
def open_model(tmp_path: Path) -> Iterator[Callable[..., TorchScorer]]:
    """Open the model in tmp_path on the device; closed when the test ends."""
    opened = []

    def open_it(precision: str) -> TorchScorer:
        config = RerankConfig(
            model=str(tmp_path), backend="torch", device=DEVICE, precision=precision
        )
        opened.append(open_torch_scorer(config))
        return opened[-1]

    yield open_it
    for scorer in opened:
        scorer.close()


def logits(scorer: TorchScorer, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    encoded = [scorer.encode(query, [document])[0] for query, document in pairs]
    return np.asarray(scorer.forward(encoded), dtype=np.float32)


@pytest.mark.parametrize("precision", DRIFT)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_float32_on_the_cpu(
    name: str, precision: str, tmp_path: Path, open_model: Callable[..., TorchScorer]
) -> None:
    """Every architecture, ModernBERT's local attention and the padded ones included."""
    write(tmp_path, name)
    pairs = make_pairs(120)
    expected = PaddedForward(tmp_path).labels(pairs)[:, 0]

    found = logits(open_model(precision), pairs)

    assert expected.std() > SPREAD
    assert np.abs(found - expected).mean() < DRIFT[precision]


@pytest.mark.parametrize("precision", COMPANY)
@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "modernbert mean", "mpnet"])
def test_a_pair_has_one_logit_alone_and_in_company(
    name: str, precision: str, tmp_path: Path, open_model: Callable[..., TorchScorer]
) -> None:
    write(tmp_path, name)
    scorer = open_model(precision)
    pairs = make_pairs(500)

    together = logits(scorer, pairs)
    alone = np.array([logits(scorer, [pair])[0] for pair in pairs[:40]])
    backward = logits(scorer, pairs[::-1])[::-1]

    assert together.std() > SPREAD
    assert np.abs(together[:40] - alone).max() < COMPANY[precision]
    assert np.abs(together - backward).max() < COMPANY[precision]


def test_two_labels_give_their_difference(
    tmp_path: Path, open_model: Callable[..., TorchScorer]
) -> None:
    write(tmp_path, "xlm-roberta", labels=2)
    pairs = make_pairs(40)
    labels = PaddedForward(tmp_path).labels(pairs)

    found = logits(open_model("fp16"), pairs)

    assert np.abs(found - (labels[:, 1] - labels[:, 0])).mean() < 2 * DRIFT["fp16"]


def test_the_reranker_ranks_on_the_device_as_on_the_cpu(tmp_path: Path) -> None:
    write(tmp_path, "xlm-roberta")
    documents = [document for _, document in make_pairs(300)]
    query = "the cat on a river bank"

    settings = {"backend": "torch", "normalizer": None, "language_detector": None}
    with (
        Reranker(str(tmp_path), device=DEVICE, precision="fp16", **settings) as half,
        Reranker(str(tmp_path), device="cpu", precision="fp32", **settings) as full,
    ):
        found = {d.index: d.logit for d in half.rank(query, documents)}
        expected = {d.index: d.logit for d in full.rank(query, documents)}

    differences = [abs(found[i] - expected[i]) for i in range(len(documents))]
    assert np.std(list(expected.values())) > SPREAD
    assert np.mean(differences) < DRIFT["fp16"]


def test_auto_takes_the_device_and_half_precision() -> None:
    device = choose_device("auto")

    assert str(device).startswith("cuda")
    assert choose_precision(Precision.AUTO, device, torch.float32)[0] in {
        Precision.FP16,
        Precision.BF16,
    }


def test_a_device_that_is_not_there_is_named() -> None:
    missing = f"cuda:{torch.cuda.device_count()}"

    with pytest.raises(ConfigError, match=missing):
        choose_device(missing)


def test_out_of_memory_is_a_scoring_error_that_passes(
    tmp_path: Path, open_model: Callable[..., TorchScorer]
) -> None:
    """A pair so long that even alone it needs new memory, on a device that gives none."""
    long = 4096
    write(
        tmp_path,
        "xlm-roberta",
        max_position_embeddings=long + 2,
        intermediate_size=1024,
        tokenizer_config={"model_max_length": long},
    )
    scorer = open_model("fp16")
    pairs = scorer.encode("a query", ["the cat sat on the mat " * long] * 4)
    before = scorer.forward(scorer.encode("a query", ["the cat"]))
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.0)
    try:
        with pytest.raises(OutOfMemoryError, match="lower batch_tokens"):
            scorer.forward(pairs)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    after = scorer.forward(scorer.encode("a query", ["the cat"]))

    np.testing.assert_allclose(after, before, atol=COMPANY["fp16"])
    assert np.isfinite(scorer.forward(pairs)).all()
