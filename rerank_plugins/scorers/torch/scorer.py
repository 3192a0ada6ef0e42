"""Cross-encoders and language models in PyTorch, built by transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from rerank_plugins.errors import (
    ModelLoadError,
    OutOfMemoryError,
    ScoringError,
    first_line,
    is_out_of_memory,
)
from rerank_plugins.models.windows import single_pairs
from rerank_plugins.options import Precision
from rerank_plugins.scorers.labels import check_head, to_logits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from rerank_plugins.models.encoding import PairEncoder, TokenPair
    from rerank_plugins.models.files import ModelFiles
    from rerank_plugins.models.prompts import PromptEncoder
    from rerank_plugins.models.windows import WindowedPair
    from rerank_plugins.scorers.selection import Choice
    from rerank_plugins.scorers.torch.hardware import PrecisionChoice
    from rerank_plugins.scorers.torch.packed import PackedExecution
    from rerank_plugins.scorers.torch.padded import PaddedExecution

SAME_LOGIT: Final = {Precision.FP32: 1e-3, Precision.FP16: 2e-2, Precision.BF16: 1e-1}
"""How far a pair's logit may be from itself in other company, relative to its size: far more than
rounding, less than what padding does that is read."""


class TorchScorer:
    """Scores pairs with a PyTorch model; its head and the activation are in float32.

    Architectures with a row in `models.layouts` run packed, nothing padded; others run padded, as
    their own code does.
    """

    languages: frozenset[str] | None = None

    def __init__(
        self,
        files: ModelFiles,
        execution: PackedExecution | PaddedExecution,
        encoder: PairEncoder | PromptEncoder,
        *,
        activation: Literal["sigmoid", "logit"],
        device: torch.device,
        precision: PrecisionChoice,
        batch_tokens: int,
        choices: Mapping[str, Choice],
    ) -> None:
        self.name = files.name
        self.choices = choices
        self.activation = activation
        self.padded = execution.padded
        self.batch_tokens = batch_tokens
        self.identity = (
            f"torch {files.name}@{files.version} {_number_format(precision)} on {device.type}, "
            f"{encoder.identity}"
        )
        self._execution: PackedExecution | PaddedExecution | None = execution
        self._encoder: PairEncoder | PromptEncoder = encoder
        self._same_logit = SAME_LOGIT[precision.arithmetic]

    def encode(
        self, query: str, documents: Sequence[str]
    ) -> list[TokenPair | WindowedPair[TokenPair]]:
        """Encode one query with each document, in order; safe in many threads."""
        encoded: list[TokenPair | WindowedPair[TokenPair]] = [
            *self._encoder.encode(query, documents)
        ]
        return encoded

    def forward(self, pairs: Sequence[TokenPair]) -> NDArray[np.float32]:
        """Score one batch; returns (pairs,).

        Raises:
            ScoringError: torch failed; `OutOfMemoryError` where that was for want of memory.
        """
        return to_logits(self._run(pairs)) if pairs else np.empty(0, dtype=np.float32)

    def close(self) -> None:
        """Let go of the model, and give what it held back to the device."""
        import torch

        if self._execution is not None:
            self._execution.close()
            self._execution = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _run(self, pairs: Sequence[TokenPair]) -> NDArray[np.float32]:
        """Return (pairs, labels)."""
        import torch

        if self._execution is None:
            raise ScoringError(f"{self.name} was closed")
        try:
            with torch.inference_mode():
                labels: NDArray[np.float32] = self._execution.run(pairs).cpu().numpy()
        # A model may run code of its own, which may raise anything.
        except Exception as exc:
            full = is_out_of_memory(exc)
            failed = OutOfMemoryError if full else ScoringError
            advice = "; lower batch_tokens or max_length" if full else ""
            longest = max(pair.tokens for pair in pairs)
            raise failed(
                f"torch failed on {len(pairs)} pairs of up to {longest} tokens{advice}: "
                f"{type(exc).__name__}: {first_line(exc)}"
            ) from exc
        return labels

    def check(self) -> None:
        """Score two pairs, alone and together, to see that the model is a reranker.

        Raises:
            ModelLoadError: it is not, or a pair's logit depends on its batch.
        """
        trial = self.encode("a query", ["and its document", "a longer document " * 5])
        pairs = list(single_pairs(trial))
        try:
            alone = [self._run([pair]) for pair in pairs]
            check_head(self.name, alone[0].shape)
            together = self._run(pairs)
        except ScoringError as exc:
            raise ModelLoadError(self.name, f"a trial run failed: {exc}") from exc
        if not np.isfinite(together).all():
            raise ModelLoadError(
                self.name, 'its logits are not finite; try precision="fp32", or "bf16" on a GPU'
            )
        apart = np.abs(together - np.concatenate(alone)).max()
        if apart > self._same_logit * max(1.0, np.abs(together).max()):
            raise ModelLoadError(
                self.name,
                f"the logit of a pair depends on the pairs beside it (by {apart:.3g}): its code "
                "does not leave out the padding",
            )


class PromptScorer(TorchScorer):
    """Scores pairs with a language model that is asked about each, as its family asks."""

    _encoder: PromptEncoder

    @property
    def instruction(self) -> str | None:
        """What the model is told to look for where nobody says otherwise; blank for nothing.

        None where its family's prompt has no place for an instruction.
        """
        family = self._encoder.family
        return family.instruction if family.takes_instruction else None

    def encode(
        self, query: str, documents: Sequence[str], *, instruction: str | None = None
    ) -> list[TokenPair | WindowedPair[TokenPair]]:
        """Encode one query with each document, in order; safe in many threads."""
        return self._encoder.encode(query, documents, instruction=instruction)


def _number_format(choice: PrecisionChoice) -> str:
    weights, arithmetic = choice.precision, choice.arithmetic
    return weights if weights is arithmetic else f"{weights} in {arithmetic}"
