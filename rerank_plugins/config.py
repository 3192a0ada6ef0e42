"""Settings: one frozen value, the same names at every door."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from pydantic import ConfigDict, ValidationError

from rerank_plugins.errors import ConfigError
from rerank_plugins.events import Observer
from rerank_plugins.options import (
    Activation,
    Backend,
    Duplicates,
    LongDocuments,
    OnError,
    Precision,
    Priority,
    SpecialTokens,
    Truncation,
    WhenFull,
    WindowScore,
)
from rerank_plugins.settings import FUNCTION_SETTINGS, Settings, without_reprs

ENV_PREFIX = "RERANK_PLUGINS_"


class RerankConfig(Settings):
    """The settings of a reranker, checked and frozen.

    Raises:
        ConfigError: naming the setting, what is allowed and what was seen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  pydantic checks each value
        try:
            super().__init__(**settings)
        except ValidationError as exc:
            raise ConfigError(_explain(exc)) from None

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        overrides: Mapping[str, str] | None = None,
    ) -> RerankConfig:
        """Read settings from ``RERANK_PLUGINS_<NAME>`` variables: the only use of the environment.

        Functions cannot be set this way; ``language_models`` is written ``zh=MODEL,de=MODEL``.
        *overrides* holds texts by setting name; where it has one, the variable is not looked at.

        Raises:
            ConfigError: on a value out of range, naming the setting.
        """
        found = os.environ if environ is None else environ
        given = overrides or {}
        settings: dict[str, object] = {}
        for name in cls.model_fields:
            value = given.get(name, found.get(ENV_PREFIX + name.upper()))
            if value is None or name in FUNCTION_SETTINGS:
                continue
            settings[name] = _parse_routes(value) if name == "language_models" else value
        return cls(**settings)


class RerankSettings(TypedDict, total=False):
    """The keyword arguments of `Reranker`: the fields of `RerankConfig` without ``model``."""

    backend: Backend | str
    device: str
    precision: Precision | str
    max_length: int | None
    truncation: Truncation | str
    long_documents: LongDocuments | str
    window_overlap: int
    window_score: WindowScore | str
    special_tokens: SpecialTokens | str
    family: str
    instruction: str | None
    duplicates: Duplicates | str
    near_duplicates: float | None
    max_candidates: int | None
    activation: Activation | str
    normalizer: Literal["default"] | Callable[[str], str] | None
    language_detector: Literal["default"] | Callable[[str], str | None] | None
    text_hook: Callable[[str, str | None, Any], str] | None
    language_models: Mapping[str, str]
    cache_entries: int
    batch_tokens: int | None
    queue_tokens: int
    when_full: WhenFull | str
    priority: Priority | str
    max_wait_s: float
    replicas: int | Sequence[str]
    timeout_s: float | None
    on_error: OnError | str
    fallback: Sequence[str]
    observers: Sequence[Observer]
    revision: str | None
    local_files_only: bool
    trust_remote_code: bool
    allow_pickle: bool


def service_api_keys(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Read ``RERANK_PLUGINS_SERVICE_API_KEYS``: the keys of a service, parted by commas."""
    found = os.environ if environ is None else environ
    keys = found.get(f"{ENV_PREFIX}SERVICE_API_KEYS", "").split(",")
    return tuple(filter(None, (key.strip() for key in keys)))


def _parse_routes(value: str) -> dict[str, str]:
    routes = {}
    for item in filter(None, (part.strip() for part in value.split(","))):
        code, equals, model = item.partition("=")
        if not equals:
            raise ConfigError(f"language_models: expected LANGUAGE=MODEL, got {item!r}")
        routes[code.strip()] = model.strip()
    return routes


def _explain(error: ValidationError) -> str:
    """One line per setting that is wrong: its name, what is allowed, what was seen."""
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"][:1]) or "settings"
        if problem["type"] == "extra_forbidden":
            known = ", ".join(sorted(RerankConfig.model_fields))
            lines.append(f"{name}: unknown setting; known are {known}")
            continue
        found = problem["input"]
        found = without_reprs(found) if name in FUNCTION_SETTINGS else found
        seen = "" if name == "settings" else f", got {found!r}"
        lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}{seen}")
    return "\n".join(dict.fromkeys(lines))
