"""Attention by two plain matrix products, which oneDNN computes in half precision.

It compiles a kernel of half a megabyte for every shape of a product, and keeps a thousand of them.
Where tokens see those before them alone, shapes are few: texts of any length are cut into steps.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch.nn.functional import pad

from rerank_plugins.scorers.torch.hardware import fast_bf16

LONGEST_BY_PRODUCTS: Final = 1024
"""Tokens in a pair: its attention weights are 16 MB in a layer of eight heads."""

STEPS: Final = (32, 64, 128)
"""Queries of a step of causal attention. Longer ones compute more of what queries may not see."""

MASKS_BYTES: Final = 2_000_000
"""Masks of a row that are kept from layer to layer: those of some texts of a few hundred tokens."""

KEYS_AT_A_TIME: Final = 64
FINENESS: Final = 8
"""The number of keys of a step is a multiple of as many, or of the power of two that is an eighth
of it or less: a document of 30 000 tokens has sixty shapes, not five hundred."""


def by_products(states: torch.Tensor, length: int) -> bool:
    """Whether *length* queries attend by two plain matrix products.

    In bf16 on a CPU without AMX, torch's fused attention takes twice their time. Their weights fill
    memory by the square of the length, so long pairs do not; and for one query no kernel need be
    compiled for every number of keys.
    """
    return (
        states.device.type == "cpu"
        and states.dtype is torch.bfloat16
        and 1 < length <= LONGEST_BY_PRODUCTS
        and fast_bf16() == "AVX512-BF16"
    )


def attend_by_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    added: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    """Do what scaled_dot_product_attention does; all are (count, heads, length, size).

    Where keys have fewer heads, neighbouring heads of the queries share one, as extra queries.
    *added*, (queries and those, keys), comes on top of the weights.
    """
    count, heads, queries, size = query.shape
    scale = size**-0.5 if scale is None else scale
    shared = heads // key.shape[1]
    if added is None:
        rows = (query * scale).reshape(count, -1, shared * queries, size)
        weights = torch.matmul(rows, key.transpose(-1, -2))  # (count, key heads, rows, keys)
    else:
        rows = query.reshape(-1, shared * queries, size)
        # Added in the product itself: a pass over all weights less.
        weights = torch.baddbmm(
            added.expand(len(rows), -1, -1),
            rows,
            key.reshape(len(rows), -1, size).transpose(-1, -2),
            alpha=scale,
        ).view(count, -1, shared * queries, key.shape[2])
    return torch.matmul(weights.softmax(-1), value).view(count, heads, queries, -1)


def attend_in_steps(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    into: torch.Tensor,
    scale: float | None,
    window: int | None,
    filling: int,
    masks: Masks,
) -> None:
    """Attend causally by plain products of a few shapes, for each has a kernel compiled and kept.

    Keys, of which the first *filling* are not seen, are as many as `with_filling` says. Steps go
    from the last queries to the first; the queries of the first are filled up to one of `STEPS`,
    and what those attend to, which may be nothing, is left out. What is attended goes *into*,
    shaped as *query*; *masks* are those of the row.
    """
    end, left = key.shape[2], query.shape[2]
    shared = query.shape[1] // key.shape[1]
    while left:
        step = next((size for size in STEPS if size >= left), STEPS[-1])
        first = max(0, left - step)
        unread = step - (left - first)
        queries = range(end - step, end)
        earliest = max(0, queries.start + unread + 1 - window) if window else 0
        seen = range(earliest - earliest % KEYS_AT_A_TIME, end if window else with_filling(end))
        attended = attend_by_products(
            filled_up(query[:, :, first:left], unread),
            key[:, :, seen.start : seen.stop],
            value[:, :, seen.start : seen.stop],
            masks.of(_Step(queries, seen, window, filling, shared), query),
            scale,
        )
        into[:, :, first:left] = attended[:, :, unread:]
        left, end = first, queries.start


class _Step(NamedTuple):
    """What the mask of a step hangs on."""

    queries: range
    seen: range
    window: int | None
    filling: int
    shared: int


class Masks:
    """What hides keys in the steps of a row: the same in every layer, and made once."""

    def __init__(self) -> None:
        self._made: dict[_Step, torch.Tensor] = {}
        self._bytes = 0

    def of(self, step: _Step, like: torch.Tensor) -> torch.Tensor:
        """Return what is added to the weights of *step*, (queries of all shared heads, keys)."""
        added = self._made.get(step)
        if added is None:
            mask = causal_mask(step.queries, step.seen, step.window, like.device)
            added = added_to_weights(mask, len(step.seen), like)
            added[:, : max(0, step.filling - step.seen.start)] = -torch.inf
            added = added.repeat(step.shared, 1)
            # Those of long documents are large, and many: they are made anew.
            if self._bytes + added.nbytes <= MASKS_BYTES:
                self._bytes += added.nbytes
                self._made[step] = added
        return added


def with_filling(keys: int) -> int:
    """Return how many keys are computed where *keys* are seen."""
    eighth = keys // FINENESS
    multiple = max(KEYS_AT_A_TIME, 1 << eighth.bit_length() >> 1)
    return -(-keys // multiple) * multiple


def added_to_weights(mask: torch.Tensor, keys: int, like: torch.Tensor) -> torch.Tensor:
    """Return (queries, keys), which hides what *mask*, (queries, last keys), does."""
    added = like.new_zeros(mask.shape[0], keys)
    added[:, -mask.shape[1] :].masked_fill_(~mask, -torch.inf)
    return added


def filled_up(states: torch.Tensor, count: int) -> torch.Tensor:
    """Return *states*, (count, heads, length, size), with *count* tokens of zeros before them."""
    return pad(states, (0, 0, count, 0)) if count else states


def causal_mask(
    queries: range, keys: range, window: int | None, device: torch.device
) -> torch.Tensor:
    """Return (queries, last keys) bool, for as many keys as some query may not see."""
    if window is None:
        return distance(queries, range(queries.start, keys.stop), device) >= 0
    before = distance(queries, keys, device)
    return (before >= 0) & (before < window)


def distance(queries: range, keys: range, device: torch.device) -> torch.Tensor:
    """Return (queries, keys) int: how far each key's place is before each query's."""
    query, key = (torch.arange(r.start, r.stop, device=device) for r in (queries, keys))
    return query[:, None] - key[None]
