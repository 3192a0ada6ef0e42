"""Attention over the segments of a row by torch's own kernel, on CUDA."""

from __future__ import annotations

import logging
from functools import cache, partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Final

import torch

from rerank_plugins.scorers.torch.by_length import attend_by_length
from rerank_plugins.scorers.torch.row import PackedRow, Segment

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

VARLEN_DTYPES: Final = frozenset({torch.float16, torch.bfloat16})
VARLEN_LARGEST_HEAD: Final = 256


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
    shapes = (4, 2, 2)
    query, key, value = (
        torch.randn(1, heads, 24, size, generator=random).to(device, dtype) for heads in shapes
    )
    both = PackedRow([Segment(9), Segment(15)], device)
    causal = PackedRow([Segment(5, read=False), Segment(8, after=0), Segment(11, after=0)], device)
    causal.causal = True
    try:
        from torch.nn.attention.varlen import varlen_attn

        for row, window in ((both, None), (both, 4), (causal, None), (causal, 4)):
            found, expected = (
                attend(query, key, value, row, None, window, reads_only=False)
                for attend in (partial(attend_varlen, varlen_attn), attend_by_length)
            )
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
    reads_only: bool,
) -> torch.Tensor:
    """Attend with one call of *varlen*, of `torch.nn.attention.varlen.varlen_attn`'s signature.

    Returns (tokens, heads, size). With *reads_only*, *query* and the result hold each pair's read
    token alone; there must be no *window* then, since it would be aligned to the last token.
    """
    queries, longest_query, keys = row.offsets, row.longest, row.keys
    if reads_only:
        queries = torch.arange(len(row.reads) + 1, dtype=torch.int32, device=row.device)
        longest_query, keys = 1, row.read_keys
    # A segment's last query stands beside its last key, so what comes before it is a context.
    left = -1 if window is None else window - 1
    right = 0 if row.causal else left
    options: dict[str, Any] = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    if "num_splits" in signature(varlen).parameters:
        # Splitting keys over blocks would follow the batch's longest pair, and a logit with it.
        options["num_splits"] = 1
    attended: torch.Tensor = varlen(
        query[0].transpose(0, 1),
        _gathered(key, keys.index),
        _gathered(value, keys.index),
        queries,
        keys.offsets,
        longest_query,
        keys.longest,
        scale=scaling,
        window_size=(left, right),
        **options,
    )
    return attended


def _gathered(states: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """Return (1, heads, tokens, size) as (tokens, heads, size), those of *index* in its order."""
    by_token = states[0].transpose(0, 1)
    return by_token if index is None else by_token.index_select(0, index)
