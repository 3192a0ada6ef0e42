"""A PyTorch model from its files, straight into the number format it will compute in."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from rerank_plugins.errors import ModelLoadError, first_line
from rerank_plugins.models.settings import needs_remote_code, other_kind
from rerank_plugins.options import Backend
from rerank_plugins.scorers.torch.building import BUILDING
from rerank_plugins.scorers.torch.checkpoint import Weight, tensor_names
from rerank_plugins.scorers.torch.quantized import quantizable_names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from transformers import PretrainedConfig

    from rerank_plugins.models.files import ModelFiles

logger = logging.getLogger(__name__)


class ModelKind(NamedTuple):
    """What is built of a checkpoint: by which class of transformers, from which tensors."""

    what: str
    auto: Any
    known: Collection[str]
    """Values of ``model_type`` that transformers has code of its own for."""
    unread: tuple[str, ...] = ()
    """How names of tensors begin that are not part of it."""


CROSS_ENCODER: Final = ModelKind(
    "a cross-encoder",
    AutoModelForSequenceClassification,
    frozenset(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
)
LANGUAGE_MODEL: Final = ModelKind(
    "a language model", AutoModel, frozenset(MODEL_MAPPING_NAMES), ("lm_head.", "score.")
)
"""Without its head: of the vocabulary's rows, only those of the answers are read."""


def load_model(
    files: ModelFiles,
    dtype: torch.dtype,
    kind: ModelKind = CROSS_ENCODER,
    *,
    trust_remote_code: bool = False,
    layers_later: bool = False,
) -> PreTrainedModel:
    """Build the model that config.json describes and fill it with the weights of *files*.

    With *layers_later*, weights that `quantize` will round may be stand-ins that it reads itself.

    Raises:
        ModelLoadError: it is not of that *kind*, needs code of its own, or its weights do not fit.
    """
    _check_supported(files, kind, trust_remote_code=trust_remote_code)
    try:
        with BUILDING:
            config = _read_config(files, trust_remote_code=trust_remote_code)
            with _silenced_report():
                model, report = _build(
                    files,
                    config,
                    dtype,
                    kind,
                    trust_remote_code=trust_remote_code,
                    layers_later=layers_later,
                )
    except ModelLoadError:
        raise
    # Settings and weights of strangers meet code of many hands: it raises anything.
    except Exception as exc:
        other = _another(files, kind)
        what = f"it is {other}: " if other else ""
        raise ModelLoadError(
            files.name,
            f"{what}transformers {transformers_version} cannot build it: "
            f"{type(exc).__name__}: {first_line(exc)}",
        ) from exc
    _check_fit(files, report, kind)
    return model


def _check_supported(files: ModelFiles, kind: ModelKind, *, trust_remote_code: bool) -> None:
    """Raise `ModelLoadError` where code or number formats of a model's own stand in the way."""
    is_known = files.config.get("model_type") in kind.known
    if kind is LANGUAGE_MODEL and not is_known:
        raise ModelLoadError(
            files.name,
            f"transformers {transformers_version} has no language model of model_type "
            f"{files.config.get('model_type')!r}, and code of a model's own is not run for one",
        )
    if needs_remote_code(files.config) and not trust_remote_code and not is_known:
        raise ModelLoadError(
            files.name,
            "its architecture is code in its own repository, which loading it would run. If you "
            "trust that code, set trust_remote_code=True, and revision to a commit you have read",
        )
    if not is_known and (elsewhere := _code_elsewhere(files.config)):
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


def saved_dtype(files: ModelFiles) -> torch.dtype | None:
    """Return the number format that config.json says the weights were saved in."""
    named = files.config.get("dtype") or files.config.get("torch_dtype")
    found = getattr(torch, named, None) if isinstance(named, str) else None
    return found if isinstance(found, torch.dtype) else None


def _code_elsewhere(config: Mapping[str, Any]) -> str | None:
    """Return the other repository that ``auto_map`` names as the home of a model's code."""
    if not needs_remote_code(config):
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
    kind: ModelKind,
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
        built = kind.auto.from_pretrained(
            files.folder, trust_remote_code=True, local_files_only=True, **options
        )
        return built
    with torch.device("meta"):
        # Never None, for which transformers would ask on the terminal whether to run code.
        empty = kind.auto.from_config(config, trust_remote_code=False)
    of: Any = type(empty)
    if any(path.suffix == ".safetensors" for path in files.weights):
        later = quantizable_names(empty) if layers_later else frozenset()
        weights = {
            name: Weight(path, name, dtype, later=name in later)
            for path in files.weights
            for name in tensor_names(path)
            if not name.startswith(kind.unread)
        }
        built = of.from_pretrained(None, state_dict=weights, **options)
    elif files.backend is Backend.TORCH:
        built = of.from_pretrained(
            files.folder, use_safetensors=False, local_files_only=True, **options
        )
    else:
        raise ModelLoadError(files.name, "these are not PyTorch weights, but an ONNX file")
    return built


def _check_fit(files: ModelFiles, report: Mapping[str, Any], kind: ModelKind) -> None:
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
        other = _another(files, kind)
        what = f"it is {other}" if other else "its checkpoint is incomplete"
        code = (
            ". Its repository has code of its own for it, which trust_remote_code=True would run"
            if needs_remote_code(files.config)
            else ""
        )
        raise ModelLoadError(
            files.name, f"{what}: there are no weights for {', '.join(missing[:4])}{code}"
        )


def _another(files: ModelFiles, kind: ModelKind) -> str | None:
    """Return what else the model is, as far as its config.json says."""
    other = other_kind(files.config) if kind is CROSS_ENCODER else None
    if other is None:
        return None
    advice = (
        ' (to ask it about each pair all the same, name its family: family="yes-no", or a file)'
        if other.startswith("a causal language model")
        else ""
    )
    return f"{other}, not {kind.what}{advice}"


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
