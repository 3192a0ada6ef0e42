"""Which family a model is of, by the setting and by its files."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rerank_plugins.errors import ModelLoadError
from rerank_plugins.models.chat_template import has_pair_roles, is_embedding_model, read_family
from rerank_plugins.models.families import family_named, family_of

if TYPE_CHECKING:
    from rerank_plugins.models.families import Family
    from rerank_plugins.models.files import ModelFiles

CHAT_TEMPLATE = "chat-template"
"""The value of ``family`` that stands for the checkpoint's own template."""

NONE = "none"
"""The value of ``family`` that stands for a cross-encoder of two plain texts."""

HEADS = ("ForCausalLM", "ForSequenceClassification")
"""How the names in ``architectures`` end where a model has a head to answer with."""


class ChosenFamily(NamedTuple):
    """The family of a model, and why."""

    family: Family
    why: str


def choose_family(files: ModelFiles, asked: str) -> ChosenFamily | None:
    """Return the family of a model, or None where it is a cross-encoder.

    *asked* is the setting ``family``. With ``auto``, the row of a model's model_type goes before
    its chat template, which may differ from what its model card does. A checkpoint that was
    converted to a classifier is still of its family: it has another head, and wants the same
    prompt.

    Raises:
        ConfigError: *asked* is no family.
        ModelLoadError: the model embeds texts, or its chat template is not what was asked for.
    """
    kind = files.config.get("model_type")
    row = family_of(kind)
    if asked == CHAT_TEMPLATE:
        return ChosenFamily(read_family(files, row), "as set")
    if asked == NONE:
        return None
    if asked != "auto":
        return ChosenFamily(family_named(asked), "as set")
    if row is not None and (other := _without_head(files)):
        raise ModelLoadError(
            files.name,
            f"its config.json says that it is a {other}, no language model of a kind that is known "
            f'here; to ask it about each pair all the same, set family="{row.name}"',
        )
    if row is not None and is_embedding_model(files):
        raise ModelLoadError(
            files.name,
            "it is an embedding model, not a reranker (its modules.json lists a Pooling); to ask "
            f'it about each pair all the same, set family="{row.name}"',
        )
    if row is not None:
        return ChosenFamily(row, f"that of rerankers with model_type {kind}")
    if has_pair_roles(files):
        return ChosenFamily(read_family(files, None), "its chat template has queries and documents")
    return None


def _without_head(files: ModelFiles) -> str | None:
    """Return the class in ``architectures`` where none has a head that could answer."""
    listed = files.config.get("architectures")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    return None if any(name.endswith(HEADS) for name in names) else next(iter(names), None)
