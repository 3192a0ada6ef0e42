"""Attention over a packed row: each pair's tokens see those of their own pair alone.

transformers hands queries, keys and values of a whole row to the function that is registered here,
with the row as a keyword that its models pass through. No model's code is copied or changed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cache
from inspect import signature
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rerank_plugins.scorers.torch.hardware import fast_bf16

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

IMPLEMENTATION: Final = "rerank_plugins_packed"
"""The name under which transformers finds `packed_attention`. It builds no mask for it."""

LONGEST_BY_PRODUCTS: Final = 1024
"""Tokens in a pair: its attention weights are 16 MB in a layer of eight heads."""

VARLEN_DTYPES: Final = frozenset({torch.float16, torch.bfloat16})
VARLEN_LARGEST_HEAD: Final = 256


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbours of one length in a packed row: *count* pairs of *length* tokens.

    ``start`` is the first token of the first of them, ``pair`` its number.
    """

    start: int
    pair: int
    count: int
    length: int


@dataclass(slots=True)
class PackedRow:
    """Where the pairs of one forward pass lie in its row of tokens, and how far the pass has come.

    Pairs of one length should be neighbours: they share a call. ``keys_only`` makes attention leave
    the keys and values of the whole row in ``kept`` and stop; while they are kept, queries are
    those of each pair's first token.
    """

    lengths: Sequence[int]
    device: torch.device
    layer_calls: int = 0
    attention_calls: int = 0
    window: int | None = None
    keys_only: bool = False
    kept: tuple[torch.Tensor, torch.Tensor] | None = None
    groups: tuple[Group, ...] = field(init=False)
    offsets: torch.Tensor = field(init=False)
    """(pairs + 1,) int32: where each pair starts, and where the last one ends."""

    def __post_init__(self) -> None:
        ends = list(accumulate(self.lengths, initial=0))
        self.offsets = torch.tensor(ends, dtype=torch.int32, device=self.device)
        groups = []
        pair = 0
        for length, members in groupby(self.lengths):
            count = sum(1 for _ in members)
            groups.append(Group(ends[pair], pair, count, length))
            pair += count
        self.groups = tuple(groups)

    @property
    def tokens(self) -> int:
        """Length of the row."""
        return sum(self.lengths)

    @property
    def starts(self) -> torch.Tensor:
        """(pairs,) int32: each pair's first token."""
        return self.offsets[:-1]


class KeysKeptError(Exception):
    """Keys and values of the row are kept; the rest of the layer is not wanted. Never leaves."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_row: PackedRow,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,  # noqa: ANN401  what models tell other attention functions
) -> tuple[torch.Tensor, None]:
    """Attend within each pair; the signature is that of transformers' attention functions.

    *query*, *key* and *value* are (1, heads, tokens, size); returns (1, tokens, heads, size).
    *sliding_window* counts the tokens that one may see to either side, itself included.
    """
    del module, attention_mask
    packed_row.attention_calls += 1
    packed_row.window = sliding_window
    if packed_row.keys_only:
        packed_row.kept = key, value
        raise KeysKeptError
    first_only = packed_row.kept is not None
    if packed_row.kept is not None:
        key, value = packed_row.kept
    varlen = find_varlen(query)
    if varlen is None:
        attended = attend_by_length(
            query, key, value, packed_row, scaling, sliding_window, first_only=first_only
        )
    else:
        attended = attend_varlen(
            varlen, query, key, value, packed_row, scaling, sliding_window, first_only=first_only
        )
    return attended.unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, packed_attention)


def attend_by_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: PackedRow,
    scaling: float | None,
    window: int | None,
    *,
    first_only: bool,
) -> torch.Tensor:
    """Attend with one call for all pairs of one length; returns (tokens, heads, size).

    With *first_only*, *query* and the result hold each pair's first token alone.
    """
    heads, tokens, size = query.shape[1:]
    attended = query.new_empty(tokens, heads, size)
    for group in row.groups:
        start, length = group.start, group.length
        wanted = (group.pair, 1) if first_only else (start, length)
        attend = _attend_by_products if by_products(query, length) else scaled_dot_product_attention
        answer = attend(
            _cut(query, wanted[0], group.count, wanted[1]),
            _cut(key, start, group.count, length),
            _cut(value, start, group.count, length),
            attn_mask=_window_mask(length, window, query.device),
            scale=scaling,
        )  # (count, heads, length, size)
        end = wanted[0] + group.count * wanted[1]
        place = attended[wanted[0] : end].view(group.count, wanted[1], heads, size)
        place.copy_(answer.transpose(1, 2))
    return attended


def by_products(states: torch.Tensor, length: int) -> bool:
    """Whether pairs of *length* tokens attend by two plain matrix products.

    In bf16 on a CPU without AMX, torch's fused attention takes twice their time. Their weights fill
    memory by the square of the length, so long pairs do not.
    """
    return (
        states.device.type == "cpu"
        and states.dtype is torch.bfloat16
        and length <= LONGEST_BY_PRODUCTS
        and fast_bf16() == "AVX512-BF16"
    )


def _attend_by_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    attn_mask: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    """Do what scaled_dot_product_attention does; all are (pairs, heads, length, size)."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = torch.matmul(query * scale, key.transpose(-1, -2))
    if attn_mask is not None:
        weights = weights.masked_fill(~attn_mask, -torch.inf)
    return torch.matmul(weights.softmax(-1), value)


def _cut(states: torch.Tensor, start: int, count: int, length: int) -> torch.Tensor:
    """Return *count* neighbours of (1, heads, tokens, size) as (count, heads, length, size)."""
    part = states[0, :, start : start + count * length]
    return part.view(part.shape[0], count, length, -1).transpose(0, 1)


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return (length, length) bool, True where a token sees another; None where all see all."""
    if window is None or length <= window:
        return None
    places = torch.arange(length, device=device)
    return (places[:, None] - places[None]).abs() < window


def find_varlen(query: torch.Tensor) -> Callable[..., Any] | None:
    """Return torch's attention over segments of one row, where it takes *query*."""
    if query.device.type != "cuda" or query.dtype not in VARLEN_DTYPES:
        return None
    if query.shape[-1] % 8 or query.shape[-1] > VARLEN_LARGEST_HEAD:
        return None
    return _working_varlen(query.device, query.dtype, query.shape[-1])


@cache
def _working_varlen(
    device: torch.device, dtype: torch.dtype, size: int
) -> Callable[..., Any] | None:
    """Return varlen attention if it gives on *device* what one attention a length gives.

    It needs torch 2.11 or later, built with FlashAttention, and a GPU of the Ampere generation or
    later; the rest raise, each in its own way.
    """
    random = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 2, 24, size, generator=random) for _ in range(3)]
    query, key, value = (part.to(device, dtype) for part in states)
    row = PackedRow([9, 15], device)
    try:
        from torch.nn.attention.varlen import varlen_attn

        for window in (None, 4):
            found = attend_varlen(
                varlen_attn, query, key, value, row, None, window, first_only=False
            )
            expected = attend_by_length(query, key, value, row, None, window, first_only=False)
            # Wrong segments or windows are off by about 1, rounding by a hundredth.
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-1)
    # Missing modules, arguments and kernels, and wrong numbers, all mean: not here.
    except (ImportError, TypeError, RuntimeError, AssertionError) as exc:
        logger.info("varlen attention is not used on %s in %s: %s", device, dtype, exc)
        return None
    usable: Callable[..., Any] = varlen_attn
    return usable


def attend_varlen(
    varlen: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: PackedRow,
    scaling: float | None,
    window: int | None,
    *,
    first_only: bool,
) -> torch.Tensor:
    """Attend with one call of *varlen*, of `torch.nn.attention.varlen.varlen_attn`'s signature.

    Returns (tokens, heads, size). With *first_only*, *query* and the result hold each pair's first
    token alone; there must be no *window* then, since it would be aligned to the last token.
    """
    longest = max(row.lengths)
    queries, longest_query = row.offsets, longest
    if first_only:
        queries = torch.arange(len(row.lengths) + 1, dtype=torch.int32, device=row.device)
        longest_query = 1
    side = -1 if window is None else window - 1
    # Splitting keys over blocks would follow the batch's longest pair, and a logit with it.
    alone = {"num_splits": 1} if "num_splits" in signature(varlen).parameters else {}
    attended: torch.Tensor = varlen(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        queries,
        row.offsets,
        longest_query,
        longest,
        scale=scaling,
        window_size=(side, side),
        **alone,
    )
    return attended
