"""The models of a service by name: nothing that a request says is ever loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import ConfigError
from rerank_plugins.service.problems import Kind, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rerank_plugins.reranker import Reranker

PLACEHOLDERS: Final = frozenset({"", "default", "default/not-specified"})
"""What clients send for a model where they mean none: Infinity's own default among them."""


def public_name(model: str) -> str:
    """Return a model's name without folder or address: clients need not know where it lies."""
    if "://" in model:
        return "remote"
    path = Path(model)
    return path.resolve().name if path.is_absolute() or path.exists() else model


class Models:
    """Rerankers by the names that requests call them by; the first is the default.

    Where one model is served, any name means it, for clients send names of their own
    ("rerank-v3.5"); with *strict*, or with several, an unknown name is refused.

    Raises:
        ConfigError: there is none, or a name is blank.
    """

    def __init__(self, models: Mapping[str, Reranker], *, strict: bool = False) -> None:
        if not models:
            raise ConfigError("models: a service needs at least one")
        for name in models:
            if not name.strip():
                raise ConfigError(f"models: expected names, got {name!r}")
        self._models = dict(models)
        self._default = next(iter(self._models))
        self._any_name = len(self._models) == 1 and not strict

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    @property
    def rerankers(self) -> list[Reranker]:
        """Each reranker once."""
        return list(dict.fromkeys(self._models.values()))

    def find(self, name: str | None) -> tuple[str, Reranker]:
        """Return the reranker that a request means, with the name that it is served by.

        Raises:
            RefusedError: none is served by that name.
        """
        if name in self._models:
            return name, self._models[name]
        if name is None or name in PLACEHOLDERS or self._any_name:
            return self._default, self._models[self._default]
        raise RefusedError(
            Kind.UNKNOWN_MODEL,
            f"model: {name[:100]!r} is not served; there are {', '.join(self._models)}",
            param="model",
        )
