"""The settings as fields, which every door inherits, each with what it may be."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from rerank_plugins.cache_address import Address, checked_address
from rerank_plugins.events import Observer
from rerank_plugins.options import (
    EMBEDDED,
    RETRIEVAL_ORDER,
    Activation,
    Backend,
    Dialect,
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
from rerank_plugins.server_addresses import check_addresses, is_remote
from rerank_plugins.setting_checks import (
    check_backend,
    check_precision,
    check_remote,
    checked_device,
    checked_fallback,
    checked_replicas,
    listed,
)

FUNCTION_SETTINGS = frozenset({"normalizer", "language_detector", "text_hook", "observers"})
"""Settings that are functions or objects: no variable and no flag can hold them."""

SECRET_SETTINGS = frozenset({"api_key"})
"""Settings that no flag takes and no message shows: other users of a machine can read both."""

LONGEST_TIMEOUT_S = 4_000_000
"""Longest wait in seconds, 46 days: what the locks of every platform can wait for."""

LONGEST_KEPT_S = 315_360_000
"""Longest life of what a shared cache holds, in seconds: ten years."""


THE_SERVERS = (
    "device",
    "precision",
    "max_length",
    "truncation",
    "long_documents",
    "special_tokens",
    "family",
    "revision",
    "trust_remote_code",
    "allow_pickle",
)
"""Settings that a model behind an address does not read: its server has its own."""


class Settings(BaseModel):
    """The settings of a reranker, as fields that every door inherits.

    Functions (``normalizer``, ``language_detector``, ``text_hook``) are plugged in by value;
    ``"default"`` stands for this package's own, None switches the step off.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    model: str = Field(
        default=EMBEDDED,
        description='"embedded", "lexical", a Hugging Face id, a local folder or ONNX file, or '
        "the http(s) addresses of servers",
    )
    backend: Backend = Field(default=Backend.AUTO, description="what runs the model")
    dialect: Dialect = Field(default=Dialect.AUTO, description="how a server is spoken to")
    remote_model: str | None = Field(
        default=None, min_length=1, description="the model by the server's name; its first one"
    )
    api_key: SecretStr | None = Field(
        default=None, exclude=True, repr=False, description="sent to the servers as a bearer token"
    )
    device: str = Field(
        default="auto",
        description='"auto", "cpu", "cuda", "cuda:N" or "mps", as far as it is there',
    )
    precision: Precision = Field(default=Precision.AUTO, description="number format of the weights")
    max_length: int | None = Field(
        default=None,
        ge=8,
        description="longest pair in tokens; the model's own limit where not set",
    )
    truncation: Truncation = Field(
        default=Truncation.AUTO, description="what is cut beyond max_length"
    )
    long_documents: LongDocuments = Field(
        default=LongDocuments.TRUNCATE,
        description="whether what is beyond max_length of a document is cut, or scored in windows",
    )
    window_overlap: int = Field(
        default=64, ge=0, description="tokens that neighbouring windows share"
    )
    window_score: WindowScore = Field(
        default=WindowScore.MAX, description="what the logits of the windows come to"
    )
    special_tokens: SpecialTokens = Field(
        default=SpecialTokens.PLAIN,
        description='whether text such as "</s>" is plain text or the token of that name',
    )
    family: str = Field(
        default="auto",
        description="how a language model is asked: a family by name, or a JSON file of one",
    )
    instruction: str | None = Field(
        default=None,
        description="what a language model is told to look for; its family's own where not set",
    )
    activation: Activation = Field(default=Activation.AUTO, description="logit to score")
    normalizer: Literal["default"] | SkipJsonSchema[Callable[[str], str]] | None = Field(
        default="default", description="cleans the scored text; None scores texts as they are"
    )
    language_detector: Literal["default"] | SkipJsonSchema[Callable[[str], str | None]] | None = (
        Field(default="default", description="names the language of a text")
    )
    text_hook: SkipJsonSchema[Callable[[str, str | None, Any], str]] | None = Field(
        default=None, description="sees (text, language, role) and returns the text to score"
    )
    language_models: Mapping[str, str] = Field(
        default_factory=dict, description="query language (ISO 639-1) to the model that answers it"
    )
    duplicates: Duplicates = Field(
        default=Duplicates.KEEP, description="documents of a text that came before: keep or drop"
    )
    near_duplicates: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of word sequences from which two documents count as duplicates",
    )
    max_candidates: int | None = Field(
        default=None,
        ge=1,
        description="documents that the model sees at most; the lexical scorer picks them",
    )
    cache_entries: int = Field(
        default=50_000, ge=0, description="pairs kept in the cache; 0 turns it off"
    )
    shared_cache: str | None = Field(
        default=None,
        description="a folder, or the URL of a Redis server, where other processes find scored "
        "pairs",
    )
    shared_cache_ttl_s: float | None = Field(
        default=None,
        gt=0,
        le=LONGEST_KEPT_S,
        description="seconds that the shared cache keeps a pair; no limit where not set",
    )
    shared_cache_bytes: int = Field(
        default=2**30, ge=2**20, description="size of a shared cache that is a folder"
    )
    shared_cache_timeout_s: float = Field(
        default=0.25,
        gt=0,
        le=60,
        description="seconds that a request waits for the shared cache",
    )
    batch_tokens: int | None = Field(
        default=None, ge=1, description="tokens in one batch; the scorer's own budget where not set"
    )
    queue_tokens: int = Field(
        default=4_000_000, ge=1, description="tokens that may wait before QueueFullError"
    )
    when_full: WhenFull = Field(
        default=WhenFull.RAISE,
        description="whether a request waits for room in a full queue, or gets QueueFullError",
    )
    priority: Priority = Field(
        default=Priority.INTERACTIVE,
        description="whether requests may pass bulk ones, or are bulk themselves",
    )
    max_wait_s: float = Field(
        default=0.0,
        ge=0,
        le=60,
        allow_inf_nan=False,
        description="seconds that pairs may wait for a batch to fill while the engine is busy",
    )
    replicas: int | Sequence[str] = Field(
        default=1,
        description="copies of the model that share one queue: how many, or one for each device",
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=LONGEST_TIMEOUT_S,
        description="seconds a request may take; no limit where not set",
    )
    on_error: OnError = Field(
        default=OnError.RAISE,
        description="whether a request that the model cannot answer fails, or falls back",
    )
    fallback: Sequence[str] = Field(
        default=("embedded", "lexical", RETRIEVAL_ORDER),
        description="who answers instead, in this order: models, or the order as it was given",
    )
    observers: SkipJsonSchema[Sequence[Observer]] = Field(
        default=(), description="are told of every batch, request and change of state"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    local_files_only: bool = Field(default=False, description="never ask the hub")
    trust_remote_code: bool = Field(
        default=False, description="run the Python code that a model brings along"
    )
    allow_pickle: bool = Field(
        default=False, description="open pickled weights, which can run code, where no others are"
    )

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  pydantic checks each value
        # Before anything looks at it: an error shows what was given, and may show all of it.
        if "shared_cache" in settings:
            settings["shared_cache"] = _hidden(settings["shared_cache"])
        super().__init__(**settings)

    @field_validator("device")
    @classmethod
    def _device_is_one(cls, value: str) -> str:
        return checked_device(value)

    @field_validator("shared_cache")
    @classmethod
    def _shared_cache_is_somewhere(cls, value: str | None) -> str | None:
        return None if value is None else checked_address(value)

    @field_validator(
        "max_length",
        "window_overlap",
        "near_duplicates",
        "max_candidates",
        "cache_entries",
        "shared_cache_ttl_s",
        "shared_cache_bytes",
        "shared_cache_timeout_s",
        "batch_tokens",
        "queue_tokens",
        "max_wait_s",
        "replicas",
        "timeout_s",
        mode="before",
    )
    @classmethod
    def _truth_is_no_number(cls, value: object) -> object:
        # True would count as 1.
        if isinstance(value, bool):
            raise ValueError("expected a number")  # noqa: TRY004  pydantic wants it
        return value

    @field_validator("replicas", mode="before")
    @classmethod
    def _replicas_are_some(cls, value: object) -> int | tuple[str, ...]:
        return checked_replicas(value)

    @field_validator("fallback", mode="before")
    @classmethod
    def _fallbacks_are_names(cls, value: object) -> tuple[str, ...]:
        return checked_fallback(value)

    @field_validator("observers", mode="before")
    @classmethod
    def _observers_are_listed(cls, value: object) -> object:
        return listed(value, Observer, "a list of Observer objects, as in [observer]")

    @field_validator("instruction")
    @classmethod
    def _instruction_says_something(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("blank; leave it out for the model's own instruction")
        try:
            (value or "").encode()
        except UnicodeEncodeError:
            raise ValueError("holds a lone surrogate, which is no text") from None
        return value

    @field_validator("api_key")
    @classmethod
    def _key_fits_into_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        key = "x" if value is None else value.get_secret_value()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError("expected printable ASCII without blanks")
        return value

    @field_validator("language_models")
    @classmethod
    def _codes_are_lower_case(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for code in value:
            if not (code.isascii() and code.isalpha() and code.islower()):
                raise ValueError(f"{code!r} is not a lower-case ISO 639-1 code such as 'zh'")
        return dict(value)

    @model_validator(mode="after")
    def _all_go_together(self) -> Self:
        check_backend(self.model, self.backend)
        check_addresses([self.model, *self.fallback, *self.language_models.values()])
        check_remote(
            self.model, self.backend, self.dialect, self.activation, remote_model=self.remote_model
        )
        for name in THE_SERVERS if is_remote(self.model) else ():
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}: the server decides it, for model is an address; leave out {value!r}"
                )
        check_precision(self.model, self.backend, self.precision, self.device)
        if self.on_error is OnError.FALLBACK and not self.fallback:
            raise ValueError('on_error="fallback" needs a fallback; name at least one')
        return self

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        # A plugged-in object is named by its type, for its own repr may hold a secret.
        for name, value in super().__repr_args__():
            shown = _hidden(value) if name == "shared_cache" else value
            yield name, without_reprs(value) if name in FUNCTION_SETTINGS else shown


def _hidden(value: object) -> object:
    """Make an address of what may hold a password, so that no message shows it."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return Address(value) if isinstance(value, str) else value


def without_reprs(plugin: object) -> object:
    """Return what stands for a setting that is a function or objects: names, and no reprs."""
    if isinstance(plugin, list | tuple):
        return tuple(map(without_reprs, plugin))
    if plugin is None or isinstance(plugin, str | int | float):
        return plugin
    return str(getattr(plugin, "__qualname__", type(plugin).__qualname__))
