"""Cross-encoders in PyTorch, built by transformers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Literal, Self

import numpy as np

from rerank_plugins.config import Activation, Backend, Precision
from rerank_plugins.errors import ModelLoadError, ScoringError, first_line
from rerank_plugins.models.files import find_model
from rerank_plugins.models.settings import longest_pair, model_activation
from rerank_plugins.models.tokenizer import open_encoder
from rerank_plugins.models.weights import choose_torch
from rerank_plugins.scorers.labels import check_head, to_logits
from rerank_plugins.scorers.selection import Choice, as_set, backend_choice, installed_backends
from rerank_plugins.scorers.torch.hardware import (
    choose_device,
    choose_precision,
    import_torch,
    torch_dtype,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from rerank_plugins.config import RerankConfig
    from rerank_plugins.models.encoding import PairEncoder, TokenPair
    from rerank_plugins.models.files import ModelFiles
    from rerank_plugins.scorers.torch.hardware import PrecisionChoice
    from rerank_plugins.scorers.torch.packed import PackedExecution
    from rerank_plugins.scorers.torch.padded import PaddedExecution

BATCH_TOKENS: Final = {"cpu": 2048, "cuda": 32_768, "mps": 8192}
"""By kind of device: on a CPU, what still lies in its caches; on a GPU, enough to fill it."""


SAME_LOGIT: Final = {Precision.FP32: 1e-3, Precision.FP16: 2e-2, Precision.BF16: 1e-1}
"""How far a pair's logit may be from itself in other company, relative to its size: far more than
rounding, less than what padding does that is read."""

OUT_OF_MEMORY: Final = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED")
"""What runtimes write in errors that have no class of their own."""


class TorchScorer:
    """Scores pairs with a PyTorch cross-encoder; its head and the activation are in float32.

    Architectures with a row in `models.layouts` run packed, nothing padded; others run padded, as
    their own code does.
    """

    languages: frozenset[str] | None = None

    def __init__(
        self,
        files: ModelFiles,
        execution: PackedExecution | PaddedExecution,
        encoder: PairEncoder,
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
        self._encoder = encoder
        self._same_logit = SAME_LOGIT[precision.arithmetic]

    @classmethod
    def open(cls, config: RerankConfig, files: ModelFiles | None = None) -> Self:
        """Load a model's files, found here unless given, and score a pair to see that it ranks.

        Raises:
            ConfigError: device, precision or max_length is not what this machine or model offers.
            MissingExtraError: torch or transformers is not installed.
            ModelLoadError: the files are not there, broken, not those of a cross-encoder, or more
                than fits into memory.
        """
        import_torch('backend "torch"')
        from rerank_plugins.scorers.torch.loading import load_cross_encoder, saved_dtype
        from rerank_plugins.scorers.torch.room import batch_that_fits

        device = choose_device(config.device)
        if files is None:
            files = find_model(
                config.model,
                choose=partial(choose_torch, allow_pickle=config.allow_pickle),
                revision=config.revision,
                local_files_only=config.local_files_only,
                remote_code=config.trust_remote_code,
            )
        activation = model_activation(files, must_know=config.activation is Activation.AUTO)
        precision = choose_precision(config.precision, device, saved_dtype(files))
        batch_tokens = batch_that_fits(
            files,
            precision,
            device,
            longest=longest_pair(files, config.max_length),
            default=BATCH_TOKENS[device.type],
            asked=config.batch_tokens,
        )
        encoder, execution = load_cross_encoder(
            files,
            device,
            torch_dtype(precision.arithmetic),
            precision=precision.precision,
            open_encoder=partial(
                open_encoder, files, max_length=config.max_length, truncation=config.truncation
            ),
            trust_remote_code=config.trust_remote_code,
        )
        scorer = cls(
            files,
            execution,
            encoder,
            activation=activation,
            device=device,
            precision=precision,
            batch_tokens=batch_tokens,
            choices=_choices(config, device, precision, encoder.max_length),
        )
        try:
            scorer._check()
        except BaseException:
            scorer.close()
            raise
        return scorer

    def encode(self, query: str, documents: Sequence[str]) -> list[TokenPair]:
        """Encode one query with each document, in order; safe in many threads."""
        return self._encoder.encode(query, documents)

    def forward(self, pairs: Sequence[TokenPair]) -> NDArray[np.float32]:
        """Score one batch; returns (pairs,).

        Raises:
            ScoringError: torch failed, out of memory included.
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
            full = isinstance(exc, MemoryError) or _is_out_of_memory(exc)
            advice = "; lower batch_tokens or max_length" if full else ""
            longest = max(pair.tokens for pair in pairs)
            raise ScoringError(
                f"torch failed on {len(pairs)} pairs of up to {longest} tokens{advice}: "
                f"{type(exc).__name__}: {first_line(exc)}"
            ) from exc
        return labels

    def _check(self) -> None:
        """Score two pairs, alone and together, to see that the model is a reranker.

        Raises:
            ModelLoadError: it is not, or a pair's logit depends on its batch.
        """
        pairs = self.encode("a query", ["and its document", "a longer document " * 5])
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


def _number_format(choice: PrecisionChoice) -> str:
    weights, arithmetic = choice.precision, choice.arithmetic
    return weights if weights is arithmetic else f"{weights} in {arithmetic}"


def _choices(
    config: RerankConfig, device: torch.device, precision: PrecisionChoice, max_length: int
) -> dict[str, Choice]:
    """Return what the settings came to, and why, for whoever asks."""
    why = "torch finds no GPU" if device.type == "cpu" else f"torch finds {device.type}"
    return {
        "backend": backend_choice(config, Backend.TORCH, installed_backends()),
        "device": as_set(config, "device") or Choice(str(device), why),
        "precision": Choice(precision.precision, precision.why),
        "max_length": as_set(config, "max_length")
        or Choice(str(max_length), "the model's own limit"),
    }


def _is_out_of_memory(exc: Exception) -> bool:
    import torch

    text = str(exc)
    return isinstance(exc, torch.OutOfMemoryError) or any(sign in text for sign in OUT_OF_MEMORY)
