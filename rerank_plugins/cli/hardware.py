"""What this machine is, as far as it matters for scoring."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Final

CPU_FEATURES: Final = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""Instructions that make matrix products faster, by their names in Linux."""

CPUINFO: Final = Path("/proc/cpuinfo")


def cpu_name(cpuinfo: str) -> str:
    """Return the processor's name from Linux's *cpuinfo*, or else what Python knows."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine() or "unknown"


def cpu_features(cpuinfo: str) -> list[str]:
    """Return which of `CPU_FEATURES` the processor has, as Linux lists them."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    there = set(found[1].split()) if found else set()
    return [feature for feature in CPU_FEATURES if feature in there]


def read_cpuinfo() -> str:
    """Return what Linux says of the processor; blank on other systems."""
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def usable_cores() -> int:
    """Return the cores that this process may run on, which a container may limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def onnxruntime_providers() -> list[str] | None:
    """Return what onnxruntime can run on, or None where it is not installed."""
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        return None
    return list(onnxruntime.get_available_providers())


def torch_devices() -> list[str] | None:
    """Return what torch can run on, or None where it is not installed or cannot be imported."""
    try:
        import torch
    except (ImportError, OSError):
        # A library that torch needs may be missing, which is an OSError.
        return None
    found = ["cpu"]
    if torch.backends.mps.is_available():
        found.append("mps")
    if torch.cuda.is_available():
        names = map(torch.cuda.get_device_name, range(torch.cuda.device_count()))
        found += [f"cuda:{number} ({name})" for number, name in enumerate(names)]
    return found
