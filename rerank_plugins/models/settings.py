"""What a model's own JSON settings say: longest pair, activation, pad token. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from rerank_plugins.errors import ConfigError, ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rerank_plugins.models.files import ModelFiles

POSITIONS_AFTER_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "longformer",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
"""Values of ``model_type`` whose position ids start at padding_idx + 1, so that a table of 514
positions holds 512 tokens.
"""

SANE_LENGTH = 1_000_000
"""transformers writes about 1e30 as model_max_length where it knows no limit."""

LARGEST_ID = 2**31
"""Token ids and positions are below it."""

FALLBACK_LENGTH = 512
"""Longest pair where a model's files name no limit, as that of BERT."""


def longest_pair(files: ModelFiles, asked: int | None, *, usual: int | None = None) -> int:
    """Return the longest pair in tokens: *asked*, or the model's own limit, *usual* at most.

    Raises:
        ModelLoadError: config.json holds what is no number of positions.
        ConfigError: *asked* is more than the model has positions for.
    """
    positions = _positions(files)
    if asked is not None:
        if positions is not None and asked > positions:
            raise ConfigError(
                f"max_length: {files.name!r} takes at most {positions} tokens, got {asked}"
            )
        return asked
    written = files.tokenizer_config.get("model_max_length")
    tokenizer = int(written) if _is_number(written) and 0 < written < SANE_LENGTH else None
    return min(filter(None, (positions, tokenizer, usual)), default=FALLBACK_LENGTH)


def first_position(files: ModelFiles) -> int:
    """Return the position id of a text's first token.

    Raises:
        ModelLoadError: config.json holds what is no model_type or no id.
    """
    kind = files.config.get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise ModelLoadError(files.name, f"its config.json holds model_type {kind!r:.40}, no name")
    if kind not in POSITIONS_AFTER_PADDING:
        return 0
    padding = _integer(files, "pad_token_id")
    return (1 if padding is None else padding) + 1


def _positions(files: ModelFiles) -> int | None:
    positions = _integer(files, "max_position_embeddings")
    if positions is None or positions <= 0:
        return None
    return min(positions, _short_positions(files) or positions) - first_position(files)


def _short_positions(files: ModelFiles) -> int | None:
    """Return beyond which position one pair would turn all pairs of a batch by other factors.

    None where positions are not of that kind (``longrope``).
    """
    scaled = files.config.get("rope_parameters") or files.config.get("rope_scaling")
    if not isinstance(scaled, dict) or scaled.get("rope_type", scaled.get("type")) != "longrope":
        return None
    key = "original_max_position_embeddings"
    inside = scaled.get(key)
    return inside if isinstance(inside, int) and inside > 0 else _integer(files, key)


def _integer(files: ModelFiles, key: str) -> int | None:
    """Return the number that config.json holds as *key*, or None where it holds none."""
    value = files.config.get(key)
    if not _is_number(value):
        return None
    # NaN and Infinity, which Python reads in JSON, are beyond it too.
    if not abs(value) < LARGEST_ID:
        raise ModelLoadError(files.name, f"its config.json holds {key} {value!r:.40}, out of range")
    return int(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def model_activation(files: ModelFiles, *, must_know: bool) -> Literal["sigmoid", "logit"]:
    """Return the activation that config.json names as sentence-transformers reads it.

    That is ``sentence_transformers.activation_fn``, or its older form
    ``sbert_ce_default_activation_function``; where neither is there, sigmoid.

    Raises:
        ModelLoadError: it names another function, and the user named none (*must_know*).
    """
    nested = files.config.get("sentence_transformers")
    named = nested.get("activation_fn") if isinstance(nested, dict) else None
    named = named or files.config.get("sbert_ce_default_activation_function")
    if named is None:
        return "sigmoid"
    match str(named).rpartition(".")[2].removesuffix("()"):
        case "Sigmoid":
            return "sigmoid"
        case "Identity":
            return "logit"
    if must_know:
        raise ModelLoadError(
            files.name,
            f"its config.json names the activation {named!r}; set activation to "
            '"sigmoid" or "logit"',
        )
    return "logit"


def pad_id(files: ModelFiles, token_to_id: Callable[[str], int | None]) -> int:
    """Return the id that fills short rows of a batch; the attention mask hides it.

    Raises:
        ModelLoadError: config.json holds what is no id.
    """
    token = files.tokenizer_config.get("pad_token")
    if isinstance(token, dict):
        token = token.get("content")
    found = token_to_id(token) if isinstance(token, str) else None
    return found if found is not None else _integer(files, "pad_token_id") or 0


CODE_CLASS = "AutoModelForSequenceClassification"
"""What the head of a cross-encoder is called in ``auto_map``, as transformers looks it up."""


def needs_remote_code(config: Mapping[str, Any]) -> bool:
    """Whether config.json names a class of the model's own, in Python files beside it."""
    mapped = config.get("auto_map")
    return isinstance(mapped, dict) and CODE_CLASS in mapped


HEADS: tuple[tuple[str, str], ...] = (
    ("ForSequenceClassification", ""),
    ("ForCausalLM", "a causal language model"),
    ("LMHeadModel", "a causal language model"),
    ("ForConditionalGeneration", "a model that generates text"),
    ("ForMaskedLM", "a masked language model, not trained to rank"),
    ("ForPreTraining", "a pretrained model, not trained to rank"),
    ("ForTokenClassification", "a classifier of tokens"),
    ("ForQuestionAnswering", "a model that marks answers in a text"),
    ("ForMultipleChoice", "a model of multiple choice"),
    ("Model", "an embedding model or a bare encoder"),
)
"""How the names in ``architectures`` end, and what such a model is; blank for a cross-encoder."""


def other_kind(config: Mapping[str, Any]) -> str | None:
    """Return what a model is that is no cross-encoder by its ``architectures``, with its class.

    None where it is one, or where config.json does not say.
    """
    listed = config.get("architectures")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    if not names or any(name.endswith(HEADS[0][0]) for name in names):
        return None
    kind = next((kind for end, kind in HEADS if names[0].endswith(end)), "another kind of model")
    return f"{kind} ({names[0]})"
