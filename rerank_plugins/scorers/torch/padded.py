"""Padded execution: how an architecture runs that does not take its attention from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rerank_plugins.models.encoding import pad
from rerank_plugins.scorers.torch.building import BUILDING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_plugins.models.encoding import TokenPair


class PaddedExecution:
    """Runs any model as its own code does, short rows filled on the right."""

    padded = True

    def __init__(
        self, model: torch.nn.Module, device: torch.device, *, pad_id: int, segments: bool
    ) -> None:
        self._model: Any = model
        self._device = device
        self._pad_id = pad_id
        self._names = ["input_ids", "attention_mask", *(["token_type_ids"] if segments else [])]

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def run(self, pairs: Sequence[TokenPair]) -> torch.Tensor:
        """Return (pairs, labels) float32 on the model's device."""
        batch = pad(pairs, self._pad_id)
        inputs = {name: torch.from_numpy(batch[name]).to(self._device) for name in self._names}
        labels: torch.Tensor = BUILDING.undisturbed(lambda: self._model(**inputs).logits)
        return labels.float()
