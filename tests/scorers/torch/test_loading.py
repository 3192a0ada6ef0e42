"""What is loaded, in which number format, with how much memory, and whose code is run."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, XLNetConfig

from rerank_plugins.errors import ModelLoadError
from rerank_plugins.models.layouts import Layout
from rerank_plugins.scorers.torch import checkpoint, linear
from tests.scorers.torch.conftest import open_exact
from tests.tiny_torch import PaddedForward, make_pairs, write_torch_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rerank_plugins.scorers.torch.scorer import TorchScorer

OWN_CODE = """
import pathlib
import torch
from transformers import BertConfig, BertForSequenceClassification

pathlib.Path(__file__).with_name("was_run").touch()


class OwnConfig(BertConfig):
    model_type = "own-kind"


class OwnForSequenceClassification(BertForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose architecture is Python code beside its weights."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = write_torch_model(tmp_path / "model")
    (folder / "modeling_own.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own-kind",
        "auto_map": {
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_code_of_a_models_own_is_not_run_unless_it_is_trusted(
    own_code: Path, open_torch: Callable[..., TorchScorer], tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match="trust_remote_code=True, and revision"):
        open_torch(model=str(own_code))
    assert not list(tmp_path.rglob("was_run"))

    scorer = open_torch(model=str(own_code), trust_remote_code=True)

    pairs = make_pairs(20)
    reference = write_torch_model(tmp_path / "same weights")
    found = scorer.forward([scorer.encode(query, [text])[0] for query, text in pairs])
    assert list(tmp_path.rglob("was_run"))
    assert found == pytest.approx(PaddedForward(reference).logits(pairs), rel=0, abs=1e-4)


def test_nobody_is_asked_on_the_terminal_whether_to_run_code(
    own_code: Path, open_torch: Callable[..., TorchScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers does where it knows the kind of model, but no classifier of it."""
    config = json.loads((own_code / "config.json").read_text()) | {"model_type": "clip_text_model"}
    (own_code / "config.json").write_text(json.dumps(config))
    asked: list[object] = []
    monkeypatch.setattr("builtins.input", lambda *prompt: asked.append(prompt) or "y")

    with pytest.raises(ModelLoadError, match="trust_remote_code=True, and revision"):
        open_torch(model=str(own_code))
    assert not asked


def test_code_that_transformers_has_itself_needs_no_trust(
    own_code: Path, open_torch: Callable[..., TorchScorer], tmp_path: Path
) -> None:
    config = json.loads((own_code / "config.json").read_text()) | {"model_type": "bert"}
    (own_code / "config.json").write_text(json.dumps(config))

    open_torch(model=str(own_code))

    assert not list(tmp_path.rglob("was_run"))


def test_code_in_another_repository_is_refused_even_where_trusted(
    own_code: Path, open_torch: Callable[..., TorchScorer], tmp_path: Path
) -> None:
    """No revision would pin it."""
    config = json.loads((own_code / "config.json").read_text())
    config["auto_map"] = {name: f"acme/code--{place}" for name, place in config["auto_map"].items()}
    (own_code / "config.json").write_text(json.dumps(config))

    with pytest.raises(ModelLoadError, match="in another repository, acme/code"):
        open_torch(model=str(own_code), trust_remote_code=True)
    assert not list(tmp_path.rglob("was_run"))


def test_a_model_whose_attention_is_not_handed_over_runs_padded(
    tmp_path: Path,
    open_torch: Callable[..., TorchScorer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As transformers does where its source files are missing: each token would see every pair."""
    write_torch_model(tmp_path)
    pairs = make_pairs(30)
    expected = PaddedForward(tmp_path).logits(pairs)
    monkeypatch.setattr(
        "transformers.PreTrainedModel.set_attn_implementation", lambda *_, **__: None
    )

    scorer = open_torch()

    assert scorer.padded
    assert "runs padded" in caplog.text
    found = scorer.forward([scorer.encode(query, [text])[0] for query, text in pairs])
    assert found == pytest.approx(expected, rel=0, abs=1e-4)


def test_a_model_that_reads_its_padding_is_refused(tmp_path: Path) -> None:
    """XLNet reads the last place of a row, which is padding in all rows but the longest."""
    write_torch_model(tmp_path)
    config = XLNetConfig(vocab_size=300, d_model=32, n_layer=2, n_head=4, d_inner=64, num_labels=1)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)

    with pytest.raises(ModelLoadError, match="depends on the pairs beside it"):
        open_exact(tmp_path)


def test_logits_that_are_no_numbers_are_named_when_the_model_is_opened(
    tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    write_torch_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["classifier.weight"] *= torch.inf
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelLoadError, match='not finite; try precision="fp32"'):
        open_torch()


def test_quantised_checkpoints_are_refused_by_name(
    tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    write_torch_model(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})

    with pytest.raises(ModelLoadError, match="quantization_config"):
        open_torch()


def test_weights_of_layers_that_are_not_used_are_said(
    tmp_path: Path, open_torch: Callable[..., TorchScorer], caplog: pytest.LogCaptureFixture
) -> None:
    write_torch_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    extra = "bert.encoder.layer.0.attention.self.distance_embedding.weight"
    save_file(
        tensors | {extra: torch.zeros(3, 8)}, tmp_path / "model.safetensors", {"format": "pt"}
    )

    open_torch()

    assert "does not use" in caplog.text
    assert "distance_embedding" in caplog.text


def test_the_head_of_a_half_precision_model_keeps_its_float32_weights(
    tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    write_torch_model(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")

    model = open_torch(precision="bf16")._execution._model  # type: ignore[union-attr]

    assert model.dtype is torch.bfloat16
    for name in ("classifier.weight", "classifier.bias", "bert.pooler.dense.weight"):
        torch.testing.assert_close(model.get_parameter(name).data, saved[name], rtol=0, atol=0)


def test_a_progress_line_is_shown_while_weights_are_read(
    tmp_path: Path,
    open_torch: Callable[..., TorchScorer],
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_torch_model(tmp_path)
    capfd.readouterr()

    open_torch()

    assert "Loading weights: 100%" in capfd.readouterr().err


def test_a_large_weight_is_read_in_pieces_to_the_same_numbers(
    tmp_path: Path, open_torch: Callable[..., TorchScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_torch_model(tmp_path)
    pairs = make_pairs(20)
    expected = PaddedForward(tmp_path).logits(pairs)
    # Seven rows of 32 numbers at a time: the last piece is shorter.
    monkeypatch.setattr(checkpoint, "PIECE_BYTES", 7 * 32 * 4)

    scorer = open_torch()

    found = scorer.forward([scorer.encode(query, [text])[0] for query, text in pairs])
    assert found == pytest.approx(expected, rel=0, abs=1e-4)


@pytest.mark.parametrize("kind", linear.FUSED)
@pytest.mark.parametrize("rows", [1, 5, 2100])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_prepacked_layer_computes_what_torch_computes(
    dtype: torch.dtype, bound: float, rows: int, kind: str
) -> None:
    random = torch.Generator().manual_seed(1)
    weight = (torch.randn(96, 64, generator=random) / 8).to(dtype)
    bias = torch.randn(96, generator=random).to(dtype)
    states = torch.randn(1, rows, 64, generator=random).to(dtype)
    exact = nn.functional.linear(states.float(), weight.float(), bias.float())

    with torch.inference_mode():
        plain = linear.PrepackedLinear(weight, bias)(states)
        fused = linear.PrepackedLinear(weight, bias, activation=kind)(states)

    assert plain.dtype is dtype
    assert (plain.float() - exact).abs().max() < bound
    functions = {
        "gelu": nn.functional.gelu,
        "gelu_tanh": partial(nn.functional.gelu, approximate="tanh"),
        "silu": nn.functional.silu,
    }
    assert (fused.float() - functions[kind](exact)).abs().max() < bound


def prepacked(scorer: TorchScorer) -> dict[str, str | None]:
    """Return the prepacked modules of a scorer's model, and the activation of each."""
    modules = scorer._execution._model.named_modules()  # type: ignore[union-attr]
    return {
        path: module.activation
        for path, module in modules
        if isinstance(module, linear.PrepackedLinear)
    }


@pytest.mark.parametrize(
    ("name", "config", "activations"),
    [
        ("bert", {}, ["gelu"] * 3),
        ("distilbert", {}, ["gelu"] * 3),
        ("albert", {"hidden_act": "gelu_new"}, ["gelu_tanh"]),
        ("bert", {"hidden_act": "quick_gelu"}, []),
        ("bert", {"hidden_act": "relu"}, []),
        ("bert", {"hidden_act": "gelu_10"}, []),
        ("modernbert cls", {}, []),
        ("deberta-v2", {}, ["gelu"] * 3),
        ("mpnet", {}, ["gelu"] * 3),
    ],
)
def test_the_layers_are_prepacked_with_the_activation_that_follows(
    name: str,
    config: dict[str, str],
    activations: list[str],
    tmp_path: Path,
    open_torch: Callable[..., TorchScorer],
) -> None:
    write_torch_model(tmp_path, name, **config)

    found = prepacked(open_torch())

    assert found
    assert not any("classifier" in path or "pooler" in path for path in found)
    assert [kind for kind in found.values() if kind is not None] == activations


@pytest.mark.parametrize(
    ("name", "kind", "norms"),
    [("qwen3", "silu", 12), ("llama", "silu", 6), ("gemma", "gelu_tanh", 0)],
)
def test_a_language_model_has_its_gates_and_norms_fused(
    name: str, kind: str, norms: int, language_folder: Callable[..., Path]
) -> None:
    """Gemma's norms scale by 1 + weight, and stay."""
    scorer = open_exact(language_folder(name), family="qwen3-reranker", max_length=400)

    gates = {path: kind for path, kind in prepacked(scorer).items() if "gate_proj" in path}
    fused = [
        path
        for path, module in scorer._execution._model.named_modules()  # type: ignore[union-attr]
        if isinstance(module, linear.FusedNorm)
    ]
    scorer.close()

    assert set(gates.values()) == {kind}
    assert len(gates) == 3
    assert len(fused) == norms


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_a_fused_norm_computes_what_the_model_does(dtype: torch.dtype, bound: float) -> None:
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    random = torch.Generator().manual_seed(1)
    norm = Qwen3RMSNorm(64, eps=1e-5).to(dtype)
    states = 30 * torch.randn(1, 7, 64, generator=random).to(dtype)
    with torch.inference_mode():
        norm.weight.copy_(torch.randn(64, generator=random))
        layer = nn.ModuleDict({"norm": norm, "other": nn.LayerNorm(64)})
        linear.fuse_norms([layer])

        assert isinstance(layer["norm"], linear.FusedNorm)
        assert isinstance(layer["other"], nn.LayerNorm)
        assert (layer["norm"](states) - norm(states)).abs().max() < bound * 4


def test_layers_stay_as_they_are_where_torch_lacks_the_operators(
    tmp_path: Path, open_torch: Callable[..., TorchScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_torch_model(tmp_path)
    pairs = make_pairs(20)

    def absent(*_: object, **__: object) -> None:
        raise AttributeError("_reorder_linear_weight")

    monkeypatch.setattr(linear.PrepackedLinear, "__init__", absent)
    scorer = open_torch()

    assert prepacked(scorer) == {}
    found = scorer.forward([scorer.encode(query, [text])[0] for query, text in pairs])
    assert found == pytest.approx(PaddedForward(tmp_path).logits(pairs), rel=0, abs=1e-4)


@pytest.mark.parametrize("name", ["bert", "albert", "modernbert mean", "deberta-v2"])
def test_a_closed_scorer_frees_its_model_at_once(
    name: str, tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    write_torch_model(tmp_path, name)
    scorer = open_torch()
    # The layers too: they hold the weights.
    modules = [weakref.ref(part) for part in scorer._execution._model.modules()]  # type: ignore[union-attr]
    gc.collect()
    gc.disable()
    try:
        scorer.close()
        assert not [module for module in modules if module() is not None]
    finally:
        gc.enable()


def test_opening_a_model_leaves_the_random_numbers_of_the_process_alone(
    tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    write_torch_model(tmp_path)
    before = torch.random.get_rng_state()

    open_torch()

    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("tokens", [1, linear.ROWS_AT_A_TIME, 2 * linear.ROWS_AT_A_TIME + 7])
def test_an_mlp_by_rows_maps_each_token_once_in_its_place(tokens: int) -> None:
    random = torch.Generator().manual_seed(1)
    whole = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    states = torch.randn(1, tokens, 8, generator=random)
    rows: list[int] = []
    whole.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[1]))
    layer = nn.ModuleDict({"mlp": whole})

    with torch.inference_mode():
        expected = whole(states)
        rows.clear()
        linear.go_by_rows([layer], Layout(("some",), layers="layers", mlp="mlp"))
        found = layer["mlp"](states)

    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert tokens <= sum(rows) < tokens + 32
    assert max(rows) <= linear.ROWS_AT_A_TIME


@pytest.mark.parametrize("tokens", [0, 1, 32, 33, 130, 900, 1100])
def test_rows_go_in_pieces_of_a_few_lengths_and_come_back_in_their_places(tokens: int) -> None:
    """For each length oneDNN keeps a kernel of half a megabyte."""
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    states = torch.randn(2, tokens, 16, generator=torch.Generator().manual_seed(2))
    given: set[int] = set()

    def mapped(rows: torch.Tensor) -> torch.Tensor:
        given.add(rows.shape[1])
        return nn.functional.linear(rows, weight)

    found = linear.in_pieces(states, mapped, 8)

    assert given <= set(linear.PIECES)
    torch.testing.assert_close(found, nn.functional.linear(states, weight), rtol=0, atol=1e-5)


def test_a_norm_is_computed_in_float32_and_rounded_once_in_whatever_pieces() -> None:
    random = torch.Generator().manual_seed(1)
    count = 3 * linear.NORM_PIECE // 64 + 5
    states = 9 * torch.randn(1, count, 2, 32, generator=random).bfloat16()
    norm = linear.FusedNorm(torch.randn(32, generator=random).bfloat16(), 1e-6)

    with torch.inference_mode():
        found = norm(states)
        exact = nn.functional.rms_norm(states.double(), (32,), norm.weight.double(), 1e-6)
        assert found.dtype is torch.bfloat16
        # Only where a number lies between two of bf16 may float32 choose the other one.
        torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=0)
        assert (found != exact.bfloat16()).float().mean() < 1e-4
        turned = states.transpose(1, 2)
        assert torch.equal(norm(turned), norm(states).transpose(1, 2))
