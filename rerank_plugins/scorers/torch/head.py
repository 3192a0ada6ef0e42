"""What runs after a model's last layer, kept in float32 where the layers are in half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rerank_plugins.scorers.torch.checkpoint import Weight, tensor_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from rerank_plugins.models.files import ModelFiles
    from rerank_plugins.models.layouts import Layout


def widen_head(model: PreTrainedModel, layout: Layout | None, files: ModelFiles) -> None:
    """Let what runs after the last layer compute in float32, its weights as they were saved."""
    saved = {name: path for path in files.weights for name in tensor_names(path)}
    for name, module in _head_modules(model, layout):
        module.float()
        for part, parameter in module.named_parameters():
            if (path := saved.get(f"{name}.{part}")) is not None:
                weight = Weight(path, f"{name}.{part}", torch.float32)
                parameter.data.copy_(weight[...])
        module.register_forward_pre_hook(_widen, with_kwargs=True)


def _head_modules(
    model: PreTrainedModel, layout: Layout | None
) -> Iterator[tuple[str, torch.nn.Module]]:
    """Give names and modules of what runs after the last layer, as far as that is known."""
    prefix = model.base_model_prefix
    if model.base_model is not model:
        for name, module in model.named_children():
            if module is not model.base_model:
                yield name, module
    for name in layout.head if layout is not None else ():
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
