"""GPUs are read where they can be, and what cannot be read is silent."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from rerank_plugins.gpu_readings import GpuReading, read_gpus
from rerank_plugins.metrics import PrometheusObserver


class NvmlError(Exception):
    """What the library raises."""


class FakeNvml(ModuleType):
    """Two GPUs; *broken* names functions that fail, *half* one that fails for the second GPU."""

    NVMLError = NvmlError

    def __init__(self, *broken: str, half: str = "", error: type[Exception] = NvmlError) -> None:
        super().__init__("pynvml")
        self._broken = broken
        self._half = half
        self._error = error
        self.open = 0

    def _check(self, name: str, gpu: int = 0) -> None:
        if name in self._broken or (gpu == 1 and name == self._half):
            raise self._error(name)

    def nvmlInit(self) -> None:  # noqa: N802
        self._check("nvmlInit")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1
        self._check("nvmlShutdown")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        assert self.open == 1
        self._check("nvmlDeviceGetCount")
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:  # noqa: N802
        self._check("nvmlDeviceGetHandleByIndex", number)
        return number

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Any:  # noqa: N802
        self._check("nvmlDeviceGetMemoryInfo", gpu)
        return SimpleNamespace(used=1000 + gpu, total=5000, free=4000 - gpu)

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Any:  # noqa: N802
        self._check("nvmlDeviceGetUtilizationRates", gpu)
        return SimpleNamespace(gpu=25, memory=80)


def memory(gpu: int) -> dict[str, float]:
    return {"device_memory_used_bytes": 1000 + gpu, "device_memory_total_bytes": 5000}


def test_memory_is_in_bytes_and_utilisation_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    registry = CollectorRegistry()
    PrometheusObserver(registry)

    def value(name: str, device: str) -> float | None:
        return registry.get_sample_value(f"rerank_plugins_{name}", {"device": device})

    assert value("device_memory_used_bytes", "0") == 1000
    assert value("device_memory_used_bytes", "1") == 1001
    assert value("device_memory_total_bytes", "1") == 5000
    assert value("device_utilization_ratio", "0") == 0.25
    assert nvml.open == 0


def test_registering_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerank_plugins.metrics.read_gpus", lambda: pytest.fail("it was read"))

    PrometheusObserver(CollectorRegistry(auto_describe=True))


def test_what_one_gpu_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(half="nvmlDeviceGetUtilizationRates")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)

    assert read_gpus() == [
        GpuReading("0", {**memory(0), "device_utilization_ratio": 0.25}),
        GpuReading("1", memory(1)),
    ]
    assert nvml.open == 0


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetCount"])
@pytest.mark.parametrize("error", [NvmlError, OSError])
def test_a_library_that_fails_is_silent(
    broken: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml(broken, error=error)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)

    assert read_gpus() == []
    assert nvml.open == 0


def test_a_library_that_is_not_there_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)

    assert read_gpus() == []


def test_the_library_that_is_installed_has_what_is_asked_of_it() -> None:
    pynvml = pytest.importorskip("pynvml")

    asked = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    assert all(callable(getattr(pynvml, name)) for name in [*asked, "NVMLError"])
