"""Attention by plain matrix products: the same numbers, where it is used at all."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from rerank_plugins.scorers.torch import attention
from rerank_plugins.scorers.torch.attention import LONGEST_BY_PRODUCTS, PackedRow

HEADS, SIZE = 4, 16


def states(tokens: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(1, HEADS, tokens, SIZE, generator=random).to(dtype)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_products_give_what_the_fused_attention_gives(
    scale: float | None, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, so that the rounding of half precision hides nothing."""
    lengths = [1, 5, 5, 9]
    parts = [states(sum(lengths), torch.float32, seed) for seed in range(3)]
    row = PackedRow(lengths, torch.device("cpu"))

    def attend() -> torch.Tensor:
        return attention.attend_by_length(*parts, row, scale, window, first_only=False)

    fused = attend()
    monkeypatch.setattr(attention, "by_products", lambda *_: True)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", None)

    torch.testing.assert_close(attend(), fused, rtol=0, atol=1e-6)


def test_bf16_products_are_as_near_to_the_truth_as_the_fused_attention() -> None:
    exact = [states(40, torch.float32, seed) for seed in range(3)]
    half = [part.bfloat16() for part in exact]
    truth = scaled_dot_product_attention(*exact)

    fused = (scaled_dot_product_attention(*half).float() - truth).abs().mean()
    found = attention._attend_by_products(*half, attn_mask=None, scale=None)

    assert found.dtype is torch.bfloat16
    assert (found.float() - truth).abs().mean() < 1.5 * fused


@pytest.mark.parametrize(
    ("dtype", "length", "instructions", "expected"),
    [
        (torch.bfloat16, LONGEST_BY_PRODUCTS, "AVX512-BF16", True),
        (torch.bfloat16, LONGEST_BY_PRODUCTS + 1, "AVX512-BF16", False),
        (torch.bfloat16, 10, "AMX", False),
        (torch.bfloat16, 10, None, False),
        (torch.float32, 10, "AVX512-BF16", False),
    ],
)
def test_only_short_pairs_in_bf16_without_amx_use_products(
    dtype: torch.dtype,
    length: int,
    instructions: str | None,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "fast_bf16", lambda: instructions)

    assert attention.by_products(states(1, dtype, 0), length) is expected
