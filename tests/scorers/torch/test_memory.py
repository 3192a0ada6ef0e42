"""What a model is said to take before it is loaded, against what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rerank_plugins.batching import next_batch
from rerank_plugins.jobs import Piece, Ticket
from rerank_plugins.models.encoding import TokenPair
from rerank_plugins.models.files import find_model
from rerank_plugins.models.layouts import layout_of
from rerank_plugins.models.weights import choose_torch
from rerank_plugins.options import WEIGHT_ONLY, Precision
from rerank_plugins.scorers.torch import loading, memory, quantized
from rerank_plugins.scorers.torch.hardware import PrecisionChoice, torch_dtype
from rerank_plugins.scorers.torch.head import widen_head
from rerank_plugins.scorers.torch.memory import SavedTensor, estimate, saved_tensors, weight_bytes
from rerank_plugins.scorers.torch.row import PackedRow, Segment
from tests.tiny_language_models import write_language_model
from tests.tiny_torch import ARCHITECTURES, write_torch_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).resolve().parents[3]
FP32 = PrecisionChoice(Precision.FP32, "", Precision.FP32)
BF16 = PrecisionChoice(Precision.BF16, "", Precision.BF16)
INT8 = PrecisionChoice(Precision.INT8, "", Precision.BF16)
INT4 = PrecisionChoice(Precision.INT4, "", Precision.BF16)

BERT = {
    "model_type": "bert",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
}
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
MODERNBERT = {**BERT, "model_type": "modernbert", "intermediate_size": 2624, "local_attention": 128}

NOTHING: Any = ([], None, False)


def files_of(folder: Path) -> Any:
    return find_model(str(folder), choose=lambda m, n: choose_torch(m, n, allow_pickle=False))


def activations(config: Mapping[str, object], tokens: int, longest: int = 512, **other: Any) -> int:
    precision = other.pop("precision", FP32)
    device = other.pop("device", "cpu")
    found = estimate(config, [], precision, tokens=tokens, longest=longest, device=device)
    return found.activations


@pytest.mark.parametrize("precision", [FP32, BF16, INT8, INT4], ids=lambda p: p.precision)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_weights_are_those_that_the_loaded_model_holds(
    name: str, precision: PrecisionChoice, tmp_path: Path
) -> None:
    write_torch_model(tmp_path, name)
    files = files_of(tmp_path)

    told = weight_bytes(saved_tensors(files), precision)

    model = loading.load_model(files, torch_dtype(precision.arithmetic))
    if precision.precision in WEIGHT_ONLY:
        quantized.quantize(model, precision.precision, files, torch.device("cpu"))
    if precision is not FP32:
        widen_head(model, layout_of(files.config), files)
    held = sum(part.nbytes for part in model.parameters())
    held += sum(
        part.nbytes for n, part in model.named_buffers() if n.endswith(("levels", "scales", "bias"))
    )
    assert told == pytest.approx(held, rel=0.03)


def test_weights_in_shards_are_added_up(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    write_torch_model(tmp_path, "bert")
    whole = weight_bytes(saved_tensors(files_of(tmp_path)), FP32)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="20KB")

    files = files_of(tmp_path)

    assert len(files.weights) > 1
    assert weight_bytes(saved_tensors(files), FP32) == whole


def test_pickled_weights_are_told_from_their_size(tmp_path: Path) -> None:
    write_torch_model(tmp_path, "bert", dtype="float32")
    whole = weight_bytes(saved_tensors(files_of(tmp_path)), FP32)
    from safetensors.torch import load_file

    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    files = find_model(str(tmp_path), choose=lambda m, n: choose_torch(m, n, allow_pickle=True))

    assert weight_bytes(saved_tensors(files), FP32) == pytest.approx(whole, rel=0.2)


@pytest.mark.parametrize("config", [BERT, QWEN3, MODERNBERT, {}], ids=["bert", "qwen3", "mb", "?"])
def test_activations_grow_with_the_tokens_of_a_batch(config: Mapping[str, object]) -> None:
    found = [activations(config, tokens, 64) for tokens in (4096, 8192, 16_384)]

    assert found[2] - found[1] == pytest.approx(2 * (found[1] - found[0]), rel=0.02)
    assert found[1] > 1.5 * found[0]


def test_the_longest_pair_is_a_batch_of_its_own() -> None:
    assert activations(BERT, 512, 4096, device="cuda") == activations(BERT, 4096, device="cuda")


def test_a_prefix_comes_on_top_of_a_batch_where_pairs_share_it() -> None:
    assert memory.largest_row(BERT, tokens=2048, longest=512) == 2048
    assert memory.largest_row(BERT, tokens=2048, longest=8192) == 8192
    assert memory.largest_row(QWEN3, tokens=2048, longest=8192) == 2048 + 8192
    shorter, longer = (activations(QWEN3, 2048, n, device="cuda") for n in (64, 8192))
    assert longer / shorter == pytest.approx((2048 + 8192) / (2048 + 64), rel=0.01)


@pytest.mark.parametrize("own", [12, 30, 200])
@pytest.mark.parametrize("query", [10, 600, 4000, 8000])
def test_what_a_gpu_gathers_for_a_batch_is_counted(query: int, own: int) -> None:
    budget, longest = 32_768, 8192
    pairs = [Piece(Ticket(b""), 0, TokenPair(*NOTHING), own, b"query", query)] * 3000
    start, stop = next_batch(pairs, 1500, budget=budget, padded=False)
    segments = [Segment(query, read=False), *[Segment(own, after=0)] * (stop - start)]
    row = PackedRow(segments, torch.device("cpu"), causal=True)

    index = row.keys.index
    assert index is not None
    gathered = 2 * len(index) * 8 * 128 * 2
    without = memory.SLACK * memory.largest_row(QWEN3, tokens=budget, longest=longest)
    without *= memory._Shape.of(QWEN3).numbers_a_token(2) * 2
    told = activations(QWEN3, budget, longest, device="cuda", precision=BF16)
    assert told - without >= memory.SLACK * gathered


def test_an_unknown_model_is_guessed_on_the_high_side() -> None:
    unknown = {**BERT, "model_type": "nobody knows"}

    assert activations({}, 2048) > activations(unknown, 2048) > activations(BERT, 2048)


def test_attention_weights_count_where_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept_up_to = memory.LONGEST_BY_PRODUCTS
    monkeypatch.setattr(memory, "fast_bf16", lambda: "AVX512-BF16")
    kept = [activations(BERT, 8192, n, precision=BF16) for n in (256, kept_up_to, 4 * kept_up_to)]
    monkeypatch.setattr(memory, "fast_bf16", lambda: "AMX")
    fused = [activations(BERT, 8192, n, precision=BF16) for n in (256, kept_up_to)]

    assert kept[0] < kept[1] == kept[2]
    assert fused[0] == fused[1] < kept[0]


def test_a_window_is_a_mask_of_the_longest_pair_squared_except_on_cuda() -> None:
    grown = [
        activations(MODERNBERT, 8192, 8192, device=d) - activations(MODERNBERT, 8192, 64, device=d)
        for d in ("cpu", "cuda")
    ]

    assert grown[0] > 8192**2
    assert grown[1] == 0


def test_a_weight_is_widened_beside_the_rest_while_it_is_used() -> None:
    one = SavedTensor("layers.0.mlp.up_proj.weight", "BF16", (3072, 1024))

    def with_it(tensors: list[SavedTensor]) -> int:
        return estimate(QWEN3, tensors, INT4, tokens=8, longest=8, device="cpu").activations

    assert with_it([one]) - with_it([]) >= 2 * one.count
    assert with_it([one, one]) == with_it([one])


MEASURE = """
import json, pathlib, re, sys
import numpy as np, torch
from rerank_plugins.config import RerankConfig
from rerank_plugins.models.encoding import Prefix, TokenPair
from rerank_plugins.models.files import find_model
from rerank_plugins.models.weights import choose_torch
from rerank_plugins.options import Precision
from rerank_plugins.scorers.torch import loading  # its own memory is not the model's
from rerank_plugins.scorers.torch.hardware import choose_precision
from rerank_plugins.scorers.torch.memory import estimate, saved_tensors
from rerank_plugins.scorers.torch.opening import open_torch_scorer

folder, precision, tokens, longest = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def status(name):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s*(\\d+) kB", text)[1]) * 1024

files = find_model(folder, choose=lambda m, n: choose_torch(m, n, allow_pickle=False))
choice = choose_precision(Precision(precision), torch.device("cpu"), None)
told = estimate(
    files.config, saved_tensors(files), choice, tokens=tokens, longest=longest, device="cpu"
)
before = status("VmRSS")
settings = {"model": folder, "backend": "torch", "device": "cpu", "precision": precision}
if longest > 4096:
    settings["max_length"] = 32_768
scorer = open_torch_scorer(RerankConfig(**settings))
loaded = status("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
shared = 100 if files.config["model_type"] == "qwen3" else 0
prefix = Prefix(ids=np.full(shared, 5, dtype=np.int32), key=b"query") if shared else None
ids = np.full(longest - shared, 5, dtype=np.int32)
pair = TokenPair(ids=ids, segments=None, truncated=False, prefix=prefix)
scorer.forward([pair] * max(1, tokens // len(ids)))
peak = status("VmHWM")
print(json.dumps({
    "told": told.total, "measured": peak - before,
    "told activations": told.activations, "activations": peak - loaded,
}))
"""

WRITE = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
sizes = dict(vocab_size=60000, hidden_size=1024, num_hidden_layers=6, num_attention_heads=16)
settings = {
    "xlm-roberta": dict(
        intermediate_size=4096, max_position_embeddings=4098, type_vocab_size=1, pad_token_id=1
    ),
    "modernbert": dict(
        intermediate_size=2624, max_position_embeddings=4096, pad_token_id=0, cls_token_id=2,
        sep_token_id=3, bos_token_id=2, eos_token_id=3,
    ),
    "qwen3": dict(
        intermediate_size=3072, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
        tie_word_embeddings=True,
    ),
}
kind, _, layers = sys.argv[2].partition(" of ")
sizes["num_hidden_layers"] = int(layers or 6)
if kind == "qwen3":
    auto, labels = AutoModelForCausalLM, {}
else:
    auto, labels = AutoModelForSequenceClassification, {"num_labels": 1}
config = AutoConfig.for_model(kind, **labels, **sizes, **settings[kind])
model = auto.from_config(config, dtype=torch.bfloat16)
model.save_pretrained(sys.argv[1])
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a model of about 130 million parameters, once."""
    made: dict[str, Path] = {}

    def write(kind: str) -> Path:
        if kind not in made:
            folder = made[kind] = tmp_path_factory.mktemp("large")
            if kind.startswith("qwen3"):
                tiny = write_language_model(folder / "tiny")
            else:
                name = kind.replace("modernbert", "modernbert cls")
                tiny = write_torch_model(folder / "tiny", name)
            (folder / "tokenizer.json").write_bytes((tiny / "tokenizer.json").read_bytes())
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", WRITE, str(folder), kind], check=True
            )
        return made[kind]

    return write


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize(
    ("kind", "precision", "tokens", "longest"),
    [
        ("xlm-roberta", "bf16", 2048, 512),
        ("xlm-roberta", "fp32", 2048, 512),
        ("xlm-roberta", "int4", 2048, 512),
        ("modernbert", "bf16", 2048, 4096),
        ("qwen3", "bf16", 2048, 300),
        ("qwen3 of 3", "bf16", 2048, 30_000),
    ],
)
def test_a_model_takes_no_more_than_it_is_said_to_and_not_much_less(
    kind: str, precision: str, tokens: int, longest: int, large: Callable[[str], Path]
) -> None:
    answer = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c", MEASURE),
            *(str(large(kind)), precision, str(tokens), str(longest)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    found = json.loads(answer.stdout)
    assert found["measured"] <= found["told"] <= 1.6 * found["measured"], found
