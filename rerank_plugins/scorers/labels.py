"""What comes out of a cross-encoder's head, read as logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rerank_plugins.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def to_logits(labels: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return (pairs,) logits of (pairs, 1 or 2) labels.

    One label is the logit. Of two, it is the second minus the first, so that its sigmoid is the
    softmax probability of the second.
    """
    # Half precision is widened before the difference is taken, not after.
    wide = labels.astype(np.float32)
    return wide[:, 0] if wide.shape[1] == 1 else wide[:, 1] - wide[:, 0]


def check_head(model: str, shape: Sequence[int]) -> None:
    """Raise `ModelLoadError` unless *shape* is that of a cross-encoder's answer to one pair."""
    if tuple(shape) not in {(1, 1), (1, 2)}:
        kind = "an embedding model" if len(shape) == 3 else "another kind of model"
        raise ModelLoadError(
            model,
            f"it is not a cross-encoder with one or two labels but {kind}: one pair gave an "
            f"output of shape {tuple(shape)}",
        )
