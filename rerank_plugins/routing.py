"""Who answers a query, and what it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_plugins.errors import ConfigError, InputError
from rerank_plugins.options import LEXICAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from rerank_plugins.config import RerankConfig
    from rerank_plugins.engine import Engine
    from rerank_plugins.registry import Leases


class Router:
    """Picks among the engines that a reranker holds, leasing more as they are needed."""

    def __init__(self, config: RerankConfig, leases: Leases) -> None:
        self._config = config
        self._leases = leases

    def engine(self, language: str | None, admit: Callable[[Engine], None]) -> Engine:
        """Return the engine that answers queries in *language*, None where that is unknown.

        Each engine that is to be asked goes through *admit* before it is opened.
        """
        self._leases.check_open()
        primary = self._leases.primary
        routed = None if language is None else self._config.language_models.get(language)
        if routed is not None:
            engine = self._leases.lease(routed)
            admit(engine)
            return engine
        admit(primary)
        if language is None or knows(primary, language):
            return primary
        engine = self._leases.lease(LEXICAL)
        admit(engine)
        return engine

    def instruction(self, asked: str | None, admit: Callable[[Engine], None]) -> str | None:
        """Return what the scorer is told: what a call *asked*, or else the setting.

        The configured model has to take it, and goes through *admit* to say so; one that a query is
        routed to need not.

        Raises:
            InputError: it does not, and the call brought the instruction.
            ConfigError: it does not, and the setting holds it.
        """
        told = self._config.instruction if asked is None else asked
        if told is None:
            return None
        self._leases.check_open()
        primary = self._leases.primary
        admit(primary)
        if not primary.takes_instruction():
            error = ConfigError if asked is None else InputError
            raise error(
                f"instruction: {primary.scorer().name!r} takes none, as language models do; leave "
                "it out, or take a model such as Qwen/Qwen3-Reranker-0.6B"
            )
        return told


def knows(engine: Engine, language: str) -> bool:
    """Whether the scorer of *engine* answers queries in *language*; it is opened to say so."""
    known = engine.scorer().languages
    return known is None or language in known
