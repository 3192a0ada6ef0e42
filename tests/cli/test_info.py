"""`rerank-plugins info`: what it finds, and that it never fails for what it does not."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import pytest

from rerank_plugins.cli import hardware
from rerank_plugins.errors import ModelLoadError
from rerank_plugins.scorers import open_scorer, processor
from tests.tiny_models import write_model

if TYPE_CHECKING:
    from pathlib import Path

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
    assert model["backend"] == {"value": "its own", "why": "the scorer does not say"}
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


@pytest.fixture
def really(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command over the scorers of the package."""
    monkeypatch.setattr("rerank_plugins.scorers.open_scorer", open_scorer)
    return run


@pytest.mark.parametrize(
    ("flags", "name", "value", "why"),
    [
        (
            ("--device", "cuda"),
            "device",
            "cpu",
            "this scorer has no other; device cuda is not read",
        ),
        (("--device", "cpu"), "device", "cpu", "this scorer has no other"),
        (
            ("--max-length", "100"),
            "max_length",
            "none",
            "documents are read whole; max_length 100 is not read",
        ),
        (
            ("--precision", "fp16"),
            "precision",
            "its own",
            "one kind of weights; precision fp16 is not read",
        ),
        (("--backend", "lexical"), "backend", "lexical", "as set"),
    ],
)
def test_a_setting_that_the_lexical_scorer_does_not_read_is_not_said_to_act(
    really: Run, flags: tuple[str, ...], name: str, value: str, why: str
) -> None:
    report = json.loads(really("info", "lexical", *flags, "--json").out)["model"]

    assert report["scorer"] == "lexical"
    assert report[name] == {"value": value, "why": why}


def test_the_embedded_model_is_named_as_what_answers(really: Run) -> None:
    pytest.importorskip("onnxruntime")

    set_ = json.loads(really("info", "--backend", "onnx", "--json").out)["model"]
    replaced = json.loads(really("info", "--backend", "lexical", "--json").out)["model"]

    assert (set_["backend"]["value"], set_["scorer"]) == ("embedded", "embedded")
    assert (replaced["backend"]["value"], replaced["scorer"]) == ("lexical", "lexical")


def test_a_setting_that_stops_a_model_is_shown_beside_the_problem(really: Run) -> None:
    pytest.importorskip("onnxruntime")

    report = json.loads(really("info", "--device", "cuda", "--json").out)["model"]

    assert report["device"] == {"value": "cuda", "why": "as set"}
    assert "the embedded model runs on the CPU" in report["problem"]


def test_an_opened_model_says_what_its_settings_came_to(really: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    write_model(tmp_path)

    report = json.loads(really("info", str(tmp_path), "--device", "cpu", "--json").out)["model"]

    assert report["backend"]["value"] == "onnx"
    assert report["backend"]["why"].startswith("the model has an ONNX file")
    assert report["device"] == {"value": "cpu", "why": "as set"}
    assert report["precision"] == {
        "value": "fp32",
        "why": "model.onnx is what the model has of fp32 or else fp16",
    }
    assert report["max_length"] == {"value": "64", "why": "the model's own limit"}


def test_a_file_that_is_named_has_its_own_precision(really: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = write_model(tmp_path) / "model.onnx"

    report = json.loads(really("info", str(path), "--precision", "int8", "--json").out)["model"]

    assert report["backend"] == {"value": "onnx", "why": "the model is an ONNX file"}
    assert report["precision"] == {
        "value": "its own",
        "why": "an ONNX file is taken as it is; precision int8 is not read",
    }


@pytest.mark.parametrize(
    ("flags", "backend"),
    [
        (("--precision", "int4"), {"value": "torch", "why": "nothing else computes in int4"}),
        (("--precision", "bf16"), {"value": "torch", "why": "nothing else computes in bf16"}),
        (("--device", "mps"), {"value": "torch", "why": "nothing else runs on mps"}),
        ((), {"value": "auto", "why": "follows when the model is opened"}),
    ],
)
def test_without_the_model_what_the_settings_decide_is_shown(
    run: Run,
    flags: tuple[str, ...],
    backend: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(config: RerankConfig) -> None:
        raise ModelLoadError(config.model, "it is not on this machine")

    monkeypatch.setattr("rerank_plugins.scorers.open_scorer", refuse)

    report = json.loads(run("info", "a/b", *flags, "--json").out)["model"]

    assert report["backend"] == backend


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
    assert processor.cpu_features(CPUINFO) == ["avx2", "avx512f", "avx512_vnni", "amx_bf16"]


def test_other_systems_have_a_processor_too() -> None:
    assert hardware.cpu_name("")
    assert processor.cpu_features("") == []
    assert hardware.usable_cores() >= 1


def test_what_the_packages_can_run_on_is_listed(run: Run) -> None:
    torch = pytest.importorskip("torch")
    ort = pytest.importorskip("onnxruntime")

    machine = json.loads(run("info", "lexical", "--json").out)["machine"]

    assert machine["torch_devices"][0] == "cpu"
    assert len(machine["torch_devices"]) == 1 + torch.backends.mps.is_available() + (
        torch.cuda.device_count()
    )
    assert machine["onnxruntime_providers"] == ort.get_available_providers()


def test_packages_that_are_not_there_run_on_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("torch", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)

    found = run("info", "lexical")

    assert found.code == 0
    assert [line.split() for line in found.out.splitlines() if line.endswith("not installed")] == [
        ["onnxruntime", "not", "installed"],
        ["torch", "not", "installed"],
    ]


@pytest.mark.parametrize("free", [10**12, 1])
def test_what_a_torch_model_takes_is_shown_whether_it_fits_or_not(
    really: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    pytest.importorskip("torch")
    from rerank_plugins.scorers.torch import room
    from rerank_plugins.scorers.torch.memory import BESIDE
    from tests.tiny_torch import write_torch_model

    write_torch_model(tmp_path)
    monkeypatch.setattr(room, "free_bytes", lambda _: free)
    flags = (str(tmp_path), "--device", "cpu", "--precision", "fp32", "--batch-tokens", "500")

    model = json.loads(really("info", *flags, "--json").out)["model"]
    printed = really("info", *flags).out

    assert (model["problem"] is None) == (free > 1)
    memory = model["memory"]
    assert (memory["free"], memory["batch_tokens"], memory["device"]) == (free, 500, "cpu")
    rows = memory["by_precision"]
    assert list(rows) == ["fp32", "bf16", "int8", "int4"]
    assert all(
        row["total"] == row["weights"] + row["activations"] + BESIDE for row in rows.values()
    )
    weights = [row["weights"] for row in rows.values()]
    assert weights[0] > weights[1] > weights[3]
    assert "memory, estimated\n  fp32  0.1" in printed
    assert "activations of 500 tokens" in printed


def test_what_runs_elsewhere_has_no_such_table(
    really: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from tests.tiny_torch import write_torch_model

    # A folder of that name is not the model that ships with the package.
    write_torch_model(tmp_path / "embedded")
    monkeypatch.chdir(tmp_path)

    assert json.loads(really("info", "embedded", "--json").out)["model"]["memory"] is None
    assert json.loads(really("info", "lexical", "--json").out)["model"]["memory"] is None
    assert "memory, estimated" not in really("info", "lexical").out
