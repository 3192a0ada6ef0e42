"""Weights in 8 and 4 bits: near the model, each pair by itself, small in memory."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rerank_plugins.errors import ModelLoadError
from rerank_plugins.models.files import find_model
from rerank_plugins.models.weights import choose_torch
from rerank_plugins.options import Precision
from rerank_plugins.scorers.torch import loading
from rerank_plugins.scorers.torch.quantized import QuantizedLinear, group_of, quantize
from tests.tiny_torch import ARCHITECTURES, write_torch_model

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[3]
INT8, INT4 = Precision.INT8, Precision.INT4
DRIFT = {INT8: 0.15, INT4: 2.0}
"""How far logits that deviate by several units may move; another weight moves them further."""


def weight_of(outputs: int, inputs: int) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1))


def files_of(folder: Path) -> Any:
    return find_model(str(folder), choose=lambda m, n: choose_torch(m, n, allow_pickle=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("precision", "lowest"), [(INT8, -128), (INT4, -8)])
def test_a_weight_moves_by_half_a_level_of_its_group_at_most(
    precision: Precision, lowest: int, dtype: torch.dtype
) -> None:
    weight = weight_of(48, 384) * torch.logspace(-3, 1, 48)[:, None]

    rounded = QuantizedLinear(weight, None, precision, dtype).widened()

    groups = weight.view(48, -1, group_of(384, precision) or 0)
    level = groups.abs().amax(-1, keepdim=True) / -lowest
    moved = (rounded.view(groups.shape).float() - groups).abs() / level
    # The highest level is one short of the lowest; the arithmetic's own rounding comes on top.
    assert moved.max() < 1.05
    assert moved.quantile(0.9) < 0.5
    assert rounded.dtype is dtype


def test_weights_in_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weight_of(50, 64)
    whole = QuantizedLinear(weight, None, INT4, torch.float32).widened()

    monkeypatch.setattr("rerank_plugins.scorers.torch.quantized.PIECE", 64 * 7)

    assert torch.equal(QuantizedLinear(weight, None, INT4, torch.float32).widened(), whole)


def test_a_group_of_zeros_has_the_level_of_zero() -> None:
    weight = weight_of(4, 64)
    weight[1] = 0

    layer = QuantizedLinear(weight, None, INT4, torch.float32)

    assert set(layer.levels[1].tolist()) == {8 | 8 << 4}
    assert not layer.widened()[1].any()


@pytest.mark.parametrize(("precision", "bits"), [(INT8, 8.125), (INT4, 4.5)])
def test_levels_and_scales_take_the_bits_that_are_promised(
    precision: Precision, bits: float
) -> None:
    layer = QuantizedLinear(weight_of(64, 256), None, precision, torch.bfloat16)

    assert sum(part.nbytes for part in layer.buffers()) * 8 == bits * 64 * 256


@pytest.mark.parametrize("precision", [INT8, INT4])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_scores_near_float32_and_each_pair_by_itself(
    name: str, precision: Precision, model_of: Callable[..., Any], open_torch_at: Callable[..., Any]
) -> None:
    model = model_of(name)
    chosen = range(0, 500, 10)
    exact = model.found(chosen)
    # Rounded weights with float32 arithmetic, in which company shows itself.
    scorer = open_torch_at(model.folder, precision)
    encoded = [model.encoded[i] for i in chosen]

    found = scorer.forward(encoded)

    assert np.abs(found - exact).mean() < DRIFT[precision] * max(1.0, exact.std())
    assert np.abs(found - exact).max() > 1e-3  # rounded they are
    alone = np.concatenate([scorer.forward([pair]) for pair in encoded])
    np.testing.assert_allclose(alone, found, rtol=0, atol=1e-5 * max(1.0, np.abs(found).max()))


@pytest.fixture
def open_torch_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Open a folder with rounded weights and float32 arithmetic; closed when the test ends."""
    from tests.scorers.torch.conftest import open_exact

    monkeypatch.setattr("rerank_plugins.scorers.torch.hardware.fast_bf16", lambda: None)
    opened = []

    def open_it(folder: Path, precision: Precision) -> Any:
        opened.append(open_exact(folder, precision=precision))
        return opened[-1]

    yield open_it
    for scorer in opened:
        scorer.close()


def test_linear_modules_of_the_layers_are_rounded_and_the_rest_stays(tmp_path: Path) -> None:
    write_torch_model(tmp_path, "bert")
    files = files_of(tmp_path)
    model = loading.load_model(files, torch.bfloat16, layers_later=True)

    quantize(model, INT4, files, torch.device("cpu"))

    rounded = {n for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    plain = {n for n, m in model.named_modules() if type(m) is nn.Linear}
    assert len(rounded) == 3 * 6
    assert all(".encoder.layer." in name for name in rounded)
    assert plain == {"bert.pooler.dense", "classifier"}
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_checkpoint_of_the_base_model_names_is_rounded_alike(tmp_path: Path) -> None:
    """Checkpoints without the prefix of the base model are read by those names."""
    write_torch_model(tmp_path / "with", "bert")
    write_torch_model(tmp_path / "without", "bert")
    saved = load_file(tmp_path / "with" / "model.safetensors")
    bare = {name.removeprefix("bert."): tensor for name, tensor in saved.items()}
    save_file(bare, tmp_path / "without" / "model.safetensors", metadata={"format": "pt"})

    weights = []
    for name in ("with", "without"):
        files = files_of(tmp_path / name)
        model = loading.load_model(files, torch.float32, layers_later=True)
        quantize(model, INT8, files, torch.device("cpu"))
        weights.append(model.bert.encoder.layer[1].attention.self.query.widened())

    assert torch.equal(*weights)


def test_a_module_that_fits_no_group_stays_and_is_spoken_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, open_torch: Callable[..., Any]
) -> None:
    write_torch_model(tmp_path, "bert", intermediate_size=72)
    caplog.set_level(logging.INFO)

    scorer = open_torch(precision="int4")

    assert "3 of 18 linear modules do not fit into groups of 32 inputs" in caplog.text
    assert scorer.encode("a", ["b"])


def test_a_model_of_which_nothing_fits_is_refused(
    tmp_path: Path, open_torch: Callable[..., Any]
) -> None:
    write_torch_model(tmp_path, "bert", hidden_size=24, intermediate_size=72)

    with pytest.raises(ModelLoadError, match=r'kept in int4: .*multiple of 32.*precision="auto"'):
        open_torch(precision="int4")


def test_the_cache_key_says_how_weights_are_kept_and_what_is_computed_in(
    tmp_path: Path, open_torch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_torch_model(tmp_path, "bert")
    monkeypatch.setattr("rerank_plugins.scorers.torch.hardware.fast_bf16", lambda: "AMX")

    assert " int8 in bf16 on cpu" in open_torch(precision="int8").identity
    assert " int4 in bf16 on cpu" in open_torch(precision="int4").identity


WRITE = """
import sys, torch
from transformers import AutoConfig, AutoModelForSequenceClassification
config = AutoConfig.for_model(
    "bert", vocab_size=1000, hidden_size=1024, num_hidden_layers=12, num_attention_heads=16,
    intermediate_size=4096, num_labels=1,
)
model = AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16)
model.save_pretrained(sys.argv[1])
"""

LOAD = """
import json, pathlib, re, sys, torch
from rerank_plugins.options import Precision
from rerank_plugins.models.files import find_model
from rerank_plugins.models.weights import choose_torch
from rerank_plugins.scorers.torch import loading, quantized

def peak_bytes():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) * 1024

files = find_model(sys.argv[1], choose=lambda m, n: choose_torch(m, n, allow_pickle=False))
before = peak_bytes()
model = loading.load_model(files, torch.bfloat16, layers_later=True)
quantized.quantize(model, Precision(sys.argv[2]), files, torch.device("cpu"))
print(peak_bytes() - before)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_loading_never_holds_the_weights_as_they_were_saved(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", WRITE, str(tmp_path)], check=True)
    tokenizer = write_torch_model(tmp_path / "tiny", "bert") / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    saved = (tmp_path / "model.safetensors").stat().st_size

    peaks = {
        precision: json.loads(
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", LOAD, str(tmp_path), precision],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for precision in ("int8", "int4")
    }

    # 151 million weights; beside them, a layer's in the making.
    assert saved > 300_000_000
    assert peaks["int8"] < 0.9 * saved
    assert peaks["int4"] < 0.65 * saved
