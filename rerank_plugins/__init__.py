"""rerank_plugins: the reranker for LangChain and LlamaIndex, one shared in-process engine."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rerank_plugins.config import RerankConfig
    from rerank_plugins.errors import (
        ClosedError,
        ConfigError,
        InputError,
        InputTypeError,
        MissingExtraError,
        ModelLoadError,
        OutOfMemoryError,
        PluginError,
        QueueFullError,
        RerankError,
        RerankTimeoutError,
        ScoringError,
    )
    from rerank_plugins.events import (
        BatchEvent,
        LoadEvent,
        Observer,
        RequestEvent,
        StageSeconds,
        SwitchEvent,
    )
    from rerank_plugins.options import Activation, Backend, Precision, Truncation
    from rerank_plugins.protocols import (
        DeadlineScorer,
        EncodedPair,
        InstructedScorer,
        LanguageDetector,
        Normalizer,
        Scorer,
        TextHook,
    )
    from rerank_plugins.reranker import Reranker
    from rerank_plugins.results import DroppedDocument, EngineStats, RankedDocument, Ranking, Window

__version__ = "0.1.0"

_HOMES = {
    "config": ("RerankConfig",),
    "errors": (
        "ClosedError",
        "ConfigError",
        "InputError",
        "InputTypeError",
        "MissingExtraError",
        "ModelLoadError",
        "OutOfMemoryError",
        "PluginError",
        "QueueFullError",
        "RerankError",
        "RerankTimeoutError",
        "ScoringError",
    ),
    "events": (
        "BatchEvent",
        "LoadEvent",
        "Observer",
        "RequestEvent",
        "StageSeconds",
        "SwitchEvent",
    ),
    "options": ("Activation", "Backend", "Precision", "Truncation"),
    "protocols": (
        "DeadlineScorer",
        "EncodedPair",
        "InstructedScorer",
        "LanguageDetector",
        "Normalizer",
        "Scorer",
        "TextHook",
    ),
    "reranker": ("Reranker",),
    "results": ("DroppedDocument", "EngineStats", "RankedDocument", "Ranking", "Window"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Activation",
    "Backend",
    "BatchEvent",
    "ClosedError",
    "ConfigError",
    "DeadlineScorer",
    "DroppedDocument",
    "EncodedPair",
    "EngineStats",
    "InputError",
    "InputTypeError",
    "InstructedScorer",
    "LanguageDetector",
    "LoadEvent",
    "MissingExtraError",
    "ModelLoadError",
    "Normalizer",
    "Observer",
    "OutOfMemoryError",
    "PluginError",
    "Precision",
    "QueueFullError",
    "RankedDocument",
    "Ranking",
    "RequestEvent",
    "RerankConfig",
    "RerankError",
    "RerankTimeoutError",
    "Reranker",
    "Scorer",
    "ScoringError",
    "StageSeconds",
    "SwitchEvent",
    "TextHook",
    "Truncation",
    "Window",
]


def __getattr__(name: str) -> object:
    # Imported at first use: whoever wants one error class should not pay for the engine.
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
