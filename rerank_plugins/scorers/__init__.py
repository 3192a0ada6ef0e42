"""Scorers: each turns pairs into logits; `open_scorer` picks one by the settings."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rerank_plugins.options import EMBEDDED, LEXICAL, Backend, Precision
from rerank_plugins.server_addresses import is_remote

if TYPE_CHECKING:
    from rerank_plugins.config import RerankConfig
    from rerank_plugins.models.files import ModelFiles
    from rerank_plugins.models.weights import ChooseFiles
    from rerank_plugins.protocols import AnyScorer


def open_scorer(config: RerankConfig) -> AnyScorer:
    """Open the scorer that *config* asks for; heavy packages are imported here, on purpose.

    Raises:
        ConfigError: a setting names what there is not, such as a family.
        ModelLoadError: the model is not there or cannot be read.
        MissingExtraError: the package that runs it is not installed.
    """
    _check_family(config.family)
    if config.backend is Backend.LEXICAL or config.model == LEXICAL:
        from rerank_plugins.scorers.lexical import LexicalScorer

        return LexicalScorer.open()
    if config.model == EMBEDDED:
        from rerank_plugins.scorers.embedded import EmbeddedScorer

        return EmbeddedScorer.open(config)
    if is_remote(config.model):
        from rerank_plugins.scorers.remote.opening import open_remote_scorer

        return open_remote_scorer(config)
    from rerank_plugins.scorers.selection import settled_backend

    settled = settled_backend(config)
    files = None if settled else _find_files(config)
    if (files.backend if files else settled and settled.value) == Backend.TORCH:
        from rerank_plugins.scorers.torch.opening import open_torch_scorer

        return open_torch_scorer(config, files)
    from rerank_plugins.scorers.onnx.scorer import OnnxScorer

    return OnnxScorer.open(config, files)


def _check_family(family: str) -> None:
    """Raise `ConfigError` if there is no such *family*, also where no model reads it."""
    if family != "auto":
        from rerank_plugins.models.choosing import CHAT_TEMPLATE, NONE
        from rerank_plugins.models.families import family_named

        if family not in (CHAT_TEMPLATE, NONE):
            family_named(family)


def _find_files(config: RerankConfig) -> ModelFiles:
    """Find the model's files, and with them the backend, in one listing of the hub."""
    from rerank_plugins.models.files import find_model
    from rerank_plugins.models.weights import choose_torch
    from rerank_plugins.scorers.onnx.choices import files_here
    from rerank_plugins.scorers.selection import choose_weights, installed_backends

    installed = installed_backends()
    choosers: dict[Backend, ChooseFiles] = {
        Backend.TORCH: partial(choose_torch, allow_pickle=config.allow_pickle),
        Backend.ONNX: files_here(config),
    }
    if config.precision is Precision.INT8:
        # A file of integers computes in them; torch rounds any weights to them.
        choosers = dict(reversed(choosers.items()))
    return find_model(
        config.model,
        choose=partial(choose_weights, choosers=choosers, installed=installed),
        revision=config.revision,
        local_files_only=config.local_files_only,
        remote_code=config.trust_remote_code,
    )
