"""A PyTorch cross-encoder from its files, straight into the number format it will compute in."""

from __future__ import annotations

import inspect
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers import __version__ as transformers_version
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KNOWN_KINDS,
)

from rerank_plugins.config import WEIGHT_ONLY, Backend, Precision
from rerank_plugins.errors import ModelLoadError, first_line
from rerank_plugins.models.layouts import layout_of
from rerank_plugins.models.settings import (
    first_position,
    needs_remote_code,
    other_kind,
    pad_id,
)
from rerank_plugins.scorers.torch.building import BUILDING
from rerank_plugins.scorers.torch.checkpoint import Weight, tensor_names
from rerank_plugins.scorers.torch.head import widen_head
from rerank_plugins.scorers.torch.linear import prepack
from rerank_plugins.scorers.torch.packed import PackedExecution, find_layers
from rerank_plugins.scorers.torch.padded import PaddedExecution
from rerank_plugins.scorers.torch.quantized import quantizable_names, quantize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from transformers import PretrainedConfig

    from rerank_plugins.models.encoding import PairEncoder
    from rerank_plugins.models.files import ModelFiles

logger = logging.getLogger(__name__)


def load_cross_encoder(
    files: ModelFiles,
    device: torch.device,
    dtype: torch.dtype,
    *,
    precision: Precision,
    open_encoder: Callable[..., PairEncoder],
    trust_remote_code: bool,
) -> tuple[PairEncoder, PackedExecution | PaddedExecution]:
    """Return the encoder of a model's pairs, and the model ready to run on *device*.

    Raises:
        ConfigError: max_length is more than the model takes.
        ModelLoadError: it is no cross-encoder, needs code of its own, or its files do not fit.
    """
    later = precision in WEIGHT_ONLY
    model = load_model(files, dtype, trust_remote_code=trust_remote_code, layers_later=later)
    if later:
        quantize(model, precision, files, device)
    segments = reads_segments(model, files)
    encoder = open_encoder(segments=segments)
    try:
        return encoder, _prepare(model, files, encoder, device, segments=segments)
    # What an architecture or a device does not take shows itself as anything.
    except Exception as exc:
        raise ModelLoadError(
            files.name,
            f"it cannot be made ready in {dtype} on {device}; another device or precision may do: "
            f"{type(exc).__name__}: {first_line(exc)}",
        ) from exc


def _prepare(
    model: PreTrainedModel,
    files: ModelFiles,
    encoder: PairEncoder,
    device: torch.device,
    *,
    segments: bool,
) -> PackedExecution | PaddedExecution:
    """Move a loaded model to *device*, and choose how it runs there."""
    # Code of a model's own may have another layout under a known name.
    layout = layout_of(files.config) if type(model).__module__.startswith("transformers.") else None
    if model.dtype is not torch.float32:
        widen_head(model, layout, files)
    torch.nn.Module.to(model, device)
    if layout is not None:
        prepack(find_layers(model, layout), layout)
        if layout.packed:
            execution = PackedExecution(
                model, layout, first_position=first_position(files), segments=segments
            )
            if execution.works:
                return execution
            execution.close()
            logger.warning(
                "%s: transformers %s does not pass attention through for %s; it runs padded",
                files.name,
                transformers_version,
                files.config.get("model_type"),
            )
            model.set_attn_implementation("sdpa")
    padding = model.config.pad_token_id
    if padding is None:
        padding = pad_id(files, encoder.token_to_id)
    return PaddedExecution(model, pad_id=padding, segments=segments)


def load_model(
    files: ModelFiles,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool = False,
    layers_later: bool = False,
) -> PreTrainedModel:
    """Build the classifier that config.json describes and fill it with the weights of *files*.

    With *layers_later*, weights that `quantize` will round may be stand-ins that it reads itself.

    Raises:
        ModelLoadError: it is no cross-encoder, needs code of its own, or its weights do not fit.
    """
    if needs_remote_code(files.config) and not trust_remote_code and not _is_known(files.config):
        raise ModelLoadError(
            files.name,
            "its architecture is code in its own repository, which loading it would run. If you "
            "trust that code, set trust_remote_code=True, and revision to a commit you have read",
        )
    if elsewhere := _code_elsewhere(files.config):
        raise ModelLoadError(
            files.name,
            f"its code is in another repository, {elsewhere}, which revision does not pin. Read "
            "it, copy its Python files beside config.json, and name them in auto_map without "
            f"'{elsewhere}--'",
        )
    if "quantization_config" in files.config:
        raise ModelLoadError(
            files.name,
            "its weights are quantised in a format of their own (quantization_config), which is "
            "not supported; take the checkpoint that it was made from",
        )
    try:
        with BUILDING:
            config = _read_config(files, trust_remote_code=trust_remote_code)
            with _silenced_report():
                model, report = _build(
                    files,
                    config,
                    dtype,
                    trust_remote_code=trust_remote_code,
                    layers_later=layers_later,
                )
    except ModelLoadError:
        raise
    # Settings and weights of strangers meet code of many hands: it raises anything.
    except Exception as exc:
        kind = other_kind(files.config)
        what = f"it is {kind}, not a cross-encoder: " if kind else ""
        raise ModelLoadError(
            files.name,
            f"{what}transformers {transformers_version} cannot build it: "
            f"{type(exc).__name__}: {first_line(exc)}",
        ) from exc
    _check_fit(files, report)
    return model


def saved_dtype(files: ModelFiles) -> torch.dtype | None:
    """Return the number format that config.json says the weights were saved in."""
    named = files.config.get("dtype") or files.config.get("torch_dtype")
    found = getattr(torch, named, None) if isinstance(named, str) else None
    return found if isinstance(found, torch.dtype) else None


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


def _is_known(config: Mapping[str, Any]) -> bool:
    """Whether transformers has a classifier of its own for this architecture."""
    return config.get("model_type") in KNOWN_KINDS


def _code_elsewhere(config: Mapping[str, Any]) -> str | None:
    """Return the other repository that ``auto_map`` names as the home of a model's code."""
    if _is_known(config) or not needs_remote_code(config):
        return None
    named = (str(place).partition("--") for place in config["auto_map"].values())
    return next((repository for repository, dashes, _ in named if dashes), None)


def _read_config(files: ModelFiles, *, trust_remote_code: bool) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(
        files.folder, trust_remote_code=trust_remote_code, local_files_only=True
    )
    # A feed-forward in chunks gives the same numbers, but a packed row has no such chunks.
    config.chunk_size_feed_forward = 0
    # A checkpoint saved for code that wanted tuples.
    config.return_dict = True
    return config


def _build(
    files: ModelFiles,
    config: PretrainedConfig,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool,
    layers_later: bool,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the filled model, and transformers' report of what fitted."""
    options: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "output_loading_info": True,
        # What does not fit is in the report, each with its shapes.
        "ignore_mismatched_sizes": True,
    }
    built: tuple[PreTrainedModel, dict[str, Any]]
    if needs_remote_code(files.config) and trust_remote_code:
        # Its own code may load in a way of its own.
        built = AutoModelForSequenceClassification.from_pretrained(
            files.folder, trust_remote_code=True, local_files_only=True, **options
        )
        return built
    with torch.device("meta"):
        # Never None, for which transformers would ask on the terminal whether to run code.
        empty = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    kind: Any = type(empty)
    if any(path.suffix == ".safetensors" for path in files.weights):
        later = quantizable_names(empty) if layers_later else frozenset()
        weights = {
            name: Weight(path, name, dtype, later=name in later)
            for path in files.weights
            for name in tensor_names(path)
        }
        built = kind.from_pretrained(None, state_dict=weights, **options)
    elif files.backend is Backend.TORCH:
        built = kind.from_pretrained(
            files.folder, use_safetensors=False, local_files_only=True, **options
        )
    else:
        raise ModelLoadError(files.name, "these are not PyTorch weights, but an ONNX file")
    return built


def _check_fit(files: ModelFiles, report: Mapping[str, Any]) -> None:
    """Raise `ModelLoadError` if a weight is missing or of another shape: it would be random."""
    for name, found, wanted in sorted(report["mismatched_keys"])[:1]:
        raise ModelLoadError(
            files.name,
            f"its weights do not fit its config.json: {name} is {tuple(found)} where "
            f"{tuple(wanted)} is wanted",
        )
    if unused := sorted(name for name in report["unexpected_keys"] if ".layer" in name):
        logger.warning(
            "%s: its checkpoint holds %d weights that transformers' %s does not use, such as %s",
            files.name,
            len(unused),
            files.config.get("model_type"),
            unused[0],
        )
    if missing := sorted(report["missing_keys"]):
        kind = other_kind(files.config)
        what = f"it is {kind}, not a cross-encoder" if kind else "its checkpoint is incomplete"
        code = (
            ". Its repository has code of its own for it, which trust_remote_code=True would run"
            if needs_remote_code(files.config)
            else ""
        )
        raise ModelLoadError(
            files.name, f"{what}: there are no weights for {', '.join(missing[:4])}{code}"
        )


@contextmanager
def _silenced_report() -> Iterator[None]:
    """Keep transformers from logging, as a table, what is read from its report here."""

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    reporter = logging.getLogger("transformers.modeling_utils")
    reporter.addFilter(is_other)
    try:
        yield
    finally:
        reporter.removeFilter(is_other)
