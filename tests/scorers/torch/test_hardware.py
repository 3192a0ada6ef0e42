"""Which device and number format are taken, and what is said where they are not there."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from rerank_plugins import Reranker
from rerank_plugins.errors import ConfigError, MissingExtraError
from rerank_plugins.options import Precision
from rerank_plugins.scorers.torch import hardware
from tests.tiny_torch import write_torch_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_without_its_package_a_torch_model_names_the_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_torch_model(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    reranker = Reranker(str(tmp_path), backend="torch")

    with pytest.raises(MissingExtraError, match=r"rerank-plugins\[torch\]") as caught:
        reranker.rank("a query", ["a document"])
    assert caught.value.package == package
    reranker.close()


def test_a_broken_package_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ModuleNotFoundError("No module named 'regex'", name="regex")

    monkeypatch.setattr(importlib, "import_module", broken)

    with pytest.raises(ModuleNotFoundError, match="regex"):
        hardware.import_torch("this")


def see(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    """Let torch find so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("asked", "cuda", "mps", "expected"),
    [
        ("auto", 2, False, "cuda:0"),
        ("auto", 0, True, "mps"),
        ("auto", 0, False, "cpu"),
        ("cuda", 1, False, "cuda:0"),
        ("cuda:1", 2, False, "cuda:1"),
        ("mps", 0, True, "mps"),
        ("cpu", 2, False, "cpu"),
    ],
)
def test_the_device_is_the_best_that_is_there(
    asked: str, cuda: int, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(monkeypatch, cuda=cuda, mps=mps)

    assert str(hardware.choose_device(asked)) == expected


@pytest.mark.parametrize(
    ("asked", "cuda", "said"),
    [
        ("cuda", 0, "finds no CUDA device, got 'cuda'; use device=\"auto\""),
        ("cuda:3", 2, "has 2 CUDA devices, got 'cuda:3'"),
        ("mps", 0, "no MPS"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    asked: str, cuda: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(monkeypatch, cuda=cuda)

    with pytest.raises(ConfigError, match="^device: .*" + said):
        hardware.choose_device(asked)


@pytest.mark.parametrize(
    ("device", "capability", "fast", "saved", "expected"),
    [
        ("cpu", None, "AMX", torch.float32, Precision.BF16),
        ("cpu", None, "AVX512-BF16", None, Precision.BF16),
        ("cpu", None, None, torch.bfloat16, Precision.FP32),
        ("cuda", 9, None, torch.float32, Precision.FP16),
        ("cuda", 8, None, torch.bfloat16, Precision.BF16),
        ("cuda", 7, None, torch.bfloat16, Precision.FP16),
        ("cuda", 6, None, torch.float16, Precision.FP32),
        ("mps", None, "AMX", torch.float16, Precision.FP32),
    ],
)
def test_the_precision_is_what_the_hardware_is_fast_in(
    device: str,
    capability: int | None,
    fast: str | None,
    saved: torch.dtype | None,
    expected: Precision,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "fast_bf16", lambda: fast)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (capability, 0))

    found = hardware.choose_precision(Precision.AUTO, torch.device(device), saved)

    assert found.precision is expected
    assert found.why


@pytest.mark.parametrize("asked", [Precision.INT8, Precision.INT4])
def test_weights_alone_are_rounded_and_computed_with_in_what_auto_would_take(
    asked: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "fast_bf16", lambda: "AMX")
    there = hardware.choose_precision(asked, torch.device("cpu"), None)
    monkeypatch.setattr(hardware, "fast_bf16", lambda: None)
    missing = hardware.choose_precision(asked, torch.device("cpu"), None)

    assert there == (asked, "as set; computed in bf16: the CPU has AMX", Precision.BF16)
    assert (missing.precision, missing.arithmetic) == (asked, Precision.FP32)


def test_weights_are_not_rounded_on_mps_where_nobody_tried_it() -> None:
    with pytest.raises(ConfigError, match=r'^precision: .*int4 were not tried on mps; use .*"cpu"'):
        hardware.choose_precision(Precision.INT4, torch.device("mps"), None)


def test_a_torch_without_the_probes_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, probe, raising=False)

    assert hardware.fast_bf16.__wrapped__() is None
