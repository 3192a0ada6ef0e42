"""Scores written down once: of tiny models of every architecture, and of published ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rerank_plugins import Reranker
from rerank_plugins.errors import ModelLoadError
from rerank_plugins.models.layouts import LAYOUTS
from tests.scorers.torch.conftest import open_exact
from tests.tiny_language_models import LANGUAGE_MODELS
from tests.tiny_torch import ARCHITECTURES

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_the_golden_ones(name: str, model_of: Callable[..., Any]) -> None:
    """Neither a new transformers nor a new torch may change what a checkpoint says."""
    scorer = model_of(name).scorer
    pairs = [scorer.encode(query, [document])[0] for query, document in GOLDEN["pairs"]]

    found = scorer.forward(pairs)

    np.testing.assert_allclose(found, GOLDEN["logits"][name], rtol=0, atol=2e-4)
    assert np.ptp(found) >= 0.5


@pytest.mark.parametrize("name", GOLDEN["language"])
def test_language_models_have_their_golden_logits(
    name: str, language_folder: Callable[..., Path]
) -> None:
    scorer = open_exact(language_folder(name), family="qwen3-reranker")
    pairs = [scorer.encode(query, [document])[0] for query, document in GOLDEN["pairs"]]

    found = scorer.forward(pairs)
    scorer.close()

    np.testing.assert_allclose(found, GOLDEN["language"][name], rtol=0, atol=2e-4)
    assert np.ptp(found) >= 0.5


def test_every_layout_has_a_golden_score() -> None:
    golden = {ARCHITECTURES[name].model_type for name in GOLDEN["logits"]}
    golden |= {LANGUAGE_MODELS[name].model_type for name in GOLDEN["language"]}

    assert {kind for layout in LAYOUTS for kind in layout.model_types} <= golden


@dataclass(frozen=True)
class Published:
    """Scores that somebody printed; ``tolerance`` is what their number format leaves."""

    model: str
    source: str
    pairs: tuple[tuple[str, str], ...]
    scores: tuple[float, ...]
    tolerance: float
    activation: str = "logit"


RED_PLANET = tuple(
    ("Which planet is known as the Red Planet?", document)
    for document in (
        "Venus is often called Earth's twin because of its similar size and proximity.",
        "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
        "Jupiter, the largest planet in our solar system, has a prominent red spot.",
        "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
    )
)
RED_PLANET_LOGITS = (-3.1092977, 7.1203899, -0.3787546, 3.5416374)


PUBLISHED = (
    Published(
        "BAAI/bge-reranker-v2-m3",
        "model card, FlagReranker with use_fp16=True",
        (
            ("query", "passage"),
            ("what is panda?", "hi"),
            (
                "what is panda?",
                (
                    "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or "
                    "simply panda, is a bear species endemic to China."
                ),
            ),
        ),
        (-5.65234375, -8.1875, 5.26171875),
        0.05,
    ),
    Published(
        "cross-encoder/ms-marco-MiniLM-L6-v2",
        "model card, sentence-transformers in float32",
        (
            (
                "How many people live in Berlin?",
                (
                    "Berlin had a population of 3,520,031 registered inhabitants in an area of "
                    "891.82 square kilometers."
                ),
            ),
            (
                "How many people live in Berlin?",
                "New York City is famous for the Metropolitan Museum of Art.",
            ),
        ),
        (8.607138, -4.320078),
        1e-3,
    ),
    Published(
        "Qwen/Qwen3-Reranker-0.6B",
        "tests of sentence-transformers, in float32",
        RED_PLANET,
        RED_PLANET_LOGITS,
        2e-3,
    ),
    Published(
        "tomaarsen/Qwen3-Reranker-0.6B-seq-cls",
        "tests of sentence-transformers, in float32",
        RED_PLANET,
        RED_PLANET_LOGITS,
        2e-3,
    ),
    Published(
        "Qwen/Qwen3-Reranker-0.6B",
        "its README, in float32",
        (
            ("What is the capital of China?", "The capital of China is Beijing."),
            (
                "Explain gravity",
                (
                    "Gravity is a force that attracts two bodies towards each other. It gives "
                    "weight to physical objects and is responsible for the movement of planets "
                    "around the sun."
                ),
            ),
        ),
        (0.9995, 0.9972),
        1e-4,
        "sigmoid",
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.model)
def test_scores_are_those_that_were_printed(published: Published) -> None:
    settings: dict[str, Any] = {
        "precision": "fp32",
        "activation": published.activation,
        "normalizer": None,
    }
    reranker = Reranker(
        published.model, backend="torch", device="cpu", local_files_only=True, **settings
    )
    with reranker:
        try:
            reranker.warmup()
        except ModelLoadError as exc:
            pytest.skip(f"the real weights are not here: {exc}")
        found = reranker.score(published.pairs)

    np.testing.assert_allclose(found, published.scores, rtol=0, atol=published.tolerance)
