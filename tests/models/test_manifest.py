"""What an export says of its files decides which of them is taken, and when."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins.config import RerankConfig
from rerank_plugins.errors import ModelLoadError
from rerank_plugins.models import manifest
from rerank_plugins.models.integrity import digest
from rerank_plugins.models.manifest import FileRecord, preferred_files, read_manifest
from rerank_plugins.options import Precision
from rerank_plugins.scorers.onnx import choices
from rerank_plugins.scorers.onnx.scorer import OnnxScorer
from tests.tiny_models import write_model

if TYPE_CHECKING:
    from pathlib import Path

OPTIMIZED, INT8, FP16 = "model_optimized.onnx", "model_int8.onnx", "model_fp16.onnx"
VNNI_ALONE = ("avx2", "avx512_vnni")


def records(**changes: Any) -> dict[str, FileRecord]:
    """Return the records of a good export, *changes* made to those of int8."""
    int8: dict[str, Any] = {"drift": 0.3, "spearman": 0.995, "static_scales": True} | changes
    return {
        OPTIMIZED: FileRecord(drift=1e-5, spearman=1.0, static_scales=False),
        INT8: FileRecord(**int8),
        FP16: FileRecord(drift=0.02, spearman=0.9999, static_scales=False),
    }


def prefer(
    found: dict[str, FileRecord],
    precision: Precision = Precision.AUTO,
    *,
    cuda: bool = False,
    cpu_features: tuple[str, ...] = (),
) -> tuple[str, ...]:
    return preferred_files(found, precision, cuda=cuda, cpu_features=cpu_features)


def test_the_cpu_takes_the_optimised_graph_where_it_is_exact() -> None:
    assert prefer(records()) == (OPTIMIZED,)
    assert prefer(records(), Precision.FP32) == (OPTIMIZED,)
    inexact = {OPTIMIZED: FileRecord(drift=2e-3, spearman=1.0, static_scales=False)}
    assert prefer(inexact) == ()


@pytest.mark.parametrize("features", [VNNI_ALONE, ("avx_vnni",)])
def test_auto_takes_static_int8_where_the_cpu_is_fast_at_nothing_better(
    features: tuple[str, ...],
) -> None:
    assert prefer(records(), cpu_features=features) == (INT8, OPTIMIZED)


@pytest.mark.parametrize(
    "features",
    [
        ("avx2",),
        (*VNNI_ALONE, "avx512_bf16"),
        (*VNNI_ALONE, "amx_bf16"),
        (*VNNI_ALONE, "amx_int8"),
    ],
)
def test_auto_leaves_int8_where_the_cpu_gains_nothing_by_it(features: tuple[str, ...]) -> None:
    assert prefer(records(), cpu_features=features) == (OPTIMIZED,)


@pytest.mark.parametrize(
    "changes", [{"static_scales": False}, {"spearman": 0.98}, {"spearman": None}]
)
def test_auto_leaves_int8_that_hangs_on_its_batch_or_ranks_otherwise(
    changes: dict[str, Any],
) -> None:
    assert prefer(records(**changes), cpu_features=VNNI_ALONE) == (OPTIMIZED,)


def test_who_asks_for_int8_gets_the_static_one_whatever_the_cpu() -> None:
    assert prefer(records(spearman=0.5), Precision.INT8) == (INT8,)
    assert prefer(records(static_scales=False), Precision.INT8) == ()


def test_cuda_keeps_to_fp16_unless_it_ranks_otherwise() -> None:
    assert prefer(records(), cuda=True, cpu_features=VNNI_ALONE) == ()
    poor = {FP16: FileRecord(drift=3.0, spearman=0.7, static_scales=False)}
    assert prefer(poor, cuda=True) == ("model.onnx",)
    assert prefer(poor, Precision.FP16, cuda=True) == ()


def test_without_an_export_nothing_is_preferred(tmp_path: Path) -> None:
    assert read_manifest(tmp_path, "m") == {}
    assert prefer({}, cpu_features=VNNI_ALONE) == ()


def write_manifest(folder: Path, **sizes: int) -> None:
    drift = {"mean": 1e-6, "p99": 1e-6, "max": 1e-5, "spearman": 1.0, "top1_kept": 1.0}
    files = {
        f"{name}.onnx": {
            "bytes": size,
            "digest": digest(path for path in [folder / f"{name}.onnx"] if path.is_file()),
            "drift": drift,
        }
        for name, size in sizes.items()
    }
    (folder / manifest.MANIFEST).write_text(json.dumps({"files": files}))


def test_a_file_of_another_size_is_not_the_one_that_was_checked(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"12345")
    (tmp_path / "model_int8.onnx").write_bytes(b"12345")
    (tmp_path / "model_int8.onnx_data").write_bytes(b"678")
    write_manifest(tmp_path, model=6, model_int8=8, model_fp16=9)

    assert list(read_manifest(tmp_path, "m")) == ["model_int8.onnx"]


@pytest.mark.parametrize("content", ["{", "[]", '{"files": {"model.onnx": {}}}', '{"files": 3}'])
def test_a_broken_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"12345")
    (tmp_path / manifest.MANIFEST).write_text(content)

    with pytest.raises(ModelLoadError, match=r"rerank_export\.json cannot be read .* delete it"):
        read_manifest(tmp_path, "m")


def test_the_scorer_takes_the_file_that_the_manifest_vouches_for(tmp_path: Path) -> None:
    write_model(tmp_path, onnx_names=("model.onnx", OPTIMIZED))
    model = RerankConfig(model=str(tmp_path), device="cpu")
    assert " model.onnx on" in OnnxScorer.open(model).identity

    write_manifest(tmp_path, model_optimized=(tmp_path / OPTIMIZED).stat().st_size)

    assert f" {OPTIMIZED} on" in OnnxScorer.open(model).identity


def test_a_file_of_the_same_size_that_is_another_is_not_vouched_for(tmp_path: Path) -> None:
    write_model(tmp_path, onnx_names=("model.onnx", OPTIMIZED))
    path = tmp_path / OPTIMIZED
    write_manifest(tmp_path, model_optimized=path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1] + b"?")

    opened = OnnxScorer.open(RerankConfig(model=str(tmp_path), device="cpu"))

    assert " model.onnx on" in opened.identity


def test_auto_opens_int8_by_the_manifest_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, onnx_names=("model.onnx", INT8))
    write_manifest(tmp_path, model_int8=(tmp_path / INT8).stat().st_size)
    found = json.loads((tmp_path / manifest.MANIFEST).read_text())
    found["files"][INT8]["static_scales"] = True
    (tmp_path / manifest.MANIFEST).write_text(json.dumps(found))
    monkeypatch.setattr(choices, "cpu_features", lambda _: ["avx512_vnni"])

    choice = OnnxScorer.open(RerankConfig(model=str(tmp_path), device="cpu")).choices["precision"]

    assert choice.value == "int8"
    assert manifest.MANIFEST in choice.why
