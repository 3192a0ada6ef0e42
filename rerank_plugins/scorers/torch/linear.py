"""Layers for the CPU: weights in oneDNN's own order, an activation in the same pass, fused norms.

torch reorders the weights of a linear layer in every call, and walks memory again for the
activation after it; transformers computes a root mean square norm in six passes. The operators used
here are those that torch's own compiler emits for the same purpose
(``torch/_inductor/fx_passes/mkldnn_fusion.py``). Their names are private: where they are missing
or give another result than `torch.nn.Linear`, layers stay as they are.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import nn
from torch.nn.functional import gelu, linear, pad, rms_norm, silu

from rerank_plugins.scorers.torch.allocator import return_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from rerank_plugins.models.layouts import Layout

ROWS_EXPECTED: Final = 2048
"""Rows that the order of the weights is chosen for; any number is computed."""

TOLERANCE: Final = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""How far the trial may be off, relative to values near 1."""


class Fused(NamedTuple):
    """An activation that goes with a product: oneDNN's names for it, and what it computes."""

    name: str
    algorithm: str
    function: Callable[[torch.Tensor], torch.Tensor]


FUSED: Final[dict[str, Fused]] = {
    "gelu": Fused("gelu", "none", gelu),
    "gelu_tanh": Fused("gelu", "tanh", partial(gelu, approximate="tanh")),
    "silu": Fused("swish", "", silu),
}


class PrepackedLinear(nn.Module):
    """A linear layer, with one of `FUSED` after it where *activation* names one.

    With *in_pieces* it takes rows `in_pieces` of a few lengths.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        activation: str | None = None,
        in_pieces: bool = False,
    ) -> None:
        super().__init__()
        self.weight: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_EXPECTED)
        self.bias = bias
        self.activation = activation
        self._after = FUSED[activation][:2] if activation is not None else ("none", "")
        self._in_pieces = in_pieces
        self._outputs = weight.shape[0]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map (…, inputs) to (…, outputs)."""
        if self._in_pieces:
            return in_pieces(states, self._map, self._outputs)
        return self._map(states)

    def _map(self, states: torch.Tensor) -> torch.Tensor:
        name, algorithm = self._after
        mapped: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self.weight, self.bias, name, [], algorithm
        )
        return mapped


ROWS_AT_A_TIME: Final = 512
"""Rows whose intermediate states are alive at once: a few megabytes, which the C library keeps from
one layer to the next. It gives larger blocks back, and fetching their pages anew takes longer."""

PIECES: Final = (32, 64, 96, 128, 256, 384, ROWS_AT_A_TIME)
"""Rows that a product is asked for at once, where it goes `in_pieces`."""

FILLED_UP: Final = 128
"""As many rows, or fewer, are one piece and filled up to its length."""

NORM_PIECE: Final = 262_144
"""Numbers that a norm widens to float32 at a time: they stay in the processor's own cache, and no
block of memory is so large that the C library fetches it anew from the system for every norm."""


class FusedNorm(nn.Module):
    """A root mean square norm, computed in float32 and rounded once."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps
        self._wide = weight.detach().float()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Norm the last dimension."""
        size = states.shape[-1]
        if states.dtype is torch.float32:
            return rms_norm(states, (size,), self.weight, self.eps)
        normed = torch.empty_like(states, memory_format=torch.contiguous_format)
        rows = max(1, NORM_PIECE // size)
        for into, piece in zip(
            normed.view(-1, size).split(rows), states.reshape(-1, size).split(rows), strict=True
        ):
            # torch has no operator for this that widens once: its own takes half as long again.
            wide = piece.float()
            scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # (rows, 1)
            scale.square_().div_(size).add_(self.eps).rsqrt_()
            into.copy_(wide.mul_(scale).mul_(self._wide))
        return normed


class ByRows(nn.Module):
    """*module*, which maps each row alone, over `ROWS_AT_A_TIME` at most."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map (…, hidden) to the same shape."""
        return in_pieces(states, self.module, states.shape[-1])


def in_pieces(
    states: torch.Tensor, mapped: Callable[[torch.Tensor], torch.Tensor], outputs: int
) -> torch.Tensor:
    """Map (…, inputs) to (…, *outputs*) by *mapped*, which maps (1, rows, inputs), each row alone.

    The numbers of rows are those of `PIECES`: for every other one oneDNN would compile a kernel of
    half a megabyte, which it keeps. The last piece is filled up with zeros.
    """
    rows = states.reshape(1, -1, states.shape[-1])
    count = rows.shape[1]
    if count in PIECES:
        return mapped(rows).view(*states.shape[:-1], outputs)
    joined = rows.new_empty(1, count, outputs)
    start = 0
    while start < count:
        size = _piece(count - start)
        piece = rows[:, start : start + size]
        if (missing := size - piece.shape[1]) > 0:
            piece = pad(piece, (0, 0, 0, missing))
        into = joined[:, start : start + size]
        into.copy_(mapped(piece)[:, : into.shape[1]])
        start += size
    return joined.view(*states.shape[:-1], outputs)


def _piece(left: int) -> int:
    """Return the next of `PIECES` where so many rows are *left*."""
    if left <= FILLED_UP:
        return next(size for size in PIECES if size >= left)
    return max(size for size in PIECES if size <= left)


def go_by_rows(layers: list[nn.Module], layout: Layout) -> None:
    """Let the widest part of each of *layers*, which are on a CPU, take few rows at a time."""
    if layout.mlp is not None:
        for layer in layers:
            layer.set_submodule(layout.mlp, ByRows(layer.get_submodule(layout.mlp)))


def prepack(layers: list[nn.Module], layout: Layout) -> None:
    """Replace the linear modules in *layers* by prepacked ones, where this machine has them."""
    weight = next((p for layer in layers for p in layer.parameters() if p.ndim == 2), None)
    if weight is None or weight.device.type != "cpu" or not _works(weight.dtype):
        return
    for layer in layers:
        if layout.activation is not None:
            _fuse_activation(layer, *layout.activation, in_pieces=layout.causal)
        for path, module in list(layer.named_modules()):
            if type(module) is nn.Linear:
                layer.set_submodule(path, _prepacked(module, in_pieces=layout.causal))
        return_memory()


def _fuse_activation(
    layer: nn.Module, linear_path: str, activation_path: str, *, in_pieces: bool
) -> None:
    """Compute the activation with the linear module before it, if it is one of `FUSED`."""
    before, activation = layer.get_submodule(linear_path), layer.get_submodule(activation_path)
    kind = _kind(activation)
    if type(before) is nn.Linear and kind is not None:
        layer.set_submodule(linear_path, _prepacked(before, activation=kind, in_pieces=in_pieces))
        layer.set_submodule(activation_path, nn.Identity())


def _kind(activation: nn.Module) -> str | None:
    """Return which of `FUSED` *activation* computes, by its values; None where it is another."""
    # Some are clipped, far out.
    far = torch.tensor([-1e3, -50.0, -12.0, 12.0, 50.0, 1e3], device="cpu")
    values = torch.cat([torch.linspace(-6, 6, 97, device="cpu"), far])
    with torch.inference_mode():
        found = activation(values)
        for kind, fused in FUSED.items():
            if torch.allclose(found, fused.function(values), rtol=0, atol=1e-6):
                return kind
    return None


def fuse_norms(layers: list[nn.Module]) -> None:
    """Replace the norms in *layers* that are root mean square norms, as their values show."""
    for layer in layers:
        for path, module in list(layer.named_modules()):
            if (fused := _fused_norm(module)) is not None:
                layer.set_submodule(path, fused)


def _fused_norm(module: nn.Module) -> FusedNorm | None:
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", None)
    if (
        not isinstance(weight, torch.Tensor)
        or not isinstance(eps, float)
        or weight.ndim != 1
        or weight.device.type != "cpu"
        or weight.dtype not in TOLERANCE
    ):
        return None
    random = torch.Generator("cpu").manual_seed(0)
    states = torch.randn(1, 3, len(weight), generator=random, device="cpu").to(weight.dtype)
    fused = FusedNorm(weight, eps)
    with torch.inference_mode():
        expected = module(states)
        same = torch.allclose(
            fused(states).float(),
            expected.float(),
            rtol=TOLERANCE[weight.dtype],
            atol=TOLERANCE[weight.dtype] * float(expected.float().abs().max()),
        )
    return fused if same else None


def _prepacked(
    module: nn.Linear, *, activation: str | None = None, in_pieces: bool
) -> PrepackedLinear:
    bias: torch.Tensor | None = module.bias
    return PrepackedLinear(
        module.weight.detach(),
        None if bias is None else bias.detach(),
        activation=activation,
        in_pieces=in_pieces,
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
        plain = linear(states.float(), weight.float(), bias.float())
        for kind, fused in FUSED.items():
            try:
                found = PrepackedLinear(weight, bias, activation=kind)(states)
            # Missing names are AttributeError; what a build refuses is RuntimeError.
            except (AttributeError, RuntimeError):
                return False
            if (found.float() - fused.function(plain)).abs().max() >= TOLERANCE[dtype]:
                return False
    return True
