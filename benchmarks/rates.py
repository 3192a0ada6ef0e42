"""What the machine can do at best: the matrix rate on a model's own layers, and a pair's work."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines import torch_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from workloads import Request

CPU_ROWS = (512, 2048, 4096)
CUDA_ROWS = (4096, 16_384, 65_536)
MEASURE_S = 0.2
"""Seconds for one layer shape; the fastest call of them counts."""


@dataclass(frozen=True, slots=True)
class Work:
    """The arithmetic of a model: what its padded forward would do if nothing was padded.

    *per_token* is the floating-point operations of the linear layers of the encoder for a token;
    *windows* holds for each layer how many tokens a token sees at most, None where all.
    *layers* are the (inputs, outputs) of the linear layers.
    """

    per_token: int
    width: int
    windows: tuple[int | None, ...]
    layers: frozenset[tuple[int, int]]

    def flops(self, lengths: Sequence[int]) -> int:
        """Operations for pairs of *lengths* tokens; embeddings, norms and the head are left out.

        A linear layer of n weights does 2 n a token; attention does 2 · 2 · width · seen a token,
        for the products with keys and with values.
        """
        return sum(
            n * self.per_token + sum(4 * self.width * n * min(n, w or n) for w in self.windows)
            for n in lengths
        )


def work_of(folder: Path) -> Work:
    """Read a model's work off its modules, without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    linear = [
        module
        for name, module in model.named_modules()
        # Of the head, a row a pair is read: next to nothing.
        if isinstance(module, torch.nn.Linear) and (".layer." in name or ".layers." in name)
    ]
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    # `local_attention` counts both sides; the token itself stands between them.
    local = getattr(config, "local_attention", 0) + 1
    width = config.hidden_size
    return Work(
        per_token=2 * sum(module.weight.numel() for module in linear),
        width=width,
        windows=tuple(None if kind == "full_attention" else local for kind in kinds),
        # Queries, keys and values in one product are a shape that packed execution may use.
        layers=frozenset({(m.in_features, m.out_features) for m in linear} | {(width, 3 * width)}),
    )


def token_lengths(folder: Path, requests: Sequence[Request], max_length: int) -> list[int]:
    """Return the tokens of every pair, cut as all engines cut them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    pairs = [(r.query, document) for r in requests for document in r.documents]
    return [len(encoded.ids) for encoded in tokenizer.encode_batch(pairs)]


def matrix_rate(work: Work, precision: str, device: str = "cpu") -> float:
    """Return the best rate in FLOP/s of any of the model's linear layers, by any way there is.

    On a CPU, weights are tried both as torch keeps them and as oneDNN packs them.
    """
    import torch

    dtype = torch_type(precision)
    best = 0.0
    with torch.inference_mode():
        for inputs, outputs in sorted(work.layers):
            weight = torch.randn(outputs, inputs, dtype=torch.float32).to(device, dtype)
            bias = torch.zeros(outputs, dtype=dtype, device=device)
            for rows in CPU_ROWS if device == "cpu" else CUDA_ROWS:
                states = torch.randn(rows, inputs, dtype=torch.float32).to(device, dtype)
                for call in _ways(states, weight, bias):
                    best = max(best, 2 * rows * inputs * outputs / _fastest_s(call, device))
    return best


def _ways(states: Any, weight: Any, bias: Any) -> Iterator[Callable[[], object]]:  # noqa: ANN401
    import torch

    yield lambda: torch.nn.functional.linear(states, weight, bias)
    if states.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, states.shape[0])
    # Private operators: where this torch has them not, or oneDNN not this type, one way is left.
    except (AttributeError, RuntimeError):
        return
    yield lambda: torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")


def _fastest_s(call: Callable[[], object], device: str) -> float:
    import torch

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    call()
    wait()
    fastest = float("inf")
    until = time.perf_counter() + MEASURE_S
    while time.perf_counter() < until:
        started = time.perf_counter()
        call()
        wait()
        fastest = min(fastest, time.perf_counter() - started)
    return fastest
