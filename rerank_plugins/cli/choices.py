"""What settings come to on this machine, and why; the scorer that was opened has the last word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_plugins.config import EMBEDDED, LEXICAL, Backend, Precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_plugins.config import RerankConfig


@dataclass(frozen=True, slots=True)
class Choice:
    """What a setting comes to here, and why."""

    value: str
    why: str


def settle(
    config: RerankConfig,
    providers: Sequence[str] | None,
    *,
    scorer: str | None,
    identity: str | None,
) -> dict[str, Choice]:
    """Return what the settings come to, by name.

    *providers* are what onnxruntime offers, None where it is not installed. *scorer* and
    *identity* are those of the scorer that was opened, None where it could not be: then a setting
    is shown as it stands, and the problem says the rest.
    """
    name = scorer or config.model
    if name == LEXICAL:
        return _of_lexical(config)
    if name == EMBEDDED:
        return _of_embedded(config, opened=scorer is not None)
    return {
        "backend": _as_set(config, "backend")
        or Choice(Backend.ONNX, "models from a folder, file or the hub run in onnxruntime"),
        "device": _as_set(config, "device") or _automatic_device(providers, identity or ""),
        "precision": _precision(config, providers),
        "max_length": _as_set(config, "max_length") or _OWN_LENGTH,
    }


_OWN_LENGTH = Choice("the model's own", "not set")


def _of_lexical(config: RerankConfig) -> dict[str, Choice]:
    return {
        "backend": _as_set(config, "backend")
        or Choice(Backend.LEXICAL, "the lexical scorer has no model file"),
        "device": Choice("cpu", _unread(config, "device", "this scorer has no other")),
        "precision": Choice("its own", _unread(config, "precision", "one kind of weights")),
        "max_length": Choice("none", _unread(config, "max_length", "documents are read whole")),
    }


def _of_embedded(config: RerankConfig, *, opened: bool) -> dict[str, Choice]:
    cpu = Choice("cpu", "this scorer has no other")
    return {
        "backend": Choice(EMBEDDED, "the model that ships with this package, in onnxruntime"),
        "device": cpu if opened else _as_set(config, "device") or cpu,
        "precision": Choice("its own", _unread(config, "precision", "one kind of weights")),
        "max_length": _as_set(config, "max_length") or _OWN_LENGTH,
    }


def _as_set(config: RerankConfig, name: str) -> Choice | None:
    value = getattr(config, name)
    return None if value in (None, "auto") else Choice(str(value), "as set")


def _unread(config: RerankConfig, name: str, why: str) -> str:
    """Add to *why* that a setting is not looked at, where one was made that says otherwise."""
    made = _as_set(config, name)
    if made is None or (name, made.value) == ("device", "cpu"):
        return why
    return f"{why}; {name} {made.value} is not read"


def _automatic_device(providers: Sequence[str] | None, identity: str) -> Choice:
    from rerank_plugins.scorers.onnx import CPU, CUDA

    if providers is None:
        return Choice("none", "onnxruntime is not installed")
    if CUDA not in providers:
        return Choice("cpu", "onnxruntime offers no CUDA")
    # The identity names the provider that the session came up with.
    if f" on {CPU}" in identity:
        return Choice("cpu", "onnxruntime offers CUDA but could not start it")
    return Choice("cuda", "onnxruntime offers CUDA")


def _precision(config: RerankConfig, providers: Sequence[str] | None) -> Choice:
    if config.model.endswith(".onnx"):
        return Choice("its own", _unread(config, "precision", "an ONNX file is taken as it is"))
    made = _as_set(config, "precision")
    if made is not None:
        return made
    from rerank_plugins.models.weights import wanted_precisions
    from rerank_plugins.scorers.onnx import CUDA

    # What is taken follows from what is offered, before it is known whether that starts.
    offered = providers is not None and CUDA in providers
    device = "cuda" if config.device.startswith("cuda") else config.device
    if device == "auto":
        device = "cuda" if offered else "cpu"
    wanted = wanted_precisions(Precision.AUTO, cuda=device == "cuda")
    return Choice(" or else ".join(wanted), f"what the model has of them, on {device}")
