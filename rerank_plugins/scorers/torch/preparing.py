"""Models made ready to run: loaded, moved to their device, packed where that can be done."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel
from transformers import __version__ as transformers_version

from rerank_plugins.errors import ModelLoadError, first_line
from rerank_plugins.models.layouts import layout_of
from rerank_plugins.models.settings import first_position, pad_id
from rerank_plugins.options import WEIGHT_ONLY
from rerank_plugins.scorers.torch.allocator import keep_freed_blocks
from rerank_plugins.scorers.torch.hardware import torch_dtype
from rerank_plugins.scorers.torch.head import widen_head
from rerank_plugins.scorers.torch.language import AnsweringModel, read_answers
from rerank_plugins.scorers.torch.linear import fuse_norms, go_by_rows, prepack
from rerank_plugins.scorers.torch.loading import CROSS_ENCODER, LANGUAGE_MODEL, load_model
from rerank_plugins.scorers.torch.packed import PackedExecution, find_layers
from rerank_plugins.scorers.torch.padded import PaddedExecution
from rerank_plugins.scorers.torch.quantized import quantize

if TYPE_CHECKING:
    from collections.abc import Callable

    from rerank_plugins.models.encoding import PairEncoder
    from rerank_plugins.models.files import ModelFiles
    from rerank_plugins.models.prompts import PromptEncoder
    from rerank_plugins.scorers.torch.hardware import PrecisionChoice
    from rerank_plugins.scorers.torch.loading import ModelKind

logger = logging.getLogger(__name__)


def load_cross_encoder(
    files: ModelFiles,
    device: torch.device,
    precision: PrecisionChoice,
    *,
    open_encoder: Callable[..., PairEncoder],
    trust_remote_code: bool,
) -> tuple[PairEncoder, PackedExecution | PaddedExecution]:
    """Return the encoder of a model's pairs, and the model ready to run on *device*.

    Raises:
        ConfigError: max_length is more than the model takes.
        ModelLoadError: it is no cross-encoder, needs code of its own, or its files do not fit.
    """
    model = _load(files, device, precision, CROSS_ENCODER, trust_remote_code=trust_remote_code)
    segments = reads_segments(model, files)
    encoder = open_encoder(segments=segments)
    return encoder, _make_ready(
        model,
        model,
        files,
        encoder,
        device,
        causal=False,
        first_position=first_position(files),
        segments=segments,
    )


def load_language_model(
    files: ModelFiles, device: torch.device, precision: PrecisionChoice, encoder: PromptEncoder
) -> PackedExecution | PaddedExecution:
    """Return a language model that answers the prompts of *encoder*, ready to run on *device*.

    Raises:
        ModelLoadError: it is no language model, or its files do not fit.
    """
    backbone = _load(files, device, precision, LANGUAGE_MODEL, trust_remote_code=False)
    model = AnsweringModel(backbone, read_answers(files, backbone.config, encoder.answers))
    return _make_ready(model, backbone, files, encoder, device, causal=True)


def _load(
    files: ModelFiles,
    device: torch.device,
    precision: PrecisionChoice,
    kind: ModelKind,
    *,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """Return a model with its weights in their final format."""
    later = precision.precision in WEIGHT_ONLY
    dtype = torch_dtype(precision.arithmetic)
    model = load_model(files, dtype, kind, trust_remote_code=trust_remote_code, layers_later=later)
    if later:
        quantize(model, precision.precision, files, device)
    return model


def _make_ready(
    model: torch.nn.Module,
    backbone: PreTrainedModel,
    files: ModelFiles,
    encoder: PairEncoder | PromptEncoder,
    device: torch.device,
    *,
    causal: bool,
    first_position: int = 0,
    segments: bool = False,
) -> PackedExecution | PaddedExecution:
    """Move *model*, whose layers are those of *backbone*, to *device*; choose how it runs there."""
    # Code of a model's own may have another layout under a known name.
    ours = type(backbone).__module__.startswith("transformers.")
    layout = layout_of(files.config, causal=causal) if ours else None
    try:
        if backbone.dtype is not torch.float32:
            widen_head(backbone, layout, files)
        torch.nn.Module.to(model, device)
        if layout is not None:
            layers = find_layers(backbone, layout)
            prepack(layers, layout)
            fuse_norms(layers)
            if device.type == "cpu":
                go_by_rows(layers, layout)
                keep_freed_blocks()
            if layout.packed:
                execution = PackedExecution(
                    model, backbone, layout, first_position=first_position, segments=segments
                )
                if execution.works:
                    return execution
                execution.close()
                _say_it_runs_padded(files)
                backbone.set_attn_implementation("sdpa")
        padding = backbone.config.pad_token_id
        if padding is None:
            padding = pad_id(files, encoder.token_to_id)
        return PaddedExecution(model, device, pad_id=padding, segments=segments)
    # What an architecture or a device does not take shows itself as anything.
    except Exception as exc:
        raise ModelLoadError(
            files.name,
            f"it cannot be made ready in {backbone.dtype} on {device}; another device or precision "
            f"may do: {type(exc).__name__}: {first_line(exc)}",
        ) from exc


def _say_it_runs_padded(files: ModelFiles) -> None:
    logger.warning(
        "%s: transformers %s does not pass attention through for %s; it runs padded",
        files.name,
        transformers_version,
        files.config.get("model_type"),
    )


def reads_segments(model: PreTrainedModel, files: ModelFiles) -> bool:
    """Whether the model tells the two texts of a pair apart by their segments.

    That is so where its code takes them, it has embeddings for more than one, and its tokenizer
    settings do not leave them out.
    """
    named = files.tokenizer_config.get("model_input_names")
    kinds = getattr(model.config, "type_vocab_size", 2)
    return (
        "token_type_ids" in inspect.signature(model.forward).parameters
        and kinds > 1
        and (not isinstance(named, list) or "token_type_ids" in named)
    )
