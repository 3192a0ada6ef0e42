"""Which backend runs a model: by settings, files and what is installed."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from rerank_plugins.config import RerankConfig
from rerank_plugins.errors import ConfigError, MissingExtraError, ModelLoadError
from rerank_plugins.models.manifest import MANIFEST
from rerank_plugins.models.weights import choose_onnx, choose_torch, wanted_precisions
from rerank_plugins.options import Backend, Precision
from rerank_plugins.scorers import _find_files as find_files
from rerank_plugins.scorers import open_scorer
from rerank_plugins.scorers.onnx.scorer import OnnxScorer
from rerank_plugins.scorers.selection import (
    backend_choice,
    choose_weights,
    installed_backends,
    settled_backend,
)
from tests.tiny_models import write_checkpoint, write_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CHOOSERS = {
    Backend.TORCH: partial(choose_torch, allow_pickle=False),
    Backend.ONNX: partial(choose_onnx, wanted=wanted_precisions(Precision.AUTO, cuda=False)),
}

SAFE = ("config.json", "model.safetensors")
PICKLED = ("config.json", "pytorch_model.bin")
EXPORTED = ("config.json", "rerank_export.json", "model.onnx", "model_int8.onnx")
ONNX = ("model.onnx", "model.onnx_data")
BOTH = frozenset({Backend.TORCH, Backend.ONNX})
TORCH_ALONE = frozenset({Backend.TORCH})
ONNX_ALONE = frozenset({Backend.ONNX})


def choose(names: Sequence[str], installed: frozenset[Backend]) -> tuple[str, ...]:
    return tuple(choose_weights("m", names, choosers=CHOOSERS, installed=installed))


@pytest.mark.parametrize(
    ("names", "installed", "expected"),
    [
        ((*SAFE, *ONNX), BOTH, ("model.safetensors",)),
        ((*SAFE, *ONNX), TORCH_ALONE, ("model.safetensors",)),
        ((*SAFE, *ONNX), ONNX_ALONE, ONNX),
        (SAFE, BOTH, ("model.safetensors",)),
        (EXPORTED, BOTH, ("model.onnx",)),
        ((*PICKLED, *ONNX), BOTH, ONNX),
        ((*PICKLED, *SAFE), BOTH, ("model.safetensors",)),
        # Weights that cannot be put together are no weights.
        (("model.safetensors", *ONNX), BOTH, ONNX),
    ],
)
def test_pytorch_weights_go_before_an_onnx_file_where_their_package_is_there(
    names: Sequence[str], installed: frozenset[Backend], expected: tuple[str, ...]
) -> None:
    assert choose(names, installed) == expected


@pytest.mark.parametrize(
    ("names", "installed", "extra"),
    [
        (SAFE, ONNX_ALONE, "torch"),
        (SAFE, frozenset(), "torch"),
        (ONNX, TORCH_ALONE, "onnx"),
        (ONNX, frozenset(), "onnx"),
        ((*SAFE, *ONNX), frozenset(), "onnx"),
        ((*PICKLED, *ONNX), TORCH_ALONE, "onnx"),
    ],
)
def test_what_is_there_but_cannot_be_run_names_its_extra(
    names: Sequence[str], installed: frozenset[Backend], extra: str
) -> None:
    with pytest.raises(MissingExtraError, match=rf"of 'm' needs .*rerank-plugins\[{extra}\]"):
        choose(names, installed)


@pytest.mark.parametrize("installed", [BOTH, TORCH_ALONE, ONNX_ALONE, frozenset()])
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (PICKLED, "weights are pickled.*allow_pickle=True"),
        (("model.safetensors",), "there is no config.json"),
        (("model_int8.onnx",), 'ask for them with precision="int8"'),
        (("a.onnx", "b.onnx", "pytorch_model.bin"), "there are a.onnx, b.onnx"),
        (("README.md",), "no weights: looked for model.safetensors and for an ONNX file"),
        (("config.json", "adapter_config.json", "adapter_model.safetensors"), "adapter.*merge"),
    ],
)
def test_where_nothing_fits_the_message_is_of_the_kind_of_file_that_is_there(
    names: Sequence[str], expected: str, installed: frozenset[Backend]
) -> None:
    with pytest.raises(ModelLoadError, match=expected):
        choose(names, installed)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"precision": "fp16"}, None),
        ({"device": "cuda"}, None),
        ({"backend": "onnx"}, ("onnx", "as set")),
        ({"backend": "torch"}, ("torch", "as set")),
        ({"precision": "int8"}, None),
        ({"precision": "int4"}, ("torch", "nothing else computes in int4")),
        ({"precision": "bf16"}, ("torch", "nothing else computes in bf16")),
        ({"device": "mps"}, ("torch", "nothing else runs on mps")),
        ({"model": "a.onnx", "precision": "int8"}, ("onnx", "the model is an ONNX file")),
    ],
)
def test_some_settings_decide_without_the_files(
    settings: dict[str, str], expected: tuple[str, str] | None
) -> None:
    assert settled_backend(RerankConfig(**{"model": "m"} | settings)) == expected


@pytest.mark.parametrize(
    ("backend", "installed", "why"),
    [
        (Backend.TORCH, BOTH, "the model has PyTorch weights, and torch is installed"),
        (Backend.ONNX, BOTH, "no PyTorch weights to take here"),
        (Backend.ONNX, ONNX_ALONE, "torch is not installed"),
    ],
)
def test_the_reason_is_that_of_the_rule(
    backend: Backend, installed: frozenset[Backend], why: str
) -> None:
    found = backend_choice(RerankConfig(model="m"), backend, installed)

    assert found.value == backend
    assert found.why.endswith(why)


def test_a_package_counts_as_installed_where_it_can_be_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxruntime")
    assert Backend.ONNX in installed_backends()

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "transformers", None)

    assert installed_backends() == frozenset()


def test_pytorch_weights_without_torch_name_the_package_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, onnx_names=())
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(MissingExtraError, match=r"PyTorch weights of .* needs .*'torch'") as caught:
        open_scorer(RerankConfig(model=str(tmp_path)))
    assert caught.value.extra == "torch"


def test_an_onnx_model_opens_by_itself_or_as_asked(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    write_model(tmp_path, external=True)

    for settings in ({}, {"backend": "onnx"}):
        scorer = open_scorer(RerankConfig(model=str(tmp_path), **settings))
        assert isinstance(scorer, OnnxScorer)
        assert len(scorer.encode("cat", ["dog"])) == 1
        scorer.close()


def test_a_forced_backend_takes_no_other_kind_of_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    write_model(tmp_path, onnx_names=())
    (tmp_path / "model.safetensors").write_bytes(b"")

    with pytest.raises(ModelLoadError, match="PyTorch weights but no ONNX file"):
        open_scorer(RerankConfig(model=str(tmp_path), backend="onnx"))


@pytest.fixture
def broken_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a library of the system is missing."""
    package = tmp_path / "site" / "onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('raise ImportError("libstdc++.so.6: not found")')
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)


@pytest.mark.usefixtures("broken_onnxruntime")
def test_pytorch_weights_are_taken_whatever_is_wrong_with_the_onnx_side(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = tmp_path / "model"
    folder.mkdir()
    write_checkpoint(folder)
    (folder / "model.onnx").write_bytes(b"")
    (folder / MANIFEST).write_text("{")

    assert find_files(RerankConfig(model=str(folder))).backend is Backend.TORCH


@pytest.mark.usefixtures("broken_onnxruntime")
def test_a_broken_onnxruntime_is_named_where_an_onnx_file_needs_it(tmp_path: Path) -> None:
    write_model(tmp_path)

    with pytest.raises(ModelLoadError, match=r"cannot be imported: libstdc.*--force-reinstall"):
        open_scorer(RerankConfig(model=str(tmp_path)))


@pytest.mark.parametrize("name", ["~nosuchuser/model", "m" * 5000])
def test_a_name_that_no_file_can_have_is_told_in_words(name: str) -> None:
    with pytest.raises(ModelLoadError, match=r"no such home folder|cannot be read"):
        open_scorer(RerankConfig(model=name))


def test_int8_takes_an_onnx_file_of_integers_before_weights_that_torch_would_round(
    tmp_path: Path,
) -> None:
    pytest.importorskip("onnxruntime")
    folder = write_checkpoint(tmp_path)
    config = RerankConfig(model=str(folder), precision="int8", device="cpu")
    without = find_files(config)
    write_model(folder, onnx_names=("model_int8.onnx",))

    with_it = find_files(config)

    assert without.backend is Backend.TORCH
    assert with_it.weights == (folder / "model_int8.onnx",)
    assert backend_choice(config, Backend.TORCH, BOTH).why == (
        "the model has no int8 ONNX file to take here"
    )
    assert backend_choice(config, Backend.ONNX, BOTH).why == "the model has an int8 ONNX file"


@pytest.mark.parametrize("settings", [{}, {"backend": "lexical"}, {"model": "lexical"}])
def test_a_family_that_is_none_is_refused_where_nobody_reads_it_too(
    settings: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r'family: expected "auto".*got \'nonsense\''):
        open_scorer(RerankConfig(family="nonsense", **settings))
    with pytest.raises(ConfigError, match=r"family: .* cannot be read"):
        open_scorer(RerankConfig(family=str(tmp_path / "missing.json"), **settings))
    for family in ("yes-no", "chat-template"):
        open_scorer(RerankConfig(**{"model": "lexical", "family": family} | settings)).close()
