"""Tensors of a safetensors checkpoint, each read straight into its final number format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PIECE_BYTES: Final = 64_000_000
"""How much of a tensor is read at a time: what loading takes beside the model itself."""


class Weight:
    """A tensor in a safetensors file, read piece by piece when transformers asks for it.

    transformers reads whole files into memory, or maps them, and converts afterwards: beside a
    float32 checkpoint, a model in half precision took three times its own size.

    One that is wanted *later* gives a stand-in of its shape that takes no memory (`is_stand_in`).
    """

    def __init__(self, path: Path, name: str, dtype: torch.dtype, *, later: bool = False) -> None:
        self._path = path
        self._name = name
        self._dtype = dtype
        self._later = later

    def __getitem__(self, _: object) -> torch.Tensor:
        """Return all of it: no part is ever asked for."""
        with safe_open(self._path, framework="pt") as file:
            view = file.get_slice(self._name)
            shape = view.get_shape()
            first = view[:1] if shape else view[...]
        if self._later:
            # Not a number: one that is computed with shows itself in the trial run.
            return torch.full((1,), torch.nan, dtype=self._dtype, device="cpu").expand(shape)
        row_bytes = max(1, first.numel() * first.element_size())
        dtype = self._dtype if first.dtype.is_floating_point else first.dtype
        if not shape or row_bytes * shape[0] <= PIECE_BYTES:
            with safe_open(self._path, framework="pt") as file:
                # A copy: what is mapped stays in memory as long as one tensor of it.
                tensor: torch.Tensor = file.get_tensor(self._name).to(dtype, copy=True)
                return tensor
        whole = torch.empty(shape, dtype=dtype, device="cpu")
        step = max(1, PIECE_BYTES // row_bytes)
        for start in range(0, shape[0], step):
            end = min(start + step, shape[0])
            # Opened for each piece: closing is what gives the mapped pages back.
            with safe_open(self._path, framework="pt") as file:
                whole[start:end] = file.get_slice(self._name)[start:end]
        return whole


def tensor_places(weights: Sequence[Path]) -> dict[str, Path]:
    """Return the file of each tensor of a checkpoint by its name, pickled files included."""
    places: dict[str, Path] = {}
    for path in weights:
        names = tensor_names(path) or list(_unpickled(path))
        places |= dict.fromkeys(names, path)
    return places


def read_rows(path: Path, name: str, rows: Sequence[int] | None = None) -> torch.Tensor:
    """Return *rows* of a tensor, all where None, in float32; no other is read of safetensors.

    Raises:
        IndexError: it has no such row.
    """
    if path.suffix != ".safetensors":
        saved = _unpickled(path)[name]
        return (saved if rows is None else saved[list(rows)]).float()
    with safe_open(path, framework="pt") as file:
        if rows is None:
            whole: torch.Tensor = file.get_tensor(name)
            return whole.to(torch.float32, copy=True)
        view = file.get_slice(name)
        if not all(0 <= row < view.get_shape()[0] for row in rows):
            raise IndexError(f"{name} has {view.get_shape()[0]} rows")
        return torch.cat([view[row : row + 1] for row in rows]).to(torch.float32, copy=True)


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    """Map a pickled checkpoint, of tensors alone, into memory."""
    if path.suffix == ".safetensors":
        return {}
    found: dict[str, torch.Tensor] = torch.load(
        path, map_location="cpu", mmap=True, weights_only=True
    )
    return found


def is_stand_in(tensor: torch.Tensor) -> bool:
    """Whether *tensor* stands for a weight that is read later."""
    return tensor.ndim > 0 and not any(tensor.stride()) and tensor.numel() > 1


def tensor_names(path: Path) -> list[str]:
    """Return the names of a safetensors file's tensors; a pickled file's are not looked at."""
    if path.suffix != ".safetensors":
        return []
    with safe_open(path, framework="pt") as file:
        return list(file.keys())
