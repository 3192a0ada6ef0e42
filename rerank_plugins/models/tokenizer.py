"""The tokenizer among a model's files, opened as an encoder of pairs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rerank_plugins.errors import ConfigError, ModelLoadError, first_line
from rerank_plugins.models.encoding import PairEncoder
from rerank_plugins.models.prompts import NoRoomError, PromptEncoder
from rerank_plugins.models.settings import longest_pair
from rerank_plugins.models.windows import WindowRule

if TYPE_CHECKING:
    from rerank_plugins.config import RerankConfig
    from rerank_plugins.models.families import Family
    from rerank_plugins.models.files import ModelFiles


def open_encoder(files: ModelFiles, config: RerankConfig, *, segments: bool) -> PairEncoder:
    """Return the encoder of a cross-encoder's pairs; *segments* says that the model reads them.

    Raises:
        ConfigError: max_length is more than the model takes.
        ModelLoadError: tokenizer.json is broken, or makes no pairs.
    """
    longest = longest_pair(files, config.max_length)
    tokenizer = _read(files)
    try:
        return PairEncoder(
            tokenizer,
            max_length=longest,
            truncation=config.truncation,
            special_tokens=config.special_tokens,
            cut_left=files.tokenizer_config.get("truncation_side") == "left",
            segments=segments,
            windows=WindowRule.of(config),
        )
    # The tokenizers library raises plain Exception.
    except Exception as exc:
        raise ModelLoadError(files.name, f"its tokenizer cannot encode a pair: {exc}") from exc


def open_prompt_encoder(files: ModelFiles, config: RerankConfig, family: Family) -> PromptEncoder:
    """Return the encoder of a language model's prompts, of its *family*.

    Raises:
        ConfigError: max_length is more than the model takes, or less than the prompt does.
        ModelLoadError: tokenizer.json is broken, or not that of a model of this family.
    """
    longest = longest_pair(files, config.max_length, usual=family.max_length)
    tokenizer = _read(files)
    try:
        return PromptEncoder(
            tokenizer,
            family,
            max_length=longest,
            truncation=config.truncation,
            special_tokens=config.special_tokens,
            windows=WindowRule.of(config),
        )
    except NoRoomError as exc:
        if config.max_length is not None:
            raise ConfigError(str(exc)) from exc
        raise ModelLoadError(files.name, f"it takes too few tokens: {exc}") from exc
    # The tokenizers library raises plain Exception.
    except Exception as exc:
        raise ModelLoadError(
            files.name, f"its tokenizer cannot encode the prompts of {family.name}: {exc}"
        ) from exc


def _read(files: ModelFiles) -> Any:  # noqa: ANN401  tokenizers is imported late
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(os.fspath(files.tokenizer))
    # The tokenizers library raises plain Exception.
    except Exception as exc:
        raise ModelLoadError(
            files.name, f"{files.tokenizer.name} cannot be read: {first_line(exc)}"
        ) from exc
