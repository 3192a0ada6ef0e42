"""A PyTorch scorer from settings and files: what runs, in which format, in how much memory."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from rerank_plugins.models.choosing import choose_family
from rerank_plugins.models.files import find_model
from rerank_plugins.models.settings import longest_pair, model_activation
from rerank_plugins.models.tokenizer import open_encoder, open_prompt_encoder
from rerank_plugins.models.weights import choose_torch
from rerank_plugins.options import Activation, Backend
from rerank_plugins.scorers.selection import Choice, as_set, backend_choice, installed_backends
from rerank_plugins.scorers.torch.hardware import choose_device, choose_precision, import_torch
from rerank_plugins.scorers.torch.scorer import PromptScorer, TorchScorer

if TYPE_CHECKING:
    import torch

    from rerank_plugins.config import RerankConfig
    from rerank_plugins.models.choosing import ChosenFamily
    from rerank_plugins.models.files import ModelFiles
    from rerank_plugins.scorers.torch.hardware import PrecisionChoice

BATCH_TOKENS: Final = {"cpu": 1024, "cuda": 32_768, "mps": 8192}
"""By kind of device: on a CPU, what still lies in its caches, and in memory that need not be
fetched anew for each layer; on a GPU, enough to fill it."""


def open_torch_scorer(config: RerankConfig, files: ModelFiles | None = None) -> TorchScorer:
    """Load a model's files, found here unless given, and score a pair to see that it ranks.

    Raises:
        ConfigError: device, precision or max_length is not what this machine or model offers.
        MissingExtraError: torch or transformers is not installed.
        ModelLoadError: the files are not there, broken, not those of a reranker, or more than fits
            into memory.
    """
    import_torch('backend "torch"')
    from rerank_plugins.scorers.torch.loading import saved_dtype
    from rerank_plugins.scorers.torch.room import batch_that_fits

    device = choose_device(config.device)
    if files is None:
        files = find_model(
            config.model,
            choose=partial(choose_torch, allow_pickle=config.allow_pickle),
            revision=config.revision,
            local_files_only=config.local_files_only,
            remote_code=config.trust_remote_code,
        )
    chosen = choose_family(files, config.family)
    precision = choose_precision(config.precision, device, saved_dtype(files))
    batch_tokens = batch_that_fits(
        files,
        precision,
        device,
        longest=longest_prompt(files, config, chosen),
        default=BATCH_TOKENS[device.type],
        asked=config.batch_tokens,
        trust_remote_code=config.trust_remote_code,
    )
    load = _load_cross_encoder if chosen is None else partial(_load_language_model, chosen=chosen)
    scorer = load(config, files, device, precision, batch_tokens=batch_tokens)
    try:
        scorer.check()
    except BaseException:
        scorer.close()
        raise
    return scorer


def longest_prompt(files: ModelFiles, config: RerankConfig, chosen: ChosenFamily | None) -> int:
    """Return the longest pair in tokens that a model will be given.

    Raises:
        ModelLoadError, ConfigError: as `longest_pair` does.
    """
    usual = None if chosen is None else chosen.family.max_length
    return longest_pair(files, config.max_length, usual=usual)


def _load_cross_encoder(
    config: RerankConfig,
    files: ModelFiles,
    device: torch.device,
    precision: PrecisionChoice,
    *,
    batch_tokens: int,
) -> TorchScorer:
    from rerank_plugins.scorers.torch.preparing import load_cross_encoder

    activation = model_activation(files, must_know=config.activation is Activation.AUTO)
    encoder, execution = load_cross_encoder(
        files,
        device,
        precision,
        open_encoder=partial(open_encoder, files, config),
        trust_remote_code=config.trust_remote_code,
    )
    return TorchScorer(
        files,
        execution,
        encoder,
        activation=activation,
        device=device,
        precision=precision,
        batch_tokens=batch_tokens,
        choices=_choices(config, device, precision, files, encoder.max_length),
    )


def _load_language_model(
    config: RerankConfig,
    files: ModelFiles,
    device: torch.device,
    precision: PrecisionChoice,
    *,
    batch_tokens: int,
    chosen: ChosenFamily,
) -> TorchScorer:
    from rerank_plugins.scorers.torch.preparing import load_language_model

    encoder = open_prompt_encoder(files, config, chosen.family)
    choices = _choices(config, device, precision, files, encoder.max_length, chosen.family.name)
    return PromptScorer(
        files,
        load_language_model(files, device, precision, encoder),
        encoder,
        activation=chosen.family.activation,
        device=device,
        precision=precision,
        batch_tokens=batch_tokens,
        choices={"family": Choice(chosen.family.name, chosen.why), **choices},
    )


def _choices(
    config: RerankConfig,
    device: torch.device,
    precision: PrecisionChoice,
    files: ModelFiles,
    max_length: int,
    family: str = "",
) -> dict[str, Choice]:
    """Return what the settings came to, and why, for whoever asks."""
    lowered = family and max_length < longest_pair(files, None)
    length_why = f"usual for the family {family}" if lowered else "the model's own limit"
    why = "torch finds no GPU" if device.type == "cpu" else f"torch finds {device.type}"
    return {
        "backend": backend_choice(config, Backend.TORCH, installed_backends()),
        "device": as_set(config, "device") or Choice(str(device), why),
        "precision": Choice(precision.precision, precision.why),
        "max_length": as_set(config, "max_length") or Choice(str(max_length), length_why),
    }
