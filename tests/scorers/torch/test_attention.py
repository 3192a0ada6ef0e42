"""Attention by plain matrix products: the same numbers, where it is used at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from rerank_plugins.scorers.torch import by_length, products
from rerank_plugins.scorers.torch.products import LONGEST_BY_PRODUCTS
from rerank_plugins.scorers.torch.row import PackedRow, Segment
from rerank_plugins.scorers.torch.varlen import attend_varlen
from tests.varlen_on_cpu import varlen_attn

if TYPE_CHECKING:
    from rerank_plugins.scorers.torch.row import Group

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
    found = products.attend_by_products(*half, None, None)

    assert found.dtype is torch.bfloat16
    assert (found.float() - truth).abs().mean() < 1.5 * fused


@pytest.mark.parametrize(
    ("dtype", "length", "instructions", "expected"),
    [
        (torch.bfloat16, LONGEST_BY_PRODUCTS, "AVX512-BF16", True),
        (torch.bfloat16, LONGEST_BY_PRODUCTS + 1, "AVX512-BF16", False),
        (torch.bfloat16, 1, "AVX512-BF16", False),
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
    monkeypatch.setattr(products, "fast_bf16", lambda: instructions)

    assert products.by_products(states(1, dtype, 0), length) is expected


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


@pytest.mark.parametrize("by_products", [False, True])
@pytest.mark.parametrize("window", [None, 3, 6])
@pytest.mark.parametrize("step", [1, 3, 100])
def test_documents_see_their_prefix_and_what_is_before_them_and_nothing_else(
    step: int, window: int | None, by_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys have half the heads, as in grouped-query attention; steps of queries change nothing."""
    query = states(28, torch.float32, 0)
    key, value = (states(28, torch.float32, seed, HEADS // 2) for seed in (1, 2))
    monkeypatch.setattr(by_length, "by_products", lambda *_: by_products)
    monkeypatch.setattr(by_length, "WEIGHTS_BYTES", 0)
    monkeypatch.setattr(by_length, "FEWEST_QUERIES", step)
    if step < 100:
        monkeypatch.setattr(products, "STEPS", (step, 2 * step))
        monkeypatch.setattr(products, "KEYS_AT_A_TIME", step)
    row = PackedRow(SHARED, torch.device("cpu"), causal=True)

    found = by_length.attend_by_length(query, key, value, row, None, window, reads_only=False)

    expected = one_by_one(query, key, value, window)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    varlen = attend_varlen(varlen_attn, query, key, value, row, None, window, reads_only=False)
    torch.testing.assert_close(varlen, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kept", [0, products.MASKS_BYTES])
def test_layers_of_one_row_see_what_their_own_window_lets_them_see(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks stay with the row from layer to layer, if they are not too large."""
    monkeypatch.setattr(by_length, "by_products", lambda *_: True)
    monkeypatch.setattr(products, "MASKS_BYTES", kept)
    made: list[range] = []
    make = products.causal_mask
    monkeypatch.setattr(
        products, "causal_mask", lambda *given: made.append(given[0]) or make(*given)
    )
    row = PackedRow(SHARED, torch.device("cpu"), causal=True)

    for layer, window in enumerate([None, 3, 6, None, 3]):
        made.clear()
        query = states(28, torch.float32, layer)
        key, value = (states(28, torch.float32, 9 + n + layer, HEADS // 2) for n in (1, 2))
        found = by_length.attend_by_length(query, key, value, row, None, window, reads_only=False)

        expected = one_by_one(query, key, value, window)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert bool(made) is (layer < 3 or not kept)


@pytest.mark.parametrize("window", [None, 200])
def test_steps_of_long_texts_give_what_the_fused_attention_gives(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, and long enough for keys in multiples of more than the least."""
    segments = [Segment(70, read=False), Segment(1300, after=0), Segment(129, after=0)]
    row = PackedRow(segments, torch.device("cpu"), causal=True)
    query = states(row.tokens, torch.float32, 0)
    key, value = (states(row.tokens, torch.float32, seed, HEADS // 2) for seed in (1, 2))

    def attend() -> torch.Tensor:
        return by_length.attend_by_length(query, key, value, row, None, window, reads_only=False)

    fused = attend()
    monkeypatch.setattr(by_length, "by_products", lambda *_: True)
    monkeypatch.setattr(by_length, "scaled_dot_product_attention", None)

    torch.testing.assert_close(attend(), fused, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 100])
def test_texts_of_any_length_attend_by_products_of_a_few_shapes(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each shape oneDNN keeps a kernel of half a megabyte."""
    shapes: set[tuple[torch.Size, torch.Size]] = set()
    attend = products.attend_by_products

    def noted(query: torch.Tensor, key: torch.Tensor, *rest: Any) -> torch.Tensor:
        shapes.add((query.shape, key.shape))
        return attend(query, key, *rest)

    monkeypatch.setattr(products, "attend_by_products", noted)
    monkeypatch.setattr(by_length, "by_products", lambda *_: True)
    segments = [Segment(61, read=False), *[Segment(n, after=0) for n in range(1, 580, 17)]]
    row = PackedRow(segments, torch.device("cpu"), causal=True)
    query, key = (states(row.tokens, torch.float32, 0, heads) for heads in (2, 1))

    by_length.attend_by_length(query, key, key, row, None, window, reads_only=False)

    assert {queries[2] for queries, _ in shapes} <= set(products.STEPS)
    assert {keys[2] % products.KEYS_AT_A_TIME for _, keys in shapes} == {0}
    # Thirty-five documents, with two products for each of up to five steps.
    assert len(shapes) <= 3 * 640 // 64


def test_keys_of_long_texts_come_in_a_few_numbers_too() -> None:
    filled = [products.with_filling(keys) for keys in range(1, 32_769)]

    assert len(set(filled)) < 60
    assert max(found / keys for keys, found in enumerate(filled, 1) if keys > 512) < 1.13
    assert all(found >= keys for keys, found in enumerate(filled, 1))
    # A step that ends among these keys needs no more of them than there are.
    assert filled == sorted(filled)
    assert all(products.with_filling(found) == found for found in filled)


@pytest.mark.parametrize("reads_only", [False, True])
@pytest.mark.parametrize(("pairs_at_once", "calls"), [(1, 8), (3, 3), (100, 1)])
def test_pairs_of_one_kind_attend_in_as_many_calls_as_memory_asks_for(
    pairs_at_once: int, calls: int, reads_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix, own, count = 50, 3, 8
    segments = [Segment(prefix, read=False), *[Segment(own, after=0)] * count]
    row = PackedRow(segments, torch.device("cpu"), causal=True)
    query = states(row.tokens, torch.float32, 0)
    key, value = (states(row.tokens, torch.float32, seed, HEADS // 2) for seed in (1, 2))
    query = query[:, :, row.reads] if reads_only else query
    whole = by_length.attend_by_length(query, key, value, row, None, None, reads_only=reads_only)
    copied: list[int] = []
    seen = by_length._seen

    def noted(part: torch.Tensor, group: Group, *rest: Any) -> torch.Tensor:
        copy = seen(part, group, *rest)
        if group.context is not None:
            copied.append(copy.nbytes)
        return copy

    a_pair = 2 * (HEADS // 2) * SIZE * (prefix + own) * 4  # keys and values
    monkeypatch.setattr(by_length, "_seen", noted)
    monkeypatch.setattr(by_length, "WEIGHTS_BYTES", pairs_at_once * a_pair)

    found = by_length.attend_by_length(query, key, value, row, None, None, reads_only=reads_only)

    places = slice(None) if reads_only else slice(prefix, None)
    torch.testing.assert_close(found[places], whole[places], rtol=0, atol=1e-6)
    assert len(copied) == 2 * calls
    assert max(copied) <= pairs_at_once * a_pair / 2


def test_weights_of_a_step_stay_within_bounds_where_keys_are_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sixteen heads share the keys of one, so weights fill memory before the copies do."""
    own, count = 30, 6
    row = PackedRow(
        [Segment(2, read=False), *[Segment(own, after=0)] * count], torch.device("cpu"), causal=True
    )
    query, key = (states(row.tokens, torch.float32, 0, heads) for heads in (16, 1))
    weights: list[int] = []
    attend = by_length._attend_masked

    def noted(query: torch.Tensor, key: torch.Tensor, *rest: Any) -> torch.Tensor:
        weights.append(query.shape[:3].numel() * key.shape[2] * 4)
        return attend(query, key, *rest)

    monkeypatch.setattr(by_length, "_attend_masked", noted)
    monkeypatch.setattr(by_length, "WEIGHTS_BYTES", 150_000)

    by_length.attend_by_length(query, key, key, row, None, None, reads_only=False)

    assert len(weights) == 1 + 3
    assert max(weights) <= 150_000


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
