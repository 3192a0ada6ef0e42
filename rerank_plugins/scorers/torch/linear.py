"""Linear layers for the CPU: weights in oneDNN's own order, a GELU in the same pass.

torch reorders the weights of a linear layer in every call, and walks memory again for the GELU
after it. The operators used here are those that torch's own compiler emits for the same purpose
(``torch/_inductor/fx_passes/mkldnn_fusion.py``). Their names are private: where they are missing
or give another result than `torch.nn.Linear`, layers stay as they are.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn.functional import gelu, linear

if TYPE_CHECKING:
    from rerank_plugins.models.layouts import Layout

ROWS_EXPECTED: Final = 2048
"""Rows that the order of the weights is chosen for; any number is computed."""

TOLERANCE: Final = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""How far the trial may be off, relative to values near 1."""


GELUS: Final = ("none", "tanh")
"""Kinds of GELU that can be fused, as `torch.nn.functional.gelu` names its approximations."""


class PrepackedLinear(nn.Module):
    """A linear layer, with a *gelu* after it where one of `GELUS` is named."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, gelu: str | None = None
    ) -> None:
        super().__init__()
        self.weight: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_EXPECTED)
        self.bias = bias
        self.gelu = gelu

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map (…, inputs) to (…, outputs)."""
        after = "none" if self.gelu is None else "gelu"
        mapped: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self.weight, self.bias, after, [], self.gelu or "none"
        )
        return mapped


def prepack(layers: list[nn.Module], layout: Layout) -> None:
    """Replace the linear modules in *layers* by prepacked ones, where this machine has them."""
    weight = next((p for layer in layers for p in layer.parameters() if p.ndim == 2), None)
    if weight is None or weight.device.type != "cpu" or not _works(weight.dtype):
        return
    for layer in layers:
        if layout.gelu is not None:
            _fuse_gelu(layer, *layout.gelu)
        for path, module in list(layer.named_modules()):
            if type(module) is nn.Linear:
                layer.set_submodule(path, _prepacked(module))
        return_memory()


def return_memory() -> None:
    """Give the pages of replaced weights back to the system, where the C library can.

    glibc keeps them, in holes that the next layer's reordered weights do not fit into.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _fuse_gelu(layer: nn.Module, linear_path: str, gelu_path: str) -> None:
    """Compute the GELU with the linear module before it, if it is one of `GELUS`."""
    before, activation = layer.get_submodule(linear_path), layer.get_submodule(gelu_path)
    kind = _gelu_kind(activation)
    if type(before) is nn.Linear and kind is not None:
        layer.set_submodule(linear_path, _prepacked(before, gelu=kind))
        layer.set_submodule(gelu_path, nn.Identity())


def _gelu_kind(activation: nn.Module) -> str | None:
    """Return which of `GELUS` *activation* computes, by its values; None where it is another."""
    # Some are clipped, far out.
    far = torch.tensor([-1e3, -50.0, -12.0, 12.0, 50.0, 1e3], device="cpu")
    values = torch.cat([torch.linspace(-6, 6, 97, device="cpu"), far])
    with torch.inference_mode():
        found = activation(values)
        for kind in GELUS:
            if torch.allclose(found, gelu(values, approximate=kind), rtol=0, atol=1e-6):
                return kind
    return None


def _prepacked(module: nn.Linear, *, gelu: str | None = None) -> PrepackedLinear:
    bias: torch.Tensor | None = module.bias
    return PrepackedLinear(
        module.weight.detach(), None if bias is None else bias.detach(), gelu=gelu
    )


def _works(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators for *dtype*, and they compute what they should."""
    if dtype not in TOLERANCE:
        return False
    random = torch.Generator("cpu").manual_seed(0)
    weight, bias, states = (
        torch.randn(shape, generator=random, device="cpu").to(dtype)
        for shape in ((48, 64), (48,), (1, 5, 64))
    )
    weight /= 8
    with torch.inference_mode():
        expected = gelu(linear(states.float(), weight.float(), bias.float()))
        try:
            found = PrepackedLinear(weight, bias, gelu="none")(states)
        # Missing names are AttributeError; what a build refuses is RuntimeError.
        except (AttributeError, RuntimeError):
            return False
    return bool((found.float() - expected).abs().max() < TOLERANCE[dtype])
