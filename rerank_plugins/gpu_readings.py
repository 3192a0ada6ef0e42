"""What NVIDIA's management library says of the GPUs of this machine, where it says anything."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# Opening and closing the library are counted inside it, not safely for two threads.
_READING = threading.Lock()


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU by the library's own number; ``values`` lacks what the GPU does not tell."""

    device: str
    values: Mapping[str, float]


def read_gpus() -> list[GpuReading]:
    """Read memory in bytes and utilisation from 0 to 1 of every GPU; empty where none tells."""
    # Whatever is wrong with a driver, the page keeps its other metrics.
    with contextlib.suppress(Exception), _READING:
        import pynvml

        # Opened each time, some milliseconds: what is kept open does not outlive a fork.
        pynvml.nvmlInit()
        try:
            return [
                GpuReading(str(number), _read(pynvml, number))
                for number in range(pynvml.nvmlDeviceGetCount())
            ]
        finally:
            pynvml.nvmlShutdown()
    return []


def _read(nvml: Any, number: int) -> dict[str, float]:  # noqa: ANN401  the library has no types
    values: dict[str, float] = {}
    # A part of a GPU, or an old one, tells less.
    with contextlib.suppress(nvml.NVMLError):
        memory = nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(number))
        values["device_memory_used_bytes"] = memory.used
        values["device_memory_total_bytes"] = memory.total
    with contextlib.suppress(nvml.NVMLError):
        rates = nvml.nvmlDeviceGetUtilizationRates(nvml.nvmlDeviceGetHandleByIndex(number))
        values["device_utilization_ratio"] = rates.gpu / 100
    return values
