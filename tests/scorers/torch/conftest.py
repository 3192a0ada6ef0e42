"""Tiny models and what transformers says of them, made once a session."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rerank_plugins.config import RerankConfig
from rerank_plugins.scorers.torch.opening import open_torch_scorer
from tests.tiny_language_models import write_language_model
from tests.tiny_torch import PaddedForward, make_pairs, write_torch_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from rerank_plugins.models.encoding import TokenPair
    from rerank_plugins.scorers.torch.scorer import TorchScorer

MOST_PAIRS = 500


@dataclass(frozen=True)
class Model:
    """A tiny model as the engine scores it, and as transformers does."""

    folder: Path
    pairs: Sequence[tuple[str, str]]

    @cached_property
    def scorer(self) -> TorchScorer:
        return open_exact(self.folder)

    @cached_property
    def reference(self) -> PaddedForward:
        return PaddedForward(self.folder)

    @cached_property
    def encoded(self) -> list[TokenPair]:
        """The pairs as the scorer encodes them, in order."""
        return [self.scorer.encode(query, [document])[0] for query, document in self.pairs]

    @cached_property
    def expected(self) -> np.ndarray:
        """The logits of the padded forward, (pairs,)."""
        return self.reference.logits(self.pairs)

    def found(self, indices: Sequence[int]) -> np.ndarray:
        """Return the scorer's logits of these pairs in one batch, (indices,)."""
        return self.scorer.forward([self.encoded[i] for i in indices])


def open_exact(folder: Path, **settings: Any) -> TorchScorer:
    exact = {"backend": "torch", "device": "cpu", "precision": "fp32"}
    return open_torch_scorer(RerankConfig(**{"model": str(folder)} | exact | settings))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are too small to share, and rounding is the same on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Model]]:
    """Give the model of an architecture; the same arguments give the same one."""
    made: dict[tuple[str, int], Model] = {}

    def get(name: str, labels: int = 1) -> Model:
        if (name, labels) not in made:
            folder = tmp_path_factory.mktemp("tiny")
            write_torch_model(folder, name, labels=labels)
            # Two labels differ in the last step alone.
            pairs = make_pairs(MOST_PAIRS if labels == 1 else 80)
            made[name, labels] = Model(folder, pairs)
        return made[name, labels]

    yield get
    for model in made.values():
        if "scorer" in vars(model):
            model.scorer.close()


@pytest.fixture(scope="session")
def language_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give the folder of a language model; the same arguments give the same one, to be read."""

    @cache
    def get(name: str, labels: int = 1) -> Path:
        return write_language_model(tmp_path_factory.mktemp("language"), name, labels=labels)

    return get


@pytest.fixture
def open_torch(tmp_path: Path) -> Iterator[Callable[..., TorchScorer]]:
    """Open the model in tmp_path with given settings; closed when the test ends."""
    opened = []

    def open_it(**settings: Any) -> TorchScorer:
        opened.append(open_exact(tmp_path, **settings))
        return opened[-1]

    yield open_it
    for scorer in opened:
        scorer.close()
