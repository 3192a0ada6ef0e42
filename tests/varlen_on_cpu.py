"""A stand-in for `torch.nn.attention.varlen.varlen_attn`, which runs on CUDA alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.nn.attention.varlen import AuxRequest


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: AuxRequest | None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attend within segments by plain softmax; takes and returns (tokens, heads, size).

    As in flash attention, the last query of a segment stands beside its last key: query i sees key
    j where ``i + keys - queries - left <= j <= i + keys - queries + right``; -1 is no bound.
    """
    assert return_aux is None
    if query.shape[1] != key.shape[1]:
        assert enable_gqa
        shared = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(shared, 1) for states in (key, value))
    assert seqused_k is block_table is None
    assert num_splits in {None, 1}
    assert cu_seq_k is not None
    for offsets, states, longest in ((cu_seq_q, query, max_q), (cu_seq_k, key, max_k)):
        assert offsets.dtype == torch.int32
        assert offsets[0] == 0
        assert offsets[-1] == len(states)
        # The kernel computes no more of a segment than it was told to.
        assert int(offsets.diff().max()) <= longest
    assert len(cu_seq_q) == len(cu_seq_k)
    attended = torch.empty_like(query)
    for segment in range(len(cu_seq_q) - 1):
        queries = slice(int(cu_seq_q[segment]), int(cu_seq_q[segment + 1]))
        keys = slice(int(cu_seq_k[segment]), int(cu_seq_k[segment + 1]))
        interest = torch.einsum("qhd,khd->hqk", query[queries].float(), key[keys].float())
        interest = interest * (query.shape[-1] ** -0.5 if scale is None else scale)
        hidden = _outside(interest.shape[1], interest.shape[2], window_size)
        shares = interest.masked_fill(hidden, -torch.inf).softmax(-1)
        attended[queries] = torch.einsum("hqk,khd->qhd", shares, value[keys].float()).to(
            query.dtype
        )
    return attended


def _outside(queries: int, keys: int, window_size: tuple[int, int]) -> torch.Tensor:
    """Return (queries, keys) bool, True where a query may not see a key."""
    left, right = window_size
    distance = torch.arange(keys)[None] - (torch.arange(queries)[:, None] + keys - queries)
    hidden = torch.zeros(queries, keys, dtype=torch.bool)
    if left >= 0:
        hidden |= distance < -left
    if right >= 0:
        hidden |= distance > right
    return hidden
