"""Pairs scored by a cross-encoder's ONNX graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from rerank_plugins.errors import (
    ConfigError,
    ModelLoadError,
    OutOfMemoryError,
    ScoringError,
    first_line,
    is_out_of_memory,
)
from rerank_plugins.models.choosing import NONE
from rerank_plugins.models.encoding import pad
from rerank_plugins.models.families import family_of
from rerank_plugins.models.files import find_model
from rerank_plugins.models.settings import model_activation, pad_id
from rerank_plugins.models.tokenizer import open_encoder
from rerank_plugins.models.windows import single_pairs
from rerank_plugins.options import Activation
from rerank_plugins.scorers.labels import check_head, to_logits
from rerank_plugins.scorers.onnx.choices import choose_device, files_here, settled_choices
from rerank_plugins.scorers.onnx.session import CUDA, Session
from rerank_plugins.scorers.runtime import import_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from rerank_plugins.config import RerankConfig
    from rerank_plugins.models.encoding import PairEncoder, TokenPair
    from rerank_plugins.models.files import ModelFiles
    from rerank_plugins.models.windows import WindowedPair
    from rerank_plugins.scorers.selection import Choice

CPU_BATCH_TOKENS = 2048
"""Enough rows to fill a matrix product; more only widens the padding and leaves the caches."""

CUDA_BATCH_TOKENS = 16_384
"""A GPU is filled by far more rows; the same budget as text-embeddings-inference."""


class OnnxScorer:
    """Scores pairs with a cross-encoder exported to ONNX."""

    padded = True
    languages: frozenset[str] | None = None

    def __init__(
        self,
        files: ModelFiles,
        session: Session,
        encoder: PairEncoder,
        *,
        activation: Literal["sigmoid", "logit"],
        pad_id: int,
        choices: Mapping[str, Choice],
    ) -> None:
        self.name = files.name
        self.choices = choices
        self.activation = activation
        self.batch_tokens = CUDA_BATCH_TOKENS if session.provider == CUDA else CPU_BATCH_TOKENS
        self.identity = (
            f"onnx {files.name}@{files.version} {files.weights[0].name} on {session.provider}, "
            f"{encoder.identity}"
        )
        self._session: Session | None = session
        self._encoder = encoder
        self.pad_id = pad_id

    @classmethod
    def open(cls, config: RerankConfig, files: ModelFiles | None = None) -> Self:
        """Load a model's files, found here unless given, and score a pair to see that it ranks.

        Raises:
            ConfigError: device or max_length is not what this machine or model offers, or the
                setting ``family`` asks for a language model.
            MissingExtraError: onnxruntime is not installed.
            ModelLoadError: the files are not there, broken, or not those of a cross-encoder.
        """
        ort = import_onnxruntime('backend "onnx"')
        device = choose_device(config.device, ort.get_available_providers())
        if files is None:
            files = find_model(
                config.model,
                choose=files_here(config),
                revision=config.revision,
                local_files_only=config.local_files_only,
            )
        _refuse_language_models(config, files)
        activation = model_activation(files, must_know=config.activation is Activation.AUTO)
        session = Session(ort, files, device, must_start=config.device != "auto")
        encoder = open_encoder(files, config, segments="token_type_ids" in session.inputs)
        padding = pad_id(files, encoder.token_to_id)
        choices = settled_choices(config, files, session, encoder.max_length)
        scorer = cls(
            files, session, encoder, activation=activation, pad_id=padding, choices=choices
        )
        scorer._check_head()
        return scorer

    def encode(
        self, query: str, documents: Sequence[str]
    ) -> list[TokenPair | WindowedPair[TokenPair]]:
        """Encode one query with each document, in order; safe in many threads."""
        return self._encoder.encode(query, documents)

    def forward(self, pairs: Sequence[TokenPair]) -> NDArray[np.float32]:
        """Score one batch, padded to its longest pair; returns (pairs,).

        Raises:
            ScoringError: onnxruntime failed; `OutOfMemoryError` where that was for want of memory.
        """
        if not pairs:
            return np.empty(0, dtype=np.float32)
        return to_logits(self._run(pairs))

    def close(self) -> None:
        """Let go of the session and its memory."""
        self._session = None

    def _run(self, pairs: Sequence[TokenPair]) -> NDArray[np.floating]:
        if self._session is None:
            raise ScoringError(f"{self.name} was closed")
        batch = pad(pairs, self.pad_id)
        try:
            return self._session.run(batch)
        # onnxruntime's exceptions share no base but Exception.
        except Exception as exc:
            rows, longest = batch["input_ids"].shape
            full = is_out_of_memory(exc)
            failed = OutOfMemoryError if full else ScoringError
            advice = "; lower batch_tokens or max_length" if full else ""
            raise failed(
                f"onnxruntime failed on {rows} pairs of up to {longest} tokens{advice}: "
                f"{first_line(exc)}"
            ) from exc

    def _check_head(self) -> None:
        try:
            pair, *_ = single_pairs(self.encode("a query", ["and its document"]))
            labels = self._run([pair])
        except ScoringError as exc:
            raise ModelLoadError(self.name, f"a trial run failed: {exc}") from exc
        check_head(self.name, labels.shape)


def _refuse_language_models(config: RerankConfig, files: ModelFiles) -> None:
    """Raise where the model is to be asked, or was trained to be asked, as a language model is."""
    if config.family == NONE:
        return
    if config.family != "auto":
        raise ConfigError(
            f"family: {files.name!r} runs in onnxruntime, and language models run in PyTorch only; "
            f'leave it out, or set backend="torch" where there are PyTorch weights, '
            f"got {config.family!r}"
        )
    kind = files.config.get("model_type")
    if (family := family_of(kind)) is not None:
        raise ModelLoadError(
            files.name,
            f"language models run in PyTorch, and it is one (model_type {kind}, of the family "
            f'{family.name}); set backend="torch", or name its PyTorch weights',
        )
