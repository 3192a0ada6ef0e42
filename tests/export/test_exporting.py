"""Exported files give the model's own logits, and say how far they are from them."""

from __future__ import annotations

import errno
import json
import os
import random
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from rerank_plugins.config import RerankConfig
from rerank_plugins.errors import InputError, MissingExtraError, ModelLoadError
from rerank_plugins.export import conversions, exporting, graph
from rerank_plugins.export.exporting import export_model
from rerank_plugins.export.folder import UNFINISHED, written
from rerank_plugins.export.formats import FORMATS, FP16, FP32, INT8, INT8_DYNAMIC, OPTIMIZED
from rerank_plugins.models.files import find_model
from rerank_plugins.models.manifest import MANIFEST, read_manifest
from rerank_plugins.models.weights import choose_torch
from rerank_plugins.scorers.onnx.scorer import OnnxScorer
from tests.export.conftest import ARCHITECTURES, tiny_texts, write_checkpoint
from tests.tiny_models import WORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rerank_plugins.export.formats import Format
    from rerank_plugins.models.encoding import TokenPair

QUERY = "the cat on a river"
DOCUMENTS = [
    " ".join(random.Random(n).choices(WORDS, k=n)) for n in (1, 2, 3, 4, 9, 17, 33, 52, 80)
]


def silent(_: str) -> None:
    """Hear no progress."""


def torch_logits(config: RerankConfig) -> np.ndarray:
    """Score each pair alone, by transformers' tokenizer and model."""
    import torch
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    model = AutoModelForSequenceClassification.from_pretrained(config.model).eval()
    segments = ["token_type_ids"] if getattr(model.config, "type_vocab_size", 0) > 1 else []
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=f"{config.model}/tokenizer.json",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask", *segments],
    )
    found = []
    for document in DOCUMENTS:
        batch = tokenizer(QUERY, document, truncation="longest_first", return_tensors="pt")
        with torch.no_grad():
            found.append(model(**batch).logits[0].numpy())
    labels = np.stack(found)
    return labels[:, 0] if labels.shape[1] == 1 else labels[:, 1] - labels[:, 0]


def onnx_logits(path: Path) -> np.ndarray:
    """Score all pairs in one padded batch."""
    scorer = OnnxScorer.open(RerankConfig(model=str(path)))
    return scorer.forward(scorer.encode(QUERY, DOCUMENTS))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_graph_gives_the_logits_of_torch_at_every_length_and_padding(
    kind: str, tmp_path: Path, checkpoint: Callable[..., RerankConfig]
) -> None:
    """Alone in torch, in one padded batch here: masks, positions and open sizes are all at work."""
    config = checkpoint(kind, labels=2 if kind == "electra" else 1)

    export_model(config, tmp_path / "out", tiny_texts(), formats=(FP32,), say=silent)

    expected = torch_logits(config)
    assert expected.std() > 0.3
    np.testing.assert_allclose(onnx_logits(tmp_path / "out"), expected, atol=1e-4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A BERT in all formats."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("exported")
    config = RerankConfig(model=str(write_checkpoint(folder / "source", "bert")))
    export_model(config, folder / "out", tiny_texts(), formats=FORMATS, say=silent)
    yield folder / "out"
    torch.set_num_threads(threads)


def test_the_manifest_tells_the_drift_of_each_file(exported: Path) -> None:
    manifest = json.loads((exported / MANIFEST).read_text())
    expected = torch_logits(RerankConfig(model=str(exported.parent / "source")))

    assert set(manifest["files"]) == {row.file for row in FORMATS}
    assert manifest["model"] == "source"
    assert manifest["texts"]["calibration_pairs"] == manifest["texts"]["check_pairs"] == 28
    for name, entry in manifest["files"].items():
        drift = entry["drift"]
        # Other texts than those of the check: the same size of drift, not the same drift.
        found = np.abs(onnx_logits(exported / name) - expected).mean()
        assert found <= 10 * drift["mean"] + 1e-6, name
        assert drift["mean"] <= drift["p99"] <= drift["max"]
    most = {name: entry["drift"]["max"] for name, entry in manifest["files"].items()}
    assert max(most[FP32.file], most[OPTIMIZED.file]) < 1e-4
    assert 1e-5 < most[FP16.file] < most[INT8.file]


def test_settings_and_tokenizer_come_along_byte_for_byte(exported: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (exported / name).read_bytes() == (exported.parent / "source" / name).read_bytes()


def worst_by_company(path: Path) -> float:
    """Return by how much a pair's logit hangs on the pairs beside it."""
    scorer = OnnxScorer.open(RerankConfig(model=str(path)))
    pairs = scorer.encode(QUERY, DOCUMENTS)
    alone = np.concatenate([scorer.forward([pair]) for pair in pairs])
    return float(np.abs(scorer.forward(pairs) - alone).max())


def test_static_int8_gives_a_pair_its_logit_in_any_company(exported: Path) -> None:
    assert worst_by_company(exported / INT8.file) < 1e-3


def test_dynamic_int8_does_not_which_is_why_it_is_no_default(exported: Path) -> None:
    assert worst_by_company(exported / INT8_DYNAMIC.file) > 1e-2


def weight_types(path: Path) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in onnx.load(str(path)).graph.initializer}


def test_int8_keeps_embeddings_and_head_in_float32(exported: Path) -> None:
    types = weight_types(exported / INT8.file)

    assert types["model.bert.embeddings.word_embeddings.weight"] == onnx.TensorProto.FLOAT
    assert types["model.classifier.weight"] == onnx.TensorProto.FLOAT
    assert onnx.TensorProto.INT8 in types.values()


def test_the_head_of_fp16_is_float32(exported: Path) -> None:
    types = weight_types(exported / FP16.file)

    assert types["model.classifier.weight"] == onnx.TensorProto.FLOAT
    assert types["model.bert.embeddings.word_embeddings.weight"] == onnx.TensorProto.FLOAT16


def test_a_check_of_fp16_on_the_cpu_does_not_pass_for_one_of_its_arithmetic(exported: Path) -> None:
    files = json.loads((exported / MANIFEST).read_text())["files"]

    assert files[INT8.file]["checked_on"] == "cpu"
    if "CUDAExecutionProvider" in ort.get_available_providers():
        assert files[FP16.file]["checked_on"].startswith("cuda:")
    else:
        assert "computes float16 in float32" in files[FP16.file]["checked_on"]


def values_of(path: Path, operators: set[str]) -> list[np.ndarray]:
    """Run a graph on one long pair and return what its *operators* give."""
    proto = onnx.load(str(path))
    names = [node.output[0] for node in proto.graph.node if node.op_type in operators]
    for name in names:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {value.name: np.ones((1, 61), np.int64) for value in session.get_inputs()}
    return session.run(names, feeds)


@pytest.mark.parametrize(
    ("kind", "operators"), [("modernbert", {"Cos", "Sin"}), ("deberta-v2", {"Log"})]
)
def test_what_positions_decide_is_the_same_in_fp16(
    kind: str, operators: set[str], tmp_path: Path, checkpoint: Callable[..., RerankConfig]
) -> None:
    """Not even rounded on the way: the angle of position 60 in float16 is off by up to 0.03."""
    export_model(checkpoint(kind), tmp_path / "out", tiny_texts(), formats=(FP32, FP16), say=silent)

    expected = values_of(tmp_path / "out" / FP32.file, operators)
    found = values_of(tmp_path / "out" / FP16.file, operators)

    assert expected
    for values, half in zip(expected, found, strict=True):
        assert half.dtype == np.float32
        np.testing.assert_allclose(half, values, atol=1e-6)


def test_the_optimised_graph_approximates_no_gelu(exported: Path) -> None:
    used = {node.op_type for node in onnx.load(str(exported / OPTIMIZED.file)).graph.node}

    assert "BiasGelu" in used
    assert not used & {"FastGelu", "QuickGelu"}


def test_no_graph_tells_where_it_was_made(exported: Path) -> None:
    """torch notes the path and line of the code behind every node."""
    for path in exported.glob("*.onnx"):
        assert b"site-packages" not in path.read_bytes(), path.name


@pytest.mark.parametrize("row", [FP32, OPTIMIZED, INT8, INT8_DYNAMIC, FP16])
def test_weights_beyond_the_limit_lie_beside_the_graph(
    row: Format,
    tmp_path: Path,
    checkpoint: Callable[..., RerankConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if protobuf ended at a thousand bytes instead of two billion."""
    monkeypatch.setattr(graph, "EXTERNAL_BYTES", 1000)
    config = checkpoint()

    export_model(config, tmp_path / "out", tiny_texts(), formats=(row,), say=silent)

    names = {path.name for path in (tmp_path / "out").iterdir()}
    weights = {name for name in names if "onnx" in name} - {row.file}
    # onnxruntime's dynamic quantiser has a name of its own for it, which is read as well.
    assert weights <= {f"{row.file}_data", f"{row.file}.data"}
    assert len(weights) == 1
    drift = read_manifest(tmp_path / "out", "tiny")[row.file].drift
    assert np.abs(onnx_logits(tmp_path / "out" / row.file) - torch_logits(config)).max() < 1 + drift


def test_a_graph_that_is_no_copy_is_refused(
    tmp_path: Path, checkpoint: Callable[..., RerankConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = checkpoint()
    real = graph.reference_logits
    monkeypatch.setattr(graph, "reference_logits", lambda *a, **k: real(*a, **k) + 0.01)

    with pytest.raises(ModelLoadError, match=r"differs from torch by 0\.01.*backend=\"torch\""):
        export_model(config, tmp_path / "out", tiny_texts(), say=silent)

    assert not list((tmp_path / "out").iterdir())


def test_logits_that_are_no_numbers_leave_a_file_out(
    tmp_path: Path, checkpoint: Callable[..., RerankConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As float16 gives them where a model's activations exceed 65504."""

    def overflow(source: Path, target: Path) -> None:
        model = onnx.load(str(source))
        weight = next(t for t in model.graph.initializer if t.name == "model.classifier.weight")
        weight.raw_data = np.full(weight.dims, np.inf, dtype=np.float32).tobytes()
        onnx.save(model, str(target))

    monkeypatch.setattr(conversions, "to_fp16", overflow)

    export_model(checkpoint(), tmp_path / "out", tiny_texts(), formats=(FP32, FP16), say=silent)

    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert list(manifest["files"]) == [FP32.file]
    assert "not finite" in manifest["left_out"][FP16.file]
    assert not (tmp_path / "out" / FP16.file).exists()


def test_every_format_has_what_makes_it() -> None:
    assert {FP32, *exporting.MAKERS} == {*FORMATS}


def test_what_onnxruntime_fails_at_is_left_out_and_an_export_of_nothing_fails(
    tmp_path: Path, checkpoint: Callable[..., RerankConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise RuntimeError(f"no kernel for {target}")

    monkeypatch.setattr(conversions, "to_fp16", fail)
    out, config = tmp_path / "out", checkpoint()

    with pytest.raises(
        ModelLoadError, match=r"no file is worth keeping: model_fp16\.onnx"
    ) as raised:
        export_model(config, out, tiny_texts(), formats=(FP16,), say=silent)
    assert not list(out.iterdir())
    assert UNFINISHED not in str(raised.value)
    export_model(config, out, tiny_texts(), formats=(FP32, FP16), say=silent)

    left_out = json.loads((out / MANIFEST).read_text())["left_out"]
    assert left_out == {
        FP16.file: "it cannot be made or run (RuntimeError: no kernel for model_fp16.onnx)"
    }
    assert not (out / FP16.file).exists()


def test_batches_are_bounded_in_tokens_and_texts_in_length(
    tmp_path: Path, checkpoint: Callable[..., RerankConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a model of 8192 positions would otherwise fill all memory with attention."""
    monkeypatch.setattr(exporting, "CHECKED_TOKENS", 40)
    monkeypatch.setattr(exporting, "BATCH_TOKENS", 90)
    real, shapes = graph.reference_logits, []

    def watch(model: object, pairs: list[TokenPair], *rest: object, **more: int) -> np.ndarray:
        shapes.append((len(pairs), max(pair.tokens for pair in pairs)))
        return real(model, pairs, *rest, **more)

    monkeypatch.setattr(graph, "reference_logits", watch)

    export_model(checkpoint(), tmp_path / "out", tiny_texts(), formats=(FP32,), say=silent)

    assert max(longest for _, longest in shapes) == 40
    assert max(pairs * longest for pairs, longest in shapes) <= 90
    assert max(pairs for pairs, _ in shapes) > 1


def test_force_replaces_what_an_export_wrote_and_nothing_else(
    tmp_path: Path, checkpoint: Callable[..., RerankConfig]
) -> None:
    out = tmp_path / "out"
    config = checkpoint()
    export_model(config, out, tiny_texts(), formats=(FP32, OPTIMIZED), say=silent)
    (out / "notes.txt").write_text("mine")
    (out / f"{UNFINISHED}old").mkdir()
    (out / f"{UNFINISHED}old" / FP32.file).write_text("of a run that was killed")

    with pytest.raises(InputError, match=r"not empty.*--force"):
        export_model(config, out, tiny_texts(), say=silent)
    export_model(config, out, tiny_texts(), formats=(FP32,), force=True, say=silent)

    assert {path.name for path in out.iterdir()} == {
        *("notes.txt", "model.onnx", "rerank_export.json"),
        *("config.json", "tokenizer.json", "tokenizer_config.json"),
    }


@pytest.mark.parametrize(
    "name", ["model_int8.onnx", "model.onnx", "model.safetensors", "tokenizer.json", "config.json"]
)
def test_weights_and_settings_that_no_export_wrote_are_never_replaced(
    tmp_path: Path, name: str
) -> None:
    """The manifest beside them lists other files."""
    (tmp_path / name).write_text("of another model")
    (tmp_path / MANIFEST).write_text('{"files": {"model_fp16.onnx": {}}, "settings": []}')

    with pytest.raises(InputError, match=rf"{name}, which no export wrote"):
        export_model(RerankConfig(model="m"), tmp_path, tiny_texts(), force=True, say=silent)

    assert (tmp_path / name).read_text() == "of another model"


def test_a_model_is_not_exported_over_itself(
    tmp_path: Path, checkpoint: Callable[..., RerankConfig]
) -> None:
    config = checkpoint()
    before = {path.name for path in Path(config.model).iterdir()}

    with pytest.raises(InputError, match="folder of the model itself"):
        export_model(config, Path(config.model), tiny_texts(), force=True, say=silent)

    assert {path.name for path in Path(config.model).iterdir()} == before


def test_a_manifest_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "precious.onnx").write_text("mine")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / MANIFEST).write_text('{"files": {"../precious.onnx": {}}, "settings": []}')

    assert written(folder) == {MANIFEST}


def dangling(path: Path) -> Path:
    path.symlink_to(path.parent / "nowhere" / "at all")
    return path


def below_a_file(path: Path) -> Path:
    path.write_text("a file")
    return path / "below"


@pytest.mark.parametrize("make", [dangling, below_a_file])
def test_a_folder_that_cannot_be_made_is_told_before_a_model_is_looked_for(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    folder = make(tmp_path / "out")

    with pytest.raises(InputError, match="cannot be written to"):
        export_model(RerankConfig(model="./absent"), folder, tiny_texts(), say=silent)


def test_a_full_disk_is_told_without_the_name_of_a_file_that_is_gone(
    tmp_path: Path, checkpoint: Callable[..., RerankConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(graph, "save_graph", full)

    with pytest.raises(ModelLoadError, match="No space left on device") as raised:
        export_model(checkpoint(), tmp_path / "out", tiny_texts(), say=silent)

    assert UNFINISHED not in str(raised.value)
    assert not list((tmp_path / "out").iterdir())


def test_three_labels_are_no_reranker(
    tmp_path: Path, checkpoint: Callable[..., RerankConfig]
) -> None:
    with pytest.raises(ModelLoadError, match="has 3"):
        export_model(checkpoint(labels=3), tmp_path / "out", tiny_texts(), say=silent)


def test_what_cannot_be_traced_says_so(
    tmp_path: Path, checkpoint: Callable[..., RerankConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    config = checkpoint()
    files = find_model(config.model, choose=partial(choose_torch, allow_pickle=False))

    class Untraceable(torch.nn.Module):
        config = graph.load_reference(files).config

        def forward(self, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
            raise RuntimeError("no graph of this")

    with pytest.raises(ModelLoadError, match="cannot trace it"):
        graph.write_graph(Untraceable(), graph.INPUTS, tmp_path / "m.onnx", name="m")


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "PACKAGES", ("no_such_package",))

    with pytest.raises(MissingExtraError, match=r"rerank-plugins\[export\]"):
        export_model(RerankConfig(model="m"), tmp_path / "out", tiny_texts(), say=silent)
