"""How much memory a model takes, told from its config.json and the headers of its weights.

Nothing is loaded for it. Activations are those of one unpadded row of tokens; they grow with its
tokens, and where attention keeps its weights or copies keys with the longest pair too.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rerank_plugins.batching import ATTENDED
from rerank_plugins.models.layouts import layout_of
from rerank_plugins.options import WEIGHT_ONLY, Precision
from rerank_plugins.scorers.torch.by_length import FEWEST_QUERIES, WEIGHTS_BYTES
from rerank_plugins.scorers.torch.hardware import fast_bf16
from rerank_plugins.scorers.torch.linear import ROWS_AT_A_TIME
from rerank_plugins.scorers.torch.products import LONGEST_BY_PRODUCTS
from rerank_plugins.scorers.torch.quantized import group_of
from rerank_plugins.scorers.torch.row import KEPT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from rerank_plugins.models.files import ModelFiles
    from rerank_plugins.models.layouts import Layout
    from rerank_plugins.scorers.torch.hardware import PrecisionChoice

BYTES: Final = {Precision.FP32: 4, Precision.FP16: 2, Precision.BF16: 2}

SLACK: Final = 1.25
"""What allocators and the scratch space of matrix products add to the tensors themselves."""

BESIDE: Final = 150_000_000
"""Bytes that a process takes beside both: the model's code, its tokenizer, kernels made ready."""

MASK_BYTES: Final = 20
"""A place in the mask of a sliding window: two int64 differences, a bool, and its float."""

_SAVED_BYTES: Final = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2}
_IN_A_LAYER: Final = re.compile(r"\.\d+\.")


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes that a model takes: its weights, and the activations of one batch."""

    weights: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes of both, and of what comes with any model."""
        return self.weights + self.activations + BESIDE


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor as a checkpoint holds it; ``kind`` is safetensors' name of its number format."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether loading converts it."""
        return "F" in self.kind

    @property
    def is_linear(self) -> bool:
        """Whether it is the weight of a linear module in a layer, as its name and shape say."""
        return (
            len(self.shape) == 2
            and self.name.endswith(".weight")
            and _IN_A_LAYER.search(self.name) is not None
            and "embed" not in self.name
        )


def saved_tensors(files: ModelFiles) -> list[SavedTensor]:
    """Return the tensors of a checkpoint that are loaded, from the headers of its files.

    Of a language model's head, only the answers' rows are. A pickled file has none: it is one
    tensor of as many bytes, in the format config.json names.
    """
    found = []
    causal = _layout(files.config, causal=True) is not None
    for path in files.weights:
        if path.suffix == ".safetensors":
            found += [
                SavedTensor(name, entry["dtype"], tuple(entry["shape"]))
                for name, entry in _header(path).items()
                if name != "__metadata__" and not (causal and name.startswith("lm_head."))
            ]
        else:
            named = str(files.config.get("dtype") or files.config.get("torch_dtype"))
            kind = "F16" if named.endswith("16") else "F32"
            count = path.stat().st_size // _SAVED_BYTES[kind]
            found.append(SavedTensor(path.name, kind, (count,)))
    return found


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    return header


def estimate(
    config: Mapping[str, Any],
    tensors: Sequence[SavedTensor],
    precision: PrecisionChoice,
    *,
    tokens: int,
    longest: int,
    device: str,
) -> MemoryEstimate:
    """Estimate what a model takes on a kind of *device* with batches of up to *tokens* tokens.

    The pairs of a batch have up to *longest* tokens; `largest_row` says how large a batch may be
    then. *config* is config.json; what it does not say is guessed on the high side.

    * weights: every parameter in its final number format, scales of rounded weights included, what
      is in no layer and no embedding in float32;
    * activations, in numbers a token, of whichever part of a layer has more of them alive:
      *attention* the residual stream, its norm, queries, keys, values and their rotated or repeated
      copies, what was attended and its projection; *MLP* the residual stream, its norm, the
      intermediate states (three times where they are gated, twice else; of a few tokens, where it
      goes `ByRows`) and the output; *norm* two float32 copies;
    * attention weights, heads x tokens x longest, where they are kept: in plain matrix products
      (pairs of up to `LONGEST_BY_PRODUCTS` tokens), and in architectures that run padded; of a
      language model those of a step of queries, twice, and keys and values once more for as many
      pairs as see their prefix in one call, beside what else is alive by then (on a CPU; on a GPU,
      beside all), and of the prefix that is kept;
    * the largest weight twice more, widened and then reordered for its product.
    """
    size = BYTES[precision.arithmetic]
    shape = _Shape.of(config)
    row = largest_row(config, tokens=tokens, longest=longest)
    at_a_time = min(1.0, ROWS_AT_A_TIME / row) if device == "cpu" and shape.by_rows else 1.0
    repeats = not _by_products(precision, device)
    numbers = shape.numbers_a_token(size, at_a_time, repeats=repeats)
    places = 4 * 8 + 4 * 4 * shape.head
    a_token = numbers * size + places
    activations = row * a_token
    if device != "cuda" and shape.windowed:
        activations += MASK_BYTES * longest**2
    kept = 0
    if shares_prefixes(config):
        kept = KEPT_BYTES if device == "cpu" else 0
        beside = _causal_attention_bytes(shape, size, row, longest, device)
        attending = row * (shape.attending * size + places) + beside
        activations = activations + beside if device == "cuda" else max(activations, attending)
    # Longer pairs keep no weights, so the batch that does may be another one.
    length, weights = _attention_weights(config, shape, precision, longest, device)
    activations = max(activations, max(tokens, length) * (a_token + weights * size))
    largest = max((t.count for t in tensors if t.is_linear), default=0)
    return MemoryEstimate(
        weights=weight_bytes(tensors, precision),
        activations=int(SLACK * (activations + largest * (2 * size + 1)) + kept),
    )


def shares_prefixes(config: Mapping[str, Any]) -> bool:
    """Whether pairs of a query share the tokens that they begin with: language models' do."""
    layout = _layout(config)
    return layout is not None and layout.causal


def largest_row(config: Mapping[str, Any], *, tokens: int, longest: int) -> int:
    """Return the tokens of the largest batch where its budget is *tokens*.

    The prefix of a query, shorter than its longest pair, comes on top of the budget. A pair that is
    longer than the budget is a batch of its own.
    """
    return tokens + longest if shares_prefixes(config) else max(tokens, longest)


def weight_bytes(tensors: Iterable[SavedTensor], precision: PrecisionChoice) -> int:
    """Return the bytes of *tensors* as they are kept once loaded."""
    return sum(_kept_bytes(tensor, precision) for tensor in tensors)


def _kept_bytes(tensor: SavedTensor, precision: PrecisionChoice) -> int:
    size = BYTES[precision.arithmetic]
    if not tensor.is_float:
        return tensor.count * _SAVED_BYTES.get(tensor.kind, 1)
    if not tensor.is_linear:
        in_head = (
            _IN_A_LAYER.search(tensor.name) is None
            and "embed" not in tensor.name
            and "lm_head" not in tensor.name
            and len(tensor.shape) <= 2
            and tensor.name.endswith((".weight", ".bias"))
        )
        return tensor.count * (4 if in_head else size)
    group = (
        group_of(tensor.shape[1], precision.precision)
        if precision.precision in WEIGHT_ONLY
        else None
    )
    if group is None:
        return tensor.count * size
    bits = 8 if precision.precision is Precision.INT8 else 4
    return tensor.count * bits // 8 + tensor.count // group * size


@dataclass(frozen=True, slots=True)
class _Shape:
    """The sizes of a model's layers, in numbers."""

    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head: int
    gated: bool
    by_rows: bool
    windowed: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Shape:
        """Read config.json, by the names that transformers' models give their sizes."""
        hidden = _first(config, "hidden_size", "dim", "d_model", "n_embd") or 4096
        heads = _first(config, "num_attention_heads", "n_heads", "n_head") or max(1, hidden // 64)
        layout = _layout(config)
        return cls(
            hidden=hidden,
            intermediate=_first(config, "intermediate_size", "hidden_dim", "d_ff") or 4 * hidden,
            heads=heads,
            key_heads=_first(config, "num_key_value_heads") or heads,
            head=_first(config, "head_dim") or math.ceil(hidden / heads),
            gated=layout is None or layout.causal or layout.activation is None,
            by_rows=layout is not None and layout.mlp is not None,
            windowed=bool(_first(config, "local_attention")),
        )

    @property
    def attending(self) -> int:
        """Numbers that are alive for a token while it attends: no longer what is rotated since."""
        return 2 * self.hidden + 3 * self.heads * self.head + 2 * self.key_heads * self.head

    def numbers_a_token(self, size: int, at_a_time: float = 1.0, *, repeats: bool = True) -> float:
        """Return how many numbers of *size* bytes are alive for a token, where that is most.

        Of the tokens a share *at_a_time* has its intermediate states alive. Keys and values of
        fewer heads are copied for each of the queries' where attention *repeats* them.
        """
        queries, keys = self.heads * self.head, self.key_heads * self.head
        attention = 3 * self.hidden + 3 * queries + 2 * keys
        if self.gated:  # the decoders and ModernBERT, whose positions turn queries and keys
            attention += queries + keys
        if repeats and self.key_heads != self.heads:
            attention += 2 * queries
        mlp = 3 * self.hidden + (3 if self.gated else 2) * self.intermediate * at_a_time
        norm = 2 * self.hidden + 2 * self.hidden * 4 // size
        return max(attention, mlp, norm)


def _causal_attention_bytes(shape: _Shape, size: int, row: int, longest: int, device: str) -> int:
    """Return what attention of a language model holds beside the *row* itself."""
    a_key = 2 * shape.key_heads * shape.head * size
    if device == "cuda":
        # Keys and values are gathered for all pairs, each with its prefix, and for the prefixes.
        return (ATTENDED + 1) * row * a_key
    # Weights twice, for a softmax.
    weights = FEWEST_QUERIES * shape.heads * longest * size
    return 2 * max(WEIGHTS_BYTES, weights) + max(WEIGHTS_BYTES, longest * a_key)


def _attention_weights(
    config: Mapping[str, Any],
    shape: _Shape,
    precision: PrecisionChoice,
    longest: int,
    device: str,
) -> tuple[int, int]:
    """Return the longest pair whose attention weights are kept, and how many for a token of it."""
    layout = _layout(config)
    if layout is not None and layout.causal:
        # Kept for a step of queries at a time, which `estimate` counts.
        return 0, 0
    if layout is not None and not layout.packed:
        # Those for content and both kinds of position, and a softmax in float32.
        return longest, 8 * shape.heads * longest
    if _by_products(precision, device):
        length = min(longest, LONGEST_BY_PRODUCTS)
        return length, 2 * shape.heads * length
    return 0, 0


def _by_products(precision: PrecisionChoice, device: str) -> bool:
    """Whether shorter pairs attend by plain matrix products."""
    return (
        device == "cpu" and precision.arithmetic is Precision.BF16 and fast_bf16() == "AVX512-BF16"
    )


def _layout(config: Mapping[str, Any], *, causal: bool | None = None) -> Layout | None:
    """Return the row of an architecture, of whichever kind where *causal* does not say."""
    kinds = (False, True) if causal is None else (causal,)
    return next(filter(None, (layout_of(config, causal=kind) for kind in kinds)), None)


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    """Return the first positive number that *config* holds under one of *names*."""
    values = (config.get(name) for name in names)
    return next(
        (v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), None
    )
