"""`rerank-plugins info`: what it finds, and that it never fails for what it does not."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import pytest

from rerank_plugins.cli import hardware
from rerank_plugins.errors import ModelLoadError

if TYPE_CHECKING:
    from rerank_plugins.config import RerankConfig
    from tests.cli.conftest import Run

CPUINFO = """\
processor\t: 0
model name\t: Some Processor 9000
flags\t\t: fpu sse avx2 avx512f avx512_vnni amx_bf16 zzz
"""


def test_json_says_what_would_run_and_why(run: Run, opened: list[RerankConfig]) -> None:
    found = run("info", "some/model", "--json", "--batch-tokens", "77")

    report = json.loads(found.out)
    assert found.code == 0
    assert set(report) == {"machine", "packages", "model"}
    model = report["model"]
    assert model["name"] == "some/model"
    assert model["backend"]["value"] == "onnx"
    assert model["scorer"] == "some/model"
    assert model["identity"] == "some/model@512"
    assert model["batch_tokens"] == 77
    assert model["languages"] == "any"
    assert model["problem"] is None
    assert opened[0].local_files_only


@pytest.mark.parametrize(("model", "backend"), [("lexical", "lexical"), ("embedded", "embedded")])
def test_models_that_ship_with_the_package_run_on_the_cpu(
    run: Run, model: str, backend: str
) -> None:
    report = json.loads(run("info", model, "--json").out)["model"]

    assert report["backend"]["value"] == backend
    assert report["device"]["value"] == "cpu"


def test_what_is_set_is_said_to_be_set(run: Run) -> None:
    report = json.loads(
        run("info", "a/b", "--json", "--device", "cuda:1", "--precision", "fp16").out
    )["model"]

    assert report["device"] == {"value": "cuda:1", "why": "as set"}
    assert report["precision"] == {"value": "fp16", "why": "as set"}


def test_a_model_that_cannot_be_opened_is_a_finding(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(config: RerankConfig) -> None:
        raise ModelLoadError(config.model, "it is not on this machine")

    monkeypatch.setattr("rerank_plugins.scorers.open_scorer", refuse)

    found = run("info", "a/b")

    assert found.code == 0
    assert "cannot load 'a/b': it is not on this machine" in found.out


def test_a_missing_package_comes_with_its_pip_command(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_langchain(package: str) -> str:
        if package == "langchain-core":
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr("rerank_plugins.cli.info.version", no_langchain)

    assert 'not installed; pip install "rerank-plugins[langchain]"' in run("info").out
    assert json.loads(run("info", "--json").out)["packages"]["langchain-core"] is None


def test_the_processor_is_read_from_linux() -> None:
    assert hardware.cpu_name(CPUINFO) == "Some Processor 9000"
    assert hardware.cpu_features(CPUINFO) == ["avx2", "avx512f", "avx512_vnni", "amx_bf16"]


def test_other_systems_have_a_processor_too() -> None:
    assert hardware.cpu_name("")
    assert hardware.cpu_features("") == []
    assert hardware.usable_cores() >= 1


@pytest.mark.parametrize(
    ("providers", "device", "precision"),
    [
        (None, "none", "fp32 or else fp16"),
        (["CPUExecutionProvider"], "cpu", "fp32 or else fp16"),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], "cuda", "fp16 or else fp32"),
    ],
)
def test_device_and_precision_follow_from_what_onnxruntime_offers(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    providers: list[str] | None,
    device: str,
    precision: str,
) -> None:
    monkeypatch.setattr("rerank_plugins.cli.info.onnxruntime_providers", lambda: providers)

    report = json.loads(run("info", "a/b", "--json").out)

    assert report["model"]["device"]["value"] == device
    assert report["model"]["precision"]["value"] == precision
    assert report["machine"]["onnxruntime_providers"] == providers
