"""Linear layers whose weights are kept in 8 or 4 bits, and computed with in the model's format.

A group of neighbouring inputs shares a scale. In each forward pass a layer's weights are widened
and multiplied as usual, so a logit depends on its batch no more than it does in that format.
torch's products of packed weights are made for one token at a time, and slower for a batch.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn.functional import linear

from rerank_plugins.errors import ModelLoadError
from rerank_plugins.options import Precision
from rerank_plugins.scorers.torch.allocator import return_memory
from rerank_plugins.scorers.torch.checkpoint import Weight, is_stand_in, tensor_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from rerank_plugins.models.files import ModelFiles

logger = logging.getLogger(__name__)

GROUP: Final = {Precision.INT8: 128, Precision.INT4: 32}
"""Inputs that share a scale: four bits need it finer."""

PIECE: Final = 1_000_000
"""Weights that are rounded at a time, each in a few float32 numbers."""


def group_of(inputs: int, precision: Precision) -> int | None:
    """Return how many of a layer's *inputs* share a scale; None where it cannot be quantised."""
    group = GROUP[precision]
    if inputs % group == 0:
        return group
    return inputs if precision is Precision.INT8 else None


class QuantizedLinear(nn.Module):
    """A linear layer of *weight*, (outputs, inputs) in any number format, rounded to integers.

    Raises:
        ValueError: the inputs cannot be divided into groups.
    """

    levels: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        precision: Precision,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        group = group_of(weight.shape[1], precision)
        if group is None:
            raise ValueError(f"{weight.shape[1]} inputs are no multiple of {GROUP[precision]}")
        self.group = group
        self.packed = precision is Precision.INT4
        step = max(1, PIECE // weight.shape[1])
        pieces = [self._round(piece, dtype) for piece in weight.split(step)]
        self.register_buffer("levels", torch.cat([levels for levels, _ in pieces]))
        self.register_buffer("scales", torch.cat([scales for _, scales in pieces]))
        self.register_buffer("bias", bias)

    def _round(self, weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return levels, (outputs, inputs) int8 or (outputs, inputs / 2) uint8, and scales.

        Scales are (outputs, groups, 1) in *dtype*, in which they are exact.
        """
        lowest = -8 if self.packed else -128
        groups = weight.float().view(len(weight), -1, self.group)
        # The weight that is farthest from zero gets the lowest level: there is one more below zero.
        farthest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
        scales = (farthest / lowest).to(dtype)
        divisors = torch.where(scales == 0, 1, scales.float())
        levels = (groups / divisors).round_().clamp_(lowest, -lowest - 1).view(weight.shape)
        if not self.packed:
            return levels.to(torch.int8), scales
        low, high = (levels + 8).to(torch.uint8).chunk(2, dim=1)
        return low | (high << 4), scales

    def widened(self) -> torch.Tensor:
        """Return the rounded weights in the format of the scales, (outputs, inputs)."""
        if self.packed:
            outputs, half = self.levels.shape
            weight = self.scales.new_empty(outputs, 2 * half)
            weight[:, :half] = self.levels & 15
            weight[:, half:] = self.levels >> 4
            weight -= 8
        else:
            weight = self.levels.to(self.scales.dtype)
        weight.view(len(weight), -1, self.group).mul_(self.scales)
        return weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map (…, inputs) to (…, outputs)."""
        return linear(states, self.widened(), self.bias)


def quantize(
    model: PreTrainedModel, precision: Precision, files: ModelFiles, device: torch.device
) -> None:
    """Round the weights of the linear modules in the layers of *model*, one module at a time.

    They are moved to *device* as they are rounded, and stand-ins are read from *files*. Embeddings,
    norms and the head stay as they are, and so does a module whose inputs do not fit into groups.

    Raises:
        ModelLoadError: not one module could be rounded.
    """
    saved = {name: path for path in files.weights for name in tensor_names(path)}
    stays = []
    rounded = 0
    for path, module in list(_linear_modules(model)):
        name = f"{path}.weight"
        weight = module.weight.detach()
        if is_stand_in(weight):
            stored = next(n for n in _names_of(model, name) if n in saved)
            weight = Weight(saved[stored], stored, torch.float32)[...]
        if group_of(module.in_features, precision) is None:
            stays.append(path)
            module.weight.data = weight.to(module.weight.dtype)
            continue
        bias: torch.Tensor | None = module.bias
        quantized = QuantizedLinear(
            weight.to(device),
            None if bias is None else bias.detach().to(device),
            precision,
            module.weight.dtype,
        )
        model.set_submodule(path, quantized)
        del weight, module, quantized
        rounded += 1
        return_memory()
    if not rounded:
        raise ModelLoadError(
            files.name,
            f"none of its weights can be kept in {precision}: its layers have no linear modules "
            f'of a multiple of {GROUP[precision]} inputs; take precision="auto"',
        )
    if stays:
        logger.info(
            "%s: %d of %d linear modules do not fit into groups of %d inputs and are not kept in "
            "%s, such as %s",
            files.name,
            len(stays),
            rounded + len(stays),
            GROUP[precision],
            precision,
            stays[0],
        )


def quantizable_names(model: PreTrainedModel) -> frozenset[str]:
    """Return the names that the weights which `quantize` rounds may have in a checkpoint."""
    return frozenset(
        name for path, _ in _linear_modules(model) for name in _names_of(model, f"{path}.weight")
    )


def _names_of(model: PreTrainedModel, name: str) -> tuple[str, str]:
    """Return what a weight may be called in a checkpoint: of the base model alone, or of all."""
    prefix = f"{model.base_model_prefix}."
    return name.removeprefix(prefix), prefix + name.removeprefix(prefix)


def _linear_modules(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    """Give the linear modules of a model's layers, which are what its base model has lists of."""
    base = model.base_model
    lists = tuple(
        f"{path}." for path, module in base.named_modules() if isinstance(module, nn.ModuleList)
    )
    prefix = "" if base is model else f"{model.base_model_prefix}."
    for path, module in base.named_modules():
        if type(module) is nn.Linear and path.startswith(lists):
            yield prefix + path, module
