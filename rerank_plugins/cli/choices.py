"""What settings come to on this machine, and why; the scorer that was opened has the last word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rerank_plugins.options import EMBEDDED, LEXICAL, Backend
from rerank_plugins.scorers.selection import Choice, as_set, settled_backend, unread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rerank_plugins.config import RerankConfig

SETTINGS: Final = ("backend", "device", "precision", "max_length")


def settle(
    config: RerankConfig, *, scorer: str | None, choices: Mapping[str, Choice]
) -> dict[str, Choice]:
    """Return what the settings come to, by name.

    *scorer* and *choices* are those of the scorer that was opened; None and empty where it could
    not be: then a setting is shown as it stands, and the problem says the rest.
    """
    name = scorer or config.model
    if name == LEXICAL:
        return _of_lexical(config)
    if name == EMBEDDED:
        return _of_embedded(config, opened=scorer is not None)
    left = (
        Choice("auto", "follows when the model is opened")
        if scorer is None
        else Choice("its own", "the scorer does not say")
    )
    known = {setting: as_set(config, setting) or left for setting in SETTINGS}
    known["backend"] = settled_backend(config) or left
    return known | dict(choices)


_OWN_LENGTH = Choice("the model's own", "not set")


def _of_lexical(config: RerankConfig) -> dict[str, Choice]:
    return {
        "backend": as_set(config, "backend")
        or Choice(Backend.LEXICAL, "the lexical scorer has no model file"),
        "device": Choice("cpu", unread(config, "device", "this scorer has no other")),
        "precision": Choice("its own", unread(config, "precision", "one kind of weights")),
        "max_length": Choice("none", unread(config, "max_length", "documents are read whole")),
    }


def _of_embedded(config: RerankConfig, *, opened: bool) -> dict[str, Choice]:
    cpu = Choice("cpu", "this scorer has no other")
    return {
        "backend": Choice(EMBEDDED, "the model that ships with this package, in onnxruntime"),
        "device": cpu if opened else as_set(config, "device") or cpu,
        "precision": Choice("its own", unread(config, "precision", "one kind of weights")),
        "max_length": as_set(config, "max_length") or _OWN_LENGTH,
    }
