"""Half a download, a pointer of git, an index without its parts: each is named."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import pytest

from rerank_plugins.errors import ModelLoadError
from rerank_plugins.models.files import find_model
from rerank_plugins.models.integrity import check_file, check_safetensors
from rerank_plugins.models.weights import choose_onnx, choose_torch, wanted_precisions
from rerank_plugins.options import Precision
from tests.tiny_models import write_checkpoint, write_model

if TYPE_CHECKING:
    from pathlib import Path

    from rerank_plugins.models.files import ModelFiles

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def find(folder: Path, *, allow_pickle: bool = False, remote_code: bool = False) -> ModelFiles:
    choose = partial(choose_torch, allow_pickle=allow_pickle)
    return find_model(str(folder), choose=choose, remote_code=remote_code)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path) / "model.safetensors"


def test_a_whole_file_passes(weights: Path) -> None:
    check_safetensors(weights, "m")
    weights.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    check_safetensors(weights, "m")


@pytest.mark.parametrize("left", [0, 5, 8, 20, -1])
def test_a_file_cut_short_is_half_a_download(left: int, weights: Path) -> None:
    raw = weights.read_bytes()
    weights.write_bytes(raw[:left])

    with pytest.raises(ModelLoadError, match=r"model\.safetensors is half a download") as caught:
        check_safetensors(weights, "owner/model")
    assert str(caught.value).endswith("hf download owner/model --force-download")


def test_the_missing_bytes_are_counted(weights: Path) -> None:
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-3])

    with pytest.raises(ModelLoadError, match=f"it has {len(raw) - 3} of {len(raw)} bytes"):
        find(weights.parent)


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff" * 64,
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x02\0\0\0\0\0\0\0{]",
        b"\x07\0\0\0\0\0\0\0" + b'{"a":1}',
        b"\x02\0\0\0\0\0\0\0{}and more",
    ],
)
def test_what_is_no_safetensors_file_is_said_to_be_none(raw: bytes, weights: Path) -> None:
    weights.write_bytes(raw)

    with pytest.raises(ModelLoadError, match="is no safetensors file"):
        check_safetensors(weights, "m")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_is_not_the_file(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / name).write_bytes(POINTER)

    with pytest.raises(ModelLoadError, match=f"{name} is not the file itself.*git lfs pull"):
        find(tmp_path)


def test_a_pointer_in_place_of_an_onnx_file_is_seen_too(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.onnx").write_bytes(POINTER)
    choose = partial(choose_onnx, wanted=wanted_precisions(Precision.AUTO, cuda=False))

    with pytest.raises(ModelLoadError, match=r"model\.onnx is not the file itself"):
        find_model(str(tmp_path), choose=choose)
    with pytest.raises(ModelLoadError, match=r"model\.onnx is not the file itself"):
        find_model(str(tmp_path / "model.onnx"), choose=choose)


def test_a_graph_is_complete_without_the_code_that_config_json_names(tmp_path: Path) -> None:
    write_model(tmp_path, auto_map={"AutoModelForSequenceClassification": "modeling.New"})
    choose = partial(choose_onnx, wanted=wanted_precisions(Precision.AUTO, cuda=False))

    found = find_model(str(tmp_path), choose=choose, remote_code=True)

    assert found.weights == (tmp_path / "model.onnx",)


def test_the_weights_are_all_shards_in_order(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=3)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"left over")

    names = [path.name for path in find(tmp_path).weights]

    assert names == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("model-00002-of-00003.safetensors", "model-00002-of-00003.safetensors of 3 files"),
        ("model.safetensors.index.json", "model.safetensors.index.json is missing"),
    ],
)
def test_a_missing_shard_is_half_a_download(gone: str, said: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=3)
    (tmp_path / gone).unlink()

    with pytest.raises(ModelLoadError, match=f"half a download: {said}") as caught:
        find(tmp_path)
    assert str(caught.value).endswith(f"hf download MODEL --local-dir {tmp_path}")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"weight_map": 3}', "{}", '{"weight_map": {"a": []}}']
)
def test_an_index_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    (tmp_path / "model.safetensors.index.json").write_text(text)

    with pytest.raises(ModelLoadError, match=r"index\.json cannot be read: it lists no files"):
        find(tmp_path)


def test_the_code_of_a_model_is_asked_for_only_where_it_is_trusted(tmp_path: Path) -> None:
    classes = {"AutoConfig": "other/model--config.Own", "AutoModel": "modeling.Own"}
    write_checkpoint(tmp_path, auto_map=classes)
    version = find(tmp_path).version

    with pytest.raises(ModelLoadError, match=r"its code, modeling\.py, is missing"):
        find(tmp_path, remote_code=True)

    (tmp_path / "modeling.py").write_text("class Own: ...")
    trusted = find(tmp_path, remote_code=True).version
    assert find(tmp_path).version == version
    (tmp_path / "modeling.py").write_text("class Own: value = 2")
    assert find(tmp_path, remote_code=True).version != trusted


def test_a_large_header_is_not_read(tmp_path: Path) -> None:
    """Eight bytes of anything must not ask for all memory."""
    path = tmp_path / "model.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + b"x" * 100)

    with pytest.raises(ModelLoadError, match="is no safetensors file"):
        check_file(path, "m")


def test_the_version_covers_weights_and_settings(tmp_path: Path) -> None:
    """Unlike a graph, weights say nothing of the layers' sizes and functions."""
    write_checkpoint(tmp_path, shards=2)
    seen = {find(tmp_path).version}

    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"layer_norm_eps": 1e-5}))
    seen.add(find(tmp_path).version)
    last = tmp_path / "model-00002-of-00002.safetensors"
    last.write_bytes(last.read_bytes()[:-1] + b"\x01")
    seen.add(find(tmp_path).version)

    assert len(seen) == 3
