"""The arithmetic of the embedded model: windows of a text, and how well two texts match.

The encoder reads the query, and each window of a document, on its own. A pair's logit is a weighted
sum of the cosine of the query with the document's best window (what it is about) and the mean, over
the query's tokens, of the best cosine with any document token (what it says exactly; the late
interaction of ColBERT, https://arxiv.org/abs/2004.12832, without its training).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable

    from numpy.typing import NDArray

    FloatArray = NDArray[np.float32]

TokenIds = tuple[int, ...]

SPECIAL_TOKENS = 2
"""Every window has a start and an end: part of its mean, but matched with no token."""


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """What the model was made with; lengths in tokens, special tokens included."""

    name: str
    max_length: int
    max_query_length: int
    window_length: int
    window_weight: float
    token_weight: float
    bias: float

    def logits(self, found: FloatArray) -> FloatArray:
        """Weigh (pairs, 2) `similarities`; returns (pairs,)."""
        weights = np.array([self.window_weight, self.token_weight], dtype=np.float32)
        return found @ weights + np.float32(self.bias)

    @classmethod
    def read(cls, file: Traversable) -> Self:
        """Read the fields from a JSON object; other keys are for people."""
        found = json.loads(file.read_text(encoding="utf-8"))
        return cls(**{field.name: found[field.name] for field in fields(cls)})


@dataclass(frozen=True, slots=True, eq=False)
class TextFeatures:
    """What the encoder made of a text.

    ``windows`` is (windows, hidden) and ``tokens`` (tokens, hidden), both of unit length; tokens
    are kept in half precision, because a cache holds hundreds of texts.
    """

    windows: FloatArray
    tokens: NDArray[np.float16]

    @property
    def size_bytes(self) -> int:
        """Memory it takes."""
        return self.windows.nbytes + self.tokens.nbytes

    @classmethod
    def of_windows(cls, states: Sequence[FloatArray]) -> Self:
        """Join the encoder's states of a text's windows, each (tokens, hidden)."""
        means = np.stack([state.mean(axis=0) for state in states])
        tokens = np.concatenate([state[1:-1] for state in states])
        return cls(_unit(means), _unit(tokens).astype(np.float16))


def split_windows(ids: TokenIds, width: int) -> list[TokenIds]:
    """Cut ids into the fewest windows of at most *width*, as even as can be.

    No ids give one empty window.
    """
    count = max(1, -(-len(ids) // width))
    even = -(-len(ids) // count)
    return [ids[start * even : (start + 1) * even] for start in range(count)]


def plan_passes(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group indices, longest first, so that ``rows * longest`` stays within *max_tokens*.

    A window longer than that goes alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    passes = []
    start = 0
    while start < len(order):
        rows = max(1, max_tokens // lengths[order[start]])
        passes.append(order[start : start + rows])
        start += rows
    return passes


def similarities(query: TextFeatures, document: TextFeatures) -> tuple[float, float]:
    """Return what a pair's logit is made of: the best window's cosine, and the tokens' mean."""
    return float((document.windows @ query.windows[0]).max()), match_tokens(query, document)


def match_tokens(query: TextFeatures, document: TextFeatures) -> float:
    """Average the best cosine that each query token finds; 0 where either text has no tokens."""
    if not len(query.tokens) or not len(document.tokens):
        return 0.0
    # (query tokens, document tokens)
    cosines = query.tokens.astype(np.float32) @ document.tokens.astype(np.float32).T
    return float(cosines.max(axis=1).mean())


def _unit(vectors: FloatArray) -> FloatArray:
    norms: FloatArray = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / norms
