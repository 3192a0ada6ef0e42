"""Attention over a packed row: each pair's tokens see those of their own pair alone.

transformers hands queries, keys and values of a whole row to the function that is registered here,
with the row as a keyword that its models pass through. No model's code is copied or changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from transformers import AttentionInterface

from rerank_plugins.scorers.torch.by_length import attend_by_length
from rerank_plugins.scorers.torch.varlen import attend_varlen, find_varlen

if TYPE_CHECKING:
    import torch

    from rerank_plugins.scorers.torch.row import PackedRow

IMPLEMENTATION: Final = "rerank_plugins_packed"
"""The name under which transformers finds `packed_attention`. It builds no mask for it."""


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

    *query*, *key* and *value* are (1, heads, tokens, size), and keys and values may have fewer
    heads; returns (1, tokens, heads, size). *sliding_window* counts the tokens that one may see to
    either side, or before it where attention is causal, itself included.
    """
    del module, attention_mask
    packed_row.attention_calls += 1
    packed_row.window = sliding_window
    if packed_row.keeping is not None and packed_row.kept is None:
        packed_row.keeping.add(key, value)
    if packed_row.keys_only:
        packed_row.kept = key, value
        raise KeysKeptError
    reads_only = packed_row.kept is not None
    if packed_row.kept is not None:
        key, value = packed_row.kept
    varlen = find_varlen(query)
    if varlen is None:
        attended = attend_by_length(
            query, key, value, packed_row, scaling, sliding_window, reads_only=reads_only
        )
    else:
        attended = attend_varlen(
            varlen, query, key, value, packed_row, scaling, sliding_window, reads_only=reads_only
        )
    return attended.unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, packed_attention)
