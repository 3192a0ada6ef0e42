"""Attention over the segments of a row with one call for all segments of one length."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from rerank_plugins.scorers.torch.products import (
    STEPS,
    Masks,
    added_to_weights,
    attend_by_products,
    attend_in_steps,
    by_products,
    causal_mask,
    distance,
    filled_up,
    with_filling,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rerank_plugins.scorers.torch.row import Group, PackedRow

WEIGHTS_BYTES: Final = 16_000_000
FEWEST_QUERIES: Final = 128
MOST_QUERIES: Final = 256
"""Causal attention goes in steps of as many queries, and of as many segments of one kind, as this
much memory holds weights and copied keys of; but not of fewer queries than these. Nor of more, for
a step computes what its first queries may not see."""


def attend_by_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: PackedRow,
    scaling: float | None,
    window: int | None,
    *,
    reads_only: bool,
) -> torch.Tensor:
    """Attend with one call for segments of one kind; returns (tokens, heads, size).

    With *reads_only*, *query* and the result hold each pair's read token alone; it sees all of the
    pair, so there must be no *window* then.
    """
    heads, tokens, size = query.shape[1:]
    attended = query.new_empty(tokens, heads, size)
    before_keys, before_values = _of_this_layer(row)
    causal = row.causal and not reads_only
    in_steps = causal and by_products(query, STEPS[-1])
    for whole in row.groups:
        if reads_only and whole.pair is None:
            continue
        for group in _parts(whole, query, key, causal=row.causal):
            start, length = group.start, group.length
            if reads_only and group.pair is not None:
                start, length = group.pair, 1
            seen = _seen_tokens(group)
            filling = with_filling(seen) - seen if in_steps else 0
            place = attended[start : start + group.count * length]
            _attend(
                _cut(query, start, group.count, length),
                _seen(key, group, before_keys, filling),
                _seen(value, group, before_values, filling),
                place.view(group.count, length, heads, size).transpose(1, 2),
                scale=scaling,
                window=window,
                causal=causal,
                filling=filling,
                masks=row.masks,
            )
    return attended


def _parts(
    group: Group, query: torch.Tensor, key: torch.Tensor, *, causal: bool
) -> Iterator[Group]:
    """Cut *group* where the copies of its context, or a step's weights, would fill memory."""
    if not causal:
        yield group
        return
    seen = _seen_tokens(group)
    copied = 2 * key.shape[1] * key.shape[3] * seen
    weights = query.shape[1] * min(group.length, FEWEST_QUERIES) * seen
    most = max(1, WEIGHTS_BYTES // (max(copied, weights) * query.element_size()))
    for first in range(0, group.count, most):
        yield replace(
            group,
            start=group.start + first * group.length,
            pair=None if group.pair is None else group.pair + first,
            count=min(most, group.count - first),
        )


def _cut(states: torch.Tensor, start: int, count: int, length: int) -> torch.Tensor:
    """Return *count* neighbours of (1, heads, tokens, size) as (count, heads, length, size)."""
    part = states[0, :, start : start + count * length]
    return part.view(part.shape[0], count, length, -1).transpose(0, 1)


def _of_this_layer(row: PackedRow) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return keys and values of the prefix that is not in *row*, if there is one."""
    if row.before is None:
        return None, None
    # The last layer may attend twice.
    return row.before.layers[min(row.attention_calls, len(row.before.layers)) - 1]


def _seen_tokens(group: Group) -> int:
    """Return how many tokens a segment of *group* sees."""
    return group.length + (group.context[1] if group.context is not None else 0)


def _seen(
    states: torch.Tensor, group: Group, before: torch.Tensor | None, filling: int
) -> torch.Tensor:
    """Return what the segments of *group* see, (count, heads, filling, context and length, size).

    Of a context that is not in the row, *before* has the states. The *filling* is zeros.
    """
    own = _cut(states, group.start, group.count, group.length)
    if group.context is None:
        return filled_up(own, filling)
    if before is not None and group.context[0] < 0:
        shared = before
    else:
        shared = _cut(states, group.context[0], 1, group.context[1])
    parts = [shared.expand(group.count, -1, -1, -1), own]
    if filling:
        parts.insert(0, own.new_zeros(1, 1, 1, 1).expand(*own.shape[:2], filling, own.shape[3]))
    return torch.cat(parts, dim=2)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    into: torch.Tensor,
    *,
    scale: float | None,
    window: int | None,
    causal: bool,
    filling: int,
    masks: Masks,
) -> None:
    """Attend from (count, heads, queries, size) to keys of which the queries' own are the last.

    The first *filling* keys are seen by none. What is attended goes *into*, shaped as *query*.
    """
    if not causal:
        mask = _mask(range(query.shape[2]), range(key.shape[2]), window, query.device)
        into.copy_(_attend_masked(query, key, value, mask, scale))
        return
    if by_products(query, STEPS[-1]):
        attend_in_steps(query, key, value, into, scale, window, filling, masks)
        return
    count, heads, queries, _ = query.shape
    before = key.shape[2] - queries
    weights = count * heads * key.shape[2] * query.element_size()
    step = max(FEWEST_QUERIES, min(MOST_QUERIES, WEIGHTS_BYTES // weights))
    # The widest step first: growing ones would each find the memory of the last too small.
    for start in reversed(range(0, queries, step)):
        end = min(start + step, queries)
        seen = range(max(0, before + start + 1 - window) if window else 0, before + end)
        into[:, :, start:end] = _attend_masked(
            query[:, :, start:end],
            key[:, :, seen.start : seen.stop],
            value[:, :, seen.start : seen.stop],
            causal_mask(range(before + start, before + end), seen, window, query.device),
            scale,
        )


def _attend_masked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    """Attend where *mask*, (queries, last keys), lets a query see a key; it sees all others."""
    if by_products(query, query.shape[2]):
        added = None
        if mask is not None:
            shared = query.shape[1] // key.shape[1]
            added = added_to_weights(mask, key.shape[2], query).repeat(shared, 1)
        return attend_by_products(query, key, value, added, scale)
    if mask is not None:
        mask = pad(mask, (key.shape[2] - mask.shape[1], 0), value=True)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def _mask(
    queries: range, keys: range, window: int | None, device: torch.device
) -> torch.Tensor | None:
    """Return (queries, keys) bool, True where a token sees another; None where all see all."""
    if window is None or len(keys) <= window:
        return None
    return distance(queries, keys, device).abs() < window
