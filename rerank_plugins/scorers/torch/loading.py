"""A PyTorch cross-encoder from its files, straight into the number format it will compute in."""

from __future__ import annotations

import inspect
import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers import __version__ as transformers_version

from rerank_plugins.errors import ModelLoadError, first_line
from rerank_plugins.models.families import family_of
from rerank_plugins.models.settings import (
    first_position,
    needs_remote_code,
    other_kind,
    pad_id,
)
from rerank_plugins.scorers.torch.linear import prepack
from rerank_plugins.scorers.torch.packed import PackedExecution, find_layers
from rerank_plugins.scorers.torch.padded import PaddedExecution

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from transformers import PretrainedConfig

    from rerank_plugins.models.encoding import PairEncoder
    from rerank_plugins.models.families import Family
    from rerank_plugins.models.files import ModelFiles

PIECE_BYTES: Final = 64_000_000
"""How much of a weight is read at a time: what loading takes beside the model itself."""

# transformers changes the default device and number format of the process while it builds a model.
_BUILDING = threading.Lock()

_LOADING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
)
"""What transformers, torch and safetensors raise on settings and weights that do not fit."""


def load_cross_encoder(
    files: ModelFiles,
    device: torch.device,
    dtype: torch.dtype,
    *,
    open_encoder: Callable[..., PairEncoder],
    trust_remote_code: bool,
) -> tuple[PairEncoder, PackedExecution | PaddedExecution]:
    """Return the encoder of a model's pairs, and the model ready to run on *device*.

    Raises:
        ConfigError: max_length is more than the model takes.
        ModelLoadError: it is no cross-encoder, needs code of its own, or its files do not fit.
    """
    model = load_model(files, dtype, trust_remote_code=trust_remote_code)
    segments = reads_segments(model, files)
    encoder = open_encoder(segments=segments)
    # Code of a model's own may have another layout under a known name.
    family = family_of(files.config) if type(model).__module__.startswith("transformers.") else None
    if dtype is not torch.float32:
        widen_head(model, family, files)
    torch.nn.Module.to(model, device)
    if family is not None:
        prepack(find_layers(model, family), family)
        if family.packed:
            return encoder, PackedExecution(
                model, family, first_position=first_position(files), segments=segments
            )
    padding = pad_id(files, encoder.token_to_id)
    return encoder, PaddedExecution(model, pad_id=padding, segments=segments)


def load_model(
    files: ModelFiles, dtype: torch.dtype, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Build the classifier that config.json describes and fill it with the weights of *files*.

    Raises:
        ModelLoadError: it is no cross-encoder, needs code of its own, or its weights do not fit.
    """
    if needs_remote_code(files.config) and not trust_remote_code and not _is_known(files.config):
        raise ModelLoadError(
            files.name,
            "its architecture is code in its own repository, which loading it would run. If you "
            "trust that code, set trust_remote_code=True, and revision to a commit you have read",
        )
    try:
        with _BUILDING:
            config = _read_config(files, trust_remote_code=trust_remote_code)
            with _silenced_report():
                model, report = _build(files, config, dtype, trust_remote_code=trust_remote_code)
    except _LOADING_ERRORS as exc:
        kind = other_kind(files.config)
        what = f"it is {kind}, not a cross-encoder: " if kind else ""
        raise ModelLoadError(
            files.name,
            f"{what}transformers {transformers_version} cannot build it: "
            f"{type(exc).__name__}: {first_line(exc)}",
        ) from exc
    _check_fit(files, report)
    return model


def widen_head(model: PreTrainedModel, family: Family | None, files: ModelFiles) -> None:
    """Let what runs after the last layer compute in float32, its weights as they were saved."""
    saved = {name: path for path in files.weights for name in _tensor_names(path)}
    for name, module in _head_modules(model, family):
        module.float()
        for part, parameter in module.named_parameters():
            if (path := saved.get(f"{name}.{part}")) is not None:
                weight = _Weight(path, f"{name}.{part}", torch.float32)
                parameter.data.copy_(weight[...])
        module.register_forward_pre_hook(_widen, with_kwargs=True)


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
    """Whether transformers has code of its own for this architecture."""
    return config.get("model_type") in CONFIG_MAPPING


def _read_config(files: ModelFiles, *, trust_remote_code: bool) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(
        files.folder, trust_remote_code=trust_remote_code
    )
    # A feed-forward in chunks gives the same numbers, but a packed row has no such chunks.
    config.chunk_size_feed_forward = 0
    # A checkpoint saved for code that wanted tuples.
    config.return_dict = True
    return config


def _build(
    files: ModelFiles, config: PretrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool
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
            files.folder, trust_remote_code=True, **options
        )
        return built
    kind: Any
    with torch.device("meta"):
        kind = type(AutoModelForSequenceClassification.from_config(config))
    if any(path.suffix == ".safetensors" for path in files.weights):
        weights = {
            name: _Weight(path, name, dtype)
            for path in files.weights
            for name in _tensor_names(path)
        }
        built = kind.from_pretrained(None, state_dict=weights, **options)
    else:
        built = kind.from_pretrained(files.folder, use_safetensors=False, **options)
    return built


def _check_fit(files: ModelFiles, report: Mapping[str, Any]) -> None:
    """Raise `ModelLoadError` if a weight is missing or of another shape: it would be random."""
    for name, found, wanted in sorted(report["mismatched_keys"])[:1]:
        raise ModelLoadError(
            files.name,
            f"its weights do not fit its config.json: {name} is {tuple(found)} where "
            f"{tuple(wanted)} is wanted",
        )
    if missing := sorted(report["missing_keys"]):
        kind = other_kind(files.config)
        what = f"it is {kind}, not a cross-encoder" if kind else "its checkpoint is incomplete"
        raise ModelLoadError(
            files.name, f"{what}: there are no weights for {', '.join(missing[:4])}"
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


class _Weight:
    """A tensor in a safetensors file, read piece by piece when transformers asks for it.

    transformers reads whole files into memory, or maps them, and converts afterwards: beside a
    float32 checkpoint, a model in half precision took three times its own size.
    """

    def __init__(self, path: Path, name: str, dtype: torch.dtype) -> None:
        self._path = path
        self._name = name
        self._dtype = dtype

    def __getitem__(self, _: object) -> torch.Tensor:
        """Return all of it: no part is ever asked for."""
        with safe_open(self._path, framework="pt") as file:
            view = file.get_slice(self._name)
            shape = view.get_shape()
            first = view[:1] if shape else view[...]
        row_bytes = max(1, first.numel() * first.element_size())
        dtype = self._dtype if first.dtype.is_floating_point else first.dtype
        if not shape or row_bytes * shape[0] <= PIECE_BYTES:
            with safe_open(self._path, framework="pt") as file:
                # A copy: what is mapped stays in memory as long as one tensor of it.
                tensor: torch.Tensor = file.get_tensor(self._name).to(dtype, copy=True)
                return tensor
        whole = torch.empty(shape, dtype=dtype)
        step = max(1, PIECE_BYTES // row_bytes)
        for start in range(0, shape[0], step):
            end = min(start + step, shape[0])
            # Opened for each piece: closing is what gives the mapped pages back.
            with safe_open(self._path, framework="pt") as file:
                whole[start:end] = file.get_slice(self._name)[start:end]
        return whole


def _tensor_names(path: Path) -> list[str]:
    if path.suffix != ".safetensors":
        return []
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _head_modules(
    model: PreTrainedModel, family: Family | None
) -> Iterator[tuple[str, torch.nn.Module]]:
    """Give names and modules of what runs after the last layer, as far as that is known."""
    prefix = model.base_model_prefix
    if model.base_model is not model:
        for name, module in model.named_children():
            if module is not model.base_model:
                yield name, module
    for name in family.head if family is not None else ():
        part = getattr(model.base_model, name, None)
        if isinstance(part, torch.nn.Module):
            yield f"{prefix}.{name}", part


def _widen(
    _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (
        tuple(_as_float32(value) for value in args),
        {name: _as_float32(value) for name, value in kwargs.items()},
    )


def _as_float32(value: Any) -> Any:  # noqa: ANN401  a module's arguments
    is_half = isinstance(value, torch.Tensor) and value.dtype.is_floating_point
    return value.float() if is_half else value
