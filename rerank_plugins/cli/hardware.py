"""What this machine is, as far as it matters for scoring."""

from __future__ import annotations

import os
import platform
import re


def cpu_name(cpuinfo: str) -> str:
    """Return the processor's name from Linux's *cpuinfo*, or else what Python knows."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine() or "unknown"


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
