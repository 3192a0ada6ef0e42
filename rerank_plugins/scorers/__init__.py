"""Scorers: each turns pairs into logits; `open_scorer` picks one by the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_plugins.config import EMBEDDED, LEXICAL, Backend

if TYPE_CHECKING:
    from rerank_plugins.config import RerankConfig
    from rerank_plugins.protocols import AnyScorer


def open_scorer(config: RerankConfig) -> AnyScorer:
    """Open the scorer that *config* asks for; heavy packages are imported here, on purpose.

    Raises:
        ModelLoadError: the model is not there or cannot be read.
        MissingExtraError: the package that runs it is not installed.
    """
    if config.backend is Backend.LEXICAL or config.model == LEXICAL:
        from rerank_plugins.scorers.lexical import LexicalScorer

        return LexicalScorer.open()
    if config.model == EMBEDDED:
        from rerank_plugins.scorers.embedded import EmbeddedScorer

        return EmbeddedScorer.open(config)
    from rerank_plugins.scorers.onnx import OnnxScorer

    return OnnxScorer.open(config)
