"""Attention by plain matrix products: the same numbers, where it is used at all."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from rerank_plugins.scorers.torch import by_length
from rerank_plugins.scorers.torch.by_length import LONGEST_BY_PRODUCTS
from rerank_plugins.scorers.torch.row import PackedRow, Segment
from rerank_plugins.scorers.torch.varlen import attend_varlen
from tests.varlen_on_cpu import varlen_attn

HEADS, SIZE = 4, 16


def states(tokens: int, dtype: torch.dtype, seed: int, heads: int = HEADS) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(1, heads, tokens, SIZE, generator=random).to(dtype)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_products_give_what_the_fused_attention_gives(
    scale: float | None, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, so that the rounding of half precision hides nothing."""
    lengths = [1, 5, 5, 9]
    parts = [states(sum(lengths), torch.float32, seed) for seed in range(3)]
    row = PackedRow([Segment(length) for length in lengths], torch.device("cpu"))

    def attend() -> torch.Tensor:
        return by_length.attend_by_length(*parts, row, scale, window, reads_only=False)

    fused = attend()
    monkeypatch.setattr(by_length, "by_products", lambda *_: True)
    monkeypatch.setattr(by_length, "scaled_dot_product_attention", None)

    torch.testing.assert_close(attend(), fused, rtol=0, atol=1e-6)


def test_bf16_products_are_as_near_to_the_truth_as_the_fused_attention() -> None:
    exact = [states(40, torch.float32, seed) for seed in range(3)]
    half = [part.bfloat16() for part in exact]
    truth = scaled_dot_product_attention(*exact)

    fused = (scaled_dot_product_attention(*half).float() - truth).abs().mean()
    found = by_length._attend_by_products(*half, None, None)

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
    monkeypatch.setattr(by_length, "fast_bf16", lambda: instructions)

    assert by_length.by_products(states(1, dtype, 0), length) is expected


# Two prompts: a prefix of five tokens with three documents, and one of three with one.
SHARED = (
    Segment(5, read=False),
    Segment(2, after=0),
    Segment(7, after=0),
    Segment(7, after=0),
    Segment(3, read=False),
    Segment(4, after=4),
)


def one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
) -> torch.Tensor:
    """Attend from each token of SHARED by itself, to what a prompt written out lets it see."""
    starts = [0, 5, 7, 14, 21, 24, 28]
    attended = torch.empty(28, HEADS, SIZE)
    for number, segment in enumerate(SHARED):
        before: list[int] = []
        if segment.after is not None:
            before = list(range(starts[segment.after], starts[segment.after + 1]))
        for place in range(starts[number], starts[number + 1]):
            seen = [*before, *range(starts[number], place + 1)]
            seen = seen[-window:] if window else seen
            keys, values = (part[0][:, seen].repeat_interleave(2, 0) for part in (key, value))
            weights = torch.einsum("hd,hkd->hk", query[0, :, place], keys) / SIZE**0.5
            attended[place] = torch.einsum("hk,hkd->hd", weights.softmax(-1), values)
    return attended


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("window", [None, 3, 6])
@pytest.mark.parametrize("step", [1, 3, 100])
def test_documents_see_their_prefix_and_what_is_before_them_and_nothing_else(
    step: int, window: int | None, products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys have half the heads, as in grouped-query attention; steps of queries change nothing."""
    query = states(28, torch.float32, 0)
    key, value = (states(28, torch.float32, seed, HEADS // 2) for seed in (1, 2))
    monkeypatch.setattr(by_length, "by_products", lambda *_: products)
    monkeypatch.setattr(by_length, "WEIGHTS_BYTES", 0)
    monkeypatch.setattr(by_length, "FEWEST_QUERIES", step)
    row = PackedRow(SHARED, torch.device("cpu"), causal=True)

    found = by_length.attend_by_length(query, key, value, row, None, window, reads_only=False)

    expected = one_by_one(query, key, value, window)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    varlen = attend_varlen(varlen_attn, query, key, value, row, None, window, reads_only=False)
    torch.testing.assert_close(varlen, expected, rtol=0, atol=1e-5)


def test_the_last_token_of_each_pair_is_read_and_sees_all_of_it() -> None:
    query = states(28, torch.float32, 0)
    key, value = (states(28, torch.float32, seed, HEADS // 2) for seed in (1, 2))
    row = PackedRow(SHARED, torch.device("cpu"), causal=True)
    assert row.reads.tolist() == [6, 13, 20, 27]

    read = query[:, :, row.reads]
    expected = one_by_one(query, key, value, None)[row.reads]
    found = by_length.attend_by_length(read, key, value, row, None, None, reads_only=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    varlen = attend_varlen(varlen_attn, read, key, value, row, None, None, reads_only=True)
    torch.testing.assert_close(varlen, expected, rtol=0, atol=1e-5)
