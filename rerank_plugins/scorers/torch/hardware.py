"""What torch can run on here: the device, and the number format that it computes in fastest."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from rerank_plugins.errors import ConfigError, MissingExtraError
from rerank_plugins.options import WEIGHT_ONLY, Precision

if TYPE_CHECKING:
    from types import ModuleType

    import torch


TENSOR_CORES, BF16_CORES = 7, 8
"""Compute capability from which a GPU is fast in fp16 (Volta), and in bf16 too (Ampere)."""


class PrecisionChoice(NamedTuple):
    """The number format of the weights, and why; ``arithmetic`` is what is computed in."""

    precision: Precision
    why: str
    arithmetic: Precision


def import_torch(needed_for: str) -> ModuleType:
    """Return torch, once transformers is known to be there too.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    for package in ("transformers", "torch"):
        try:
            module = importlib.import_module(package)
        except ModuleNotFoundError as exc:
            if exc.name is not None and exc.name.split(".")[0] not in {"torch", "transformers"}:
                raise
            raise MissingExtraError(package=package, extra="torch", needed_for=needed_for) from None
    return module


def choose_device(device: str) -> torch.device:
    """Return the device that the setting *device* names; ``auto`` is CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: there is none such here.
    """
    import torch

    if device == "cpu":
        return torch.device("cpu")
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda:0" if cuda else "mps" if mps else "cpu")
    kind, _, number = device.partition(":")
    if kind == "cuda" and int(number or 0) >= cuda:
        there = f"has {cuda} CUDA devices" if cuda else "finds no CUDA device"
        raise ConfigError(
            f"device: this torch ({torch.__version__}) {there}, got {device!r}; use "
            'device="auto", or install a build of torch for your driver'
        )
    if kind == "mps" and not mps:
        raise ConfigError('device: this machine has no MPS (Apple GPU); use device="auto"')
    return torch.device(f"cuda:{number or 0}" if kind == "cuda" else kind)


def choose_precision(
    asked: Precision, device: torch.device, saved: torch.dtype | None
) -> PrecisionChoice:
    """Return the number format to keep weights and to compute in; *saved* is the checkpoint's own.

    Raises:
        ConfigError: the device has no such format.
    """
    import torch

    if asked not in {Precision.AUTO, *WEIGHT_ONLY}:
        return PrecisionChoice(asked, "as set", asked)
    if asked in WEIGHT_ONLY and device.type == "mps":
        raise ConfigError(
            f'precision: weights in {asked} were not tried on mps; use precision="fp16", or '
            'device="cpu"'
        )
    if device.type == "cuda":
        best, why = _cuda_precision(torch.cuda.get_device_capability(device)[0], saved)
    elif device.type == "cpu":
        fast = fast_bf16()
        best = Precision.FP32 if fast is None else Precision.BF16
        why = f"the CPU has {fast or 'neither AMX nor AVX512-BF16'}"
    else:
        best, why = Precision.FP32, f"half precision was not measured on {device.type}"
    if asked in WEIGHT_ONLY:
        return PrecisionChoice(asked, f"as set; computed in {best}: {why}", best)
    return PrecisionChoice(best, why, best)


def _cuda_precision(capability: int, saved: torch.dtype | None) -> tuple[Precision, str]:
    import torch

    if capability < TENSOR_CORES:
        return Precision.FP32, "the GPU has no tensor cores"
    if saved is torch.bfloat16 and capability >= BF16_CORES:
        return Precision.BF16, "the checkpoint's own, and the GPU has it"
    return Precision.FP16, "GPUs compute fastest in half precision"


@cache
def fast_bf16() -> str | None:
    """Return the CPU's instructions for bf16 matrix products by name, or None."""
    import torch

    # These probes have no public names; a torch without them computes in float32.
    for probe, name in (
        ("_is_amx_tile_supported", "AMX"),
        ("_is_avx512_bf16_supported", "AVX512-BF16"),
    ):
        found = getattr(torch.cpu, probe, None)
        if found is not None and found():
            return name
    return None


def torch_dtype(precision: Precision) -> torch.dtype:
    """Return torch's name for *precision*, one that is computed in."""
    import torch

    return {
        Precision.FP32: torch.float32,
        Precision.FP16: torch.float16,
        Precision.BF16: torch.bfloat16,
    }[precision]
