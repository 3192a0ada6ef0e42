"""From the caller's texts to the texts that are scored: normalise → detect → hook."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from rerank_plugins.errors import PluginError
from rerank_plugins.requests import check_query, check_text
from rerank_plugins.text.language import DefaultLanguageDetector
from rerank_plugins.text.normalization import normalize_text

if TYPE_CHECKING:
    from rerank_plugins.config import RerankConfig
    from rerank_plugins.protocols import LanguageDetector, Normalizer, Role, TextHook


@dataclass(frozen=True, slots=True)
class CleanText:
    """A text as it is scored, and the language that was detected before any hook."""

    text: str
    language: str | None


class Cleaner:
    """Normalise, detect, and let the user's hook have the last word."""

    def __init__(
        self,
        normalizer: Normalizer | None,
        detector: LanguageDetector | None,
        hook: TextHook | None,
    ) -> None:
        self._normalizer = normalizer
        self._detector = detector
        self._hook = hook
        self.identity = f"{_identity(normalizer)}\n{_identity(hook)}"
        """Names what changes texts here: part of every cache key."""
        # By identity: a plugged-in object need not be hashable, and may compare as it likes.
        ours = set(map(id, (None, normalize_text, default_detector())))
        self.may_block = not ours.issuperset(map(id, (normalizer, detector, hook)))
        """Whether a function of the user's is among the three."""

    @classmethod
    def from_config(cls, config: RerankConfig) -> Cleaner:
        """Resolve the setting ``"default"`` to this package's own functions."""
        normalizer, detector = config.normalizer, config.language_detector
        return cls(
            normalize_text if normalizer == "default" else normalizer,
            default_detector() if detector == "default" else detector,
            config.text_hook,
        )

    def warm_up(self) -> None:
        """Make the language detector load what it loads at first use."""
        self._detect("warm up", "the warm-up text")

    def query(self, text: str, where: str = "query") -> tuple[CleanText, str | None]:
        """Clean a query; also returns the language of the text that is scored.

        The two languages differ where a hook translated the query.
        """
        plain = self._normalize(text, where)
        language = self._detect(plain, where)
        hooked = self._hooked(plain, language, "query", where)
        scored_language = language if hooked == plain else self._detect(hooked, where)
        # Cleaning may leave nothing of a text made of invisible characters.
        check_query(hooked, f"{where}, once cleaned,")
        return CleanText(hooked, language), scored_language

    def document(self, text: str, where: str) -> str:
        """Clean a document; its language is detected only for a hook to see."""
        plain = self._normalize(text, where)
        if self._hook is None or not plain.strip():
            return plain
        return self._hooked(plain, self._detect(plain, where), "document", where)

    def _normalize(self, text: str, where: str) -> str:
        if self._normalizer is None:
            return text
        try:
            cleaned = self._normalizer(text)
        except Exception as exc:
            raise _plugin_error("normalizer", where, exc) from exc
        return _check_returned(cleaned, "normalizer", where)

    def _detect(self, text: str, where: str) -> str | None:
        if self._detector is None:
            return None
        try:
            return self._detector(text)
        except Exception as exc:
            raise _plugin_error("language_detector", where, exc) from exc

    def _hooked(self, text: str, language: str | None, role: Role, where: str) -> str:
        if self._hook is None:
            return text
        try:
            replaced = self._hook(text, language, role)
        except Exception as exc:
            raise _plugin_error("text_hook", where, exc) from exc
        return _check_returned(replaced, "text_hook", where)


@cache
def default_detector() -> DefaultLanguageDetector:
    """Return the process's own detector: what it loads at first use takes a second and 80 MB."""
    detector = DefaultLanguageDetector()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=detector.after_fork)
    return detector


def _check_returned(text: object, plugin: str, where: str) -> str:
    """A plug-in's text must be as sound as a caller's."""
    return check_text(text, f"what {plugin} returned for {where}")


def _plugin_error(plugin: str, where: str, cause: Exception) -> PluginError:
    return PluginError(f"{plugin} failed on {where}: {type(cause).__name__}: {cause}")


def _identity(function: object) -> str:
    """Name a function; two that share a name still differ in the texts they return."""
    if function is None:
        return "none"
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', None)}.{getattr(named, '__qualname__', None)}"
