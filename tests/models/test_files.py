"""Which files of a local model are taken, and what is said where none fits."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING

import pytest

from rerank_plugins.errors import ConfigError, ModelLoadError
from rerank_plugins.models.files import find_model
from rerank_plugins.models.weights import (
    choose_onnx,
    choose_torch,
    external_data,
    wanted_precisions,
)
from rerank_plugins.options import Backend, Precision
from tests.tiny_models import write_checkpoint, write_model

if TYPE_CHECKING:
    from pathlib import Path

CPU = partial(choose_onnx, wanted=wanted_precisions(Precision.AUTO, cuda=False))


@pytest.mark.parametrize(
    ("names", "precision", "cuda", "expected"),
    [
        (["model.onnx", "onnx/model.onnx"], "auto", False, "model.onnx"),
        (["onnx/model.onnx", "onnx/model_fp16.onnx"], "auto", False, "onnx/model.onnx"),
        (["onnx/model.onnx", "onnx/model_fp16.onnx"], "auto", True, "onnx/model_fp16.onnx"),
        (["onnx/model.onnx", "onnx/model_int8.onnx"], "auto", True, "onnx/model.onnx"),
        (["onnx/model_fp16.onnx"], "auto", False, "onnx/model_fp16.onnx"),
        (["onnx/model.onnx", "onnx/model_fp16.onnx"], "fp16", False, "onnx/model_fp16.onnx"),
        (["onnx/model.onnx", "onnx/model_O4.onnx"], "fp16", True, "onnx/model_O4.onnx"),
        (["model.onnx", "model_quantized.onnx"], "int8", False, "model_quantized.onnx"),
        (
            ["onnx/model.onnx", "onnx/model_qint8_avx512_vnni.onnx"],
            "int8",
            False,
            "onnx/model_qint8_avx512_vnni.onnx",
        ),
        (["model_optimized.onnx"], "auto", False, "model_optimized.onnx"),
        (["ranker.onnx", "config.json"], "auto", False, "ranker.onnx"),
    ],
)
def test_the_file_follows_from_precision_and_device(
    names: list[str], precision: str, cuda: bool, expected: str
) -> None:
    wanted = wanted_precisions(Precision(precision), cuda=cuda)

    assert choose_onnx("m", names, wanted) == (expected,)


@pytest.mark.parametrize(
    ("names", "precision", "expected"),
    [
        (["model_quantized.onnx"], "auto", r'int8.*model_quantized.onnx.*precision="int8"'),
        (["model_int8_dynamic.onnx"], "auto", r"int8.*model_int8_dynamic.onnx.*pass the path"),
        (["onnx/ranker_QUANT.onnx"], "auto", r"int8.*ranker_QUANT.onnx.*pass the path"),
        (["model_int8_dynamic.onnx"], "int8", r"there are model_int8_dynamic.onnx.*pass the path"),
        (["a.onnx", "b.onnx"], "auto", r"there are a.onnx, b.onnx"),
        (["model.onnx"], "fp16", r"looked for model_fp16.onnx, .*there are model.onnx"),
        (["ranker.onnx"], "int8", r"there are ranker.onnx"),
        (["model.safetensors"], "auto", r"PyTorch weights.*rerank-plugins export MODEL"),
        (["pytorch_model.bin"], "auto", r"PyTorch weights.*rerank-plugins export MODEL"),
        (["README.md"], "auto", r"there is no ONNX file \(looked for model.onnx, onnx/model.onnx"),
    ],
)
def test_where_no_file_fits_the_message_says_what_is_there(
    names: list[str], precision: str, expected: str
) -> None:
    with pytest.raises(ModelLoadError, match=expected):
        choose_onnx("m", names, wanted_precisions(Precision(precision), cuda=False))


CONFIG = "config.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
BIN_SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.safetensors", "pytorch_model.bin"], ("model.safetensors",)),
        ([*SHARDS, "model.safetensors.index.json"], ("model.safetensors.index.json", *SHARDS)),
        ([*SHARDS, "model.safetensors"], ("model.safetensors",)),
        ([*SHARDS, "pytorch_model.bin"], ("model.safetensors.index.json", *SHARDS)),
        (["model.safetensors", "openvino/x.bin", "training_args.bin"], ("model.safetensors",)),
        (["pytorch_model.bin"], ("pytorch_model.bin",)),
        (
            [*BIN_SHARDS, "pytorch_model.bin.index.json"],
            ("pytorch_model.bin.index.json", *BIN_SHARDS),
        ),
    ],
)
def test_a_checkpoint_is_one_file_or_its_shards_and_never_pickled_by_choice(
    names: list[str], expected: tuple[str, ...]
) -> None:
    assert choose_torch("m", [CONFIG, *names], allow_pickle=True) == expected
    if expected[0].startswith("model."):
        assert choose_torch("m", [CONFIG, *names], allow_pickle=False) == expected


@pytest.mark.parametrize(
    ("names", "allow_pickle", "expected"),
    [
        ([CONFIG, "pytorch_model.bin"], False, r"pickled \(.bin\).*allow_pickle=True"),
        ([CONFIG, *BIN_SHARDS], False, r"pickled.*from_pretrained\(MODEL\).save_pretrained"),
        (["model.safetensors"], False, "there is no config.json, which says how"),
        ([CONFIG, "adapter_config.json", "adapter_model.safetensors"], True, "merge the two"),
        ([CONFIG, "weights.pt"], True, "no PyTorch weights have a known name.*there are weights"),
        ([CONFIG, "onnx/model.onnx"], True, "no PyTorch weights.*but onnx/model.onnx; leave back"),
        ([CONFIG], True, "there are no PyTorch weights"),
    ],
)
def test_a_checkpoint_that_cannot_be_taken_says_why(
    names: list[str], allow_pickle: bool, expected: str
) -> None:
    with pytest.raises(ModelLoadError, match=expected):
        choose_torch("m", names, allow_pickle=allow_pickle)


def test_external_data_is_found_by_its_name() -> None:
    names = ["model.onnx", "model.onnx_data", "model.onnx_data_1", "model.onnx.data", "x.onnx_data"]

    assert external_data("model.onnx", names) == [
        "model.onnx.data",
        "model.onnx_data",
        "model.onnx_data_1",
    ]


def test_a_folder_gives_its_files(tmp_path: Path) -> None:
    write_model(tmp_path, onnx_names=("onnx/model.onnx",))

    files = find_model(str(tmp_path), choose=CPU)

    assert files.weights == (tmp_path / "onnx" / "model.onnx",)
    assert files.tokenizer == tmp_path / "tokenizer.json"
    assert files.config["model_type"] == "bert"
    assert files.tokenizer_config["pad_token"] == "[PAD]"


def test_a_folder_of_pytorch_weights_gives_its_files(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)

    files = find_model(str(tmp_path), choose=partial(choose_torch, allow_pickle=False))

    assert files.backend is Backend.TORCH
    assert files.folder == tmp_path
    assert files.weights == (tmp_path / "model.safetensors",)
    assert files.config["model_type"] == "bert"


def test_external_data_belongs_to_the_weights_and_the_version(tmp_path: Path) -> None:
    write_model(tmp_path, external=True)
    data = tmp_path / "model.onnx_data"

    for name in (tmp_path, tmp_path / "model.onnx"):
        files = find_model(str(name), choose=CPU)
        assert files.backend is Backend.ONNX
        assert files.weights == (tmp_path / "model.onnx", data)

    raw = data.read_bytes()
    data.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert find_model(str(tmp_path), choose=CPU).version != files.version


@pytest.mark.parametrize("text", ["{", "not JSON", "\ufeff{}", "[]"])
def test_settings_that_are_no_json_object_are_named(text: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")

    with pytest.raises(ModelLoadError, match=r"config\.json (cannot be read as JSON|holds list)"):
        find_model(str(tmp_path), choose=partial(choose_torch, allow_pickle=False))


@pytest.mark.parametrize("name", ["model.onnx", "onnx/model_quantized.onnx"])
def test_a_file_that_is_named_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    write_model(tmp_path, onnx_names=(name,))

    files = find_model(str(tmp_path / name), choose=CPU)

    assert files.weights == (tmp_path / name,)
    assert files.tokenizer == tmp_path / "tokenizer.json"


def test_settings_may_be_missing(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "[PAD]"}')

    files = find_model(str(tmp_path), choose=CPU)

    assert files.config == {}
    assert files.tokenizer_config == {"pad_token": "[PAD]"}


def test_a_copy_has_the_same_version_and_a_change_another(tmp_path: Path) -> None:
    first = write_model(tmp_path / "first")
    copy = shutil.copytree(first, tmp_path / "copy")
    version = find_model(str(first), choose=CPU).version
    assert find_model(str(copy), choose=CPU).version == version

    for name in ("model.onnx", "tokenizer.json"):
        raw = bytearray((copy / name).read_bytes())
        raw[-2] ^= 1
        (copy / name).write_bytes(raw)
        assert find_model(str(copy), choose=CPU).version != version


@pytest.mark.parametrize(
    "name", ["./no/such", "/no/such", "~/no/such", "a/b/c", "no/such.onnx", "C:\\no", "no/such/"]
)
def test_a_path_that_is_not_there_never_goes_to_the_hub(name: str) -> None:
    with pytest.raises(ModelLoadError, match="there is no such file or folder"):
        find_model(name, choose=CPU)


@pytest.mark.parametrize(
    ("address", "id_"),
    [
        ("https://huggingface.co/BAAI/bge-reranker-base", "BAAI/bge-reranker-base"),
        ("https://huggingface.co/BAAI/bge-reranker-base/tree/main?x=1", "BAAI/bge-reranker-base"),
        ("http://mirror.example/BAAI/bge#files", "BAAI/bge"),
        ("https://huggingface.co/gpt2", "gpt2"),
    ],
)
def test_a_web_address_is_answered_with_the_id_in_it(address: str, id_: str) -> None:
    with pytest.raises(ModelLoadError, match=f"name the model by its id: {id_}$"):
        find_model(address, choose=CPU)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"")

    with pytest.raises(ModelLoadError, match="not an ONNX file"):
        find_model(str(tmp_path / "model.pt"), choose=CPU)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "tokenizer.json").unlink()

    with pytest.raises(ModelLoadError, match=r"no tokenizer.json.*save_pretrained"):
        find_model(str(tmp_path), choose=CPU)


def test_a_revision_of_a_local_model_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)

    with pytest.raises(ConfigError, match=r"revision: only a model on the hub.*got 'main'"):
        find_model(str(tmp_path), choose=CPU, revision="main")


def test_files_that_cannot_be_opened_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path)

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)

    with pytest.raises(ModelLoadError, match=r"its files cannot be read: .*Permission denied"):
        find_model(str(tmp_path), choose=CPU)


def test_a_home_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelLoadError, match="no such home folder"):
        find_model("~nobody-of-this-name/model", choose=CPU)
