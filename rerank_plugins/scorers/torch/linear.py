"""Linear layers for the CPU: weights in oneDNN's own order, a GELU in the same pass.

torch reorders the weights of a linear layer in every call, and walks memory again for the GELU
after it. The operators used here are those that torch's own compiler emits for the same purpose
(``torch/_inductor/fx_passes/mkldnn_fusion.py``). Their names are private: where they are missing
or give another result than `torch.nn.Linear`, layers stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn.functional import gelu, linear

if TYPE_CHECKING:
    from rerank_plugins.models.families import Family

ROWS_EXPECTED: Final = 2048
"""Rows that the order of the weights is chosen for; any number is computed."""

TOLERANCE: Final = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""How far the trial may be off, relative to values near 1."""


class PrepackedLinear(nn.Module):
    """A linear layer, with an exact GELU after it if *with_gelu*."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, with_gelu: bool = False
    ) -> None:
        super().__init__()
        self.weight: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_EXPECTED)
        self.bias = bias
        self._after = "gelu" if with_gelu else "none"

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map (…, inputs) to (…, outputs)."""
        mapped: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self.weight, self.bias, self._after, [], "none"
        )
        return mapped


def prepack(layers: list[nn.Module], family: Family | None) -> bool:
    """Replace the linear modules in *layers* by prepacked ones; returns whether that was done."""
    weight = next((p for layer in layers for p in layer.parameters() if p.ndim == 2), None)
    if weight is None or weight.device.type != "cpu" or not _works(weight.dtype):
        return False
    for layer in layers:
        if family is not None and family.gelu is not None:
            _fuse_gelu(layer, *family.gelu)
        for path, module in list(layer.named_modules()):
            if type(module) is nn.Linear:
                layer.set_submodule(path, _prepacked(module))
    return True


def _fuse_gelu(layer: nn.Module, linear_path: str, gelu_path: str) -> None:
    """Compute the GELU with the linear module before it, if it is the exact one."""
    before, activation = layer.get_submodule(linear_path), layer.get_submodule(gelu_path)
    if type(before) is nn.Linear and _is_exact_gelu(activation):
        layer.set_submodule(linear_path, _prepacked(before, with_gelu=True))
        layer.set_submodule(gelu_path, nn.Identity())


def _is_exact_gelu(activation: nn.Module) -> bool:
    """Whether *activation* computes x·Φ(x) by the error function, and nothing approximate."""
    values = torch.linspace(-6, 6, 97)
    with torch.inference_mode():
        return bool(torch.allclose(activation(values), gelu(values), rtol=0, atol=1e-7))


def _prepacked(module: nn.Linear, *, with_gelu: bool = False) -> PrepackedLinear:
    bias: torch.Tensor | None = module.bias
    return PrepackedLinear(
        module.weight.detach(), None if bias is None else bias.detach(), with_gelu=with_gelu
    )


def _works(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators for *dtype*, and they compute what they should."""
    if dtype not in TOLERANCE:
        return False
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 64, generator=random).to(dtype) / 8
    bias = torch.randn(48, generator=random).to(dtype)
    states = torch.randn(1, 5, 64, generator=random).to(dtype)
    with torch.inference_mode():
        expected = gelu(linear(states.float(), weight.float(), bias.float()))
        try:
            found = PrepackedLinear(weight, bias, with_gelu=True)(states)
        # Missing names are AttributeError; what a build refuses is RuntimeError.
        except (AttributeError, RuntimeError):
            return False
    return bool((found.float() - expected).abs().max() < TOLERANCE[dtype])
