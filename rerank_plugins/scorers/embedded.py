"""The scorer of the model that ships with this package: English, no download, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np
from cachetools import LRUCache

from rerank_plugins.errors import (
    ConfigError,
    ModelLoadError,
    OutOfMemoryError,
    ScoringError,
    first_line,
    is_out_of_memory,
)
from rerank_plugins.models.embedded_model import (
    SPECIAL_TOKENS,
    EmbeddedSettings,
    TextFeatures,
    TokenIds,
    plan_passes,
    similarities,
    split_windows,
)
from rerank_plugins.options import EMBEDDED
from rerank_plugins.scorers.runtime import import_onnxruntime, session_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rerank_plugins.config import RerankConfig

FOLDER: Final = resources.files("rerank_plugins.models") / "embedded"

BATCH_TOKENS: Final = 4096
"""Tokens in one batch of pairs: of so many, some are of like length."""

PASS_TOKENS: Final = 1024
"""Tokens in one pass of the encoder: enough rows to fill a matrix product on a CPU, and few, since
short windows beside a long one are padded to its length."""

QUERY_FEATURES_BYTES: Final = 16_000_000
DOCUMENT_FEATURES_BYTES: Final = 256_000_000
"""A document of 512 tokens takes 0.4 MB, so a second query over hundreds of them is cheap."""


@dataclass(frozen=True, slots=True)
class EmbeddedPair:
    """A query and a document as token ids, without special tokens."""

    query: TokenIds
    document: TokenIds
    truncated: bool

    @property
    def tokens(self) -> int:
        """What the pair costs where nothing of it is known yet."""
        return len(self.query) + len(self.document) + 2 * SPECIAL_TOKENS


class EmbeddedScorer:
    """Scores pairs by a small encoder that reads query and document apart.

    Features of documents are kept, so that a second query over the same documents runs the encoder
    for the query alone. Activations are never quantised: a logit depends on its pair alone.
    """

    activation: Literal["sigmoid"] = "sigmoid"
    languages = frozenset({"en"})
    batch_tokens = BATCH_TOKENS
    padded = False

    def __init__(
        self,
        settings: EmbeddedSettings,
        tokenizer: Any,  # noqa: ANN401  tokenizers is imported late
        session: Any,  # noqa: ANN401  onnxruntime has no types
        *,
        max_length: int,
        version: str,
    ) -> None:
        self.name = EMBEDDED
        self.identity = f"{EMBEDDED}/{settings.name}/{version}/{max_length}"
        self._settings = settings
        self._max_length = max_length
        self._tokenizer = tokenizer
        self._start = tokenizer.token_to_id("[CLS]")
        self._end = tokenizer.token_to_id("[SEP]")
        self._session: Any = session
        self._queries = _feature_cache(QUERY_FEATURES_BYTES)
        self._documents = _feature_cache(DOCUMENT_FEATURES_BYTES)

    @classmethod
    def open(cls, config: RerankConfig) -> Self:
        """Load the packaged files.

        Raises:
            ConfigError: ``max_length`` is beyond the model, or ``device`` is not a CPU.
            MissingExtraError: onnxruntime is not installed.
            ModelLoadError: a packaged file is missing or damaged.
        """
        ort = import_onnxruntime("the embedded model")
        from tokenizers import Tokenizer

        if config.device not in ("auto", "cpu"):
            raise ConfigError(f"device: the embedded model runs on the CPU, got {config.device!r}")
        try:
            settings = EmbeddedSettings.read(FOLDER / "config.json")
            tokenizer = Tokenizer.from_str((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
            weights = (FOLDER / "encoder.onnx").read_bytes()
            options = session_options(ort)
            # Weights become float32 once, at loading, and not in every pass.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            session = ort.InferenceSession(
                weights, sess_options=options, providers=["CPUExecutionProvider"]
            )
        # Both libraries raise plain Exception.
        except Exception as exc:
            raise ModelLoadError(
                EMBEDDED, f"its packaged files cannot be read, install again: {first_line(exc)}"
            ) from exc
        max_length = config.max_length or settings.max_length
        if max_length > settings.max_length:
            raise ConfigError(
                f"max_length: the embedded model reads {settings.max_length} tokens of a document, "
                f"got {max_length}"
            )
        # Set once, before any thread encodes: "[SEP]" in a document is text like any other.
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        version = blake2b(weights + repr(settings).encode(), digest_size=8).hexdigest()
        return cls(settings, tokenizer, session, max_length=max_length, version=version)

    def encode(self, query: str, documents: Sequence[str]) -> list[EmbeddedPair]:
        """Tokenise the query once, and each document; what is too long is cut on the right."""
        encoded = self._tokenizer.encode_batch_fast([query, *documents], add_special_tokens=False)
        query_room = self._settings.max_query_length - SPECIAL_TOKENS
        room = self._max_length - SPECIAL_TOKENS
        query_ids = tuple(encoded[0].ids[:query_room])
        return [
            EmbeddedPair(query_ids, tuple(document.ids[:room]), len(document.ids) > room)
            for document in encoded[1:]
        ]

    def forward(self, pairs: Sequence[EmbeddedPair]) -> NDArray[np.float32]:
        """Return (pairs,) logits.

        Raises:
            ScoringError: onnxruntime failed; `OutOfMemoryError` where that was for want of memory.
        """
        return self._settings.logits(self.similarities(pairs))

    def similarities(self, pairs: Sequence[EmbeddedPair]) -> NDArray[np.float32]:
        """Return (pairs, 2): what the logits are a weighted sum of."""
        # A query is one window, whatever its length: it is compared as a whole.
        queries = self._features([pair.query for pair in pairs], self._queries, None)
        documents = self._features(
            [pair.document for pair in pairs],
            self._documents,
            self._settings.window_length - SPECIAL_TOKENS,
        )
        return np.array(
            [similarities(queries[pair.query], documents[pair.document]) for pair in pairs],
            dtype=np.float32,
        ).reshape(len(pairs), 2)

    def close(self) -> None:
        """Let go of the session and the kept features."""
        self._session = None
        self._queries.clear()
        self._documents.clear()

    def _features(
        self,
        texts: Sequence[TokenIds],
        kept: LRUCache[TokenIds, TextFeatures],
        width: int | None,
    ) -> dict[TokenIds, TextFeatures]:
        """Look up or compute the features of texts, each once; *width* is that of a window."""
        found: dict[TokenIds, TextFeatures] = {}
        missing: list[TokenIds] = []
        for ids in dict.fromkeys(texts):
            features = kept.get(ids)
            if features is None:
                missing.append(ids)
            else:
                found[ids] = features
        cut = [split_windows(ids, width or max(1, len(ids))) for ids in missing]
        states = iter(self._states([window for windows in cut for window in windows]))
        for ids, windows in zip(missing, cut, strict=True):
            features = TextFeatures.of_windows([next(states) for _ in windows])
            found[ids] = features
            if features.size_bytes <= kept.maxsize:
                kept[ids] = features
        return found

    def _states(self, windows: Sequence[TokenIds]) -> list[NDArray[np.float32]]:
        """Run the encoder over windows; returns (tokens, hidden) for each, in order."""
        states: list[NDArray[np.float32]] = [np.empty((0, 0), np.float32)] * len(windows)
        lengths = [len(window) + SPECIAL_TOKENS for window in windows]
        for rows in plan_passes(lengths, PASS_TOKENS):
            shape = len(rows), lengths[rows[0]]
            ids = np.zeros(shape, dtype=np.int64)
            mask = np.zeros(shape, dtype=np.float32)
            for place, row in enumerate(rows):
                ids[place, : lengths[row]] = (self._start, *windows[row], self._end)
                mask[place, : lengths[row]] = 1.0
            hidden = self._run(ids, mask)  # (rows, longest, hidden)
            for place, row in enumerate(rows):
                states[row] = hidden[place, : lengths[row]]
        return states

    def _run(self, ids: NDArray[np.int64], mask: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            (hidden,) = self._session.run(None, {"ids": ids, "mask": mask})
        # onnxruntime's exceptions share no base but Exception.
        except Exception as exc:
            failed = OutOfMemoryError if is_out_of_memory(exc) else ScoringError
            raise failed(
                f"onnxruntime failed on {ids.shape[0]} windows of up to {ids.shape[1]} tokens: "
                f"{first_line(exc)}"
            ) from exc
        states: NDArray[np.float32] = hidden
        return states


def _feature_cache(size_bytes: int) -> LRUCache[TokenIds, TextFeatures]:
    return LRUCache(size_bytes, getsizeof=lambda features: features.size_bytes)
