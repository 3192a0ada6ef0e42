"""The CUDA path hands the same segments to torch's varlen attention, and gives the same logits."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.attention import varlen

from rerank_plugins.scorers.torch import attention
from rerank_plugins.scorers.torch import varlen as ours
from tests.tiny_torch import ARCHITECTURES, MAX_TOKENS
from tests.varlen_on_cpu import varlen_attn

if TYPE_CHECKING:
    from collections.abc import Callable

TOLERANCE = 1e-4
PACKED = [name for name, architecture in ARCHITECTURES.items() if architecture.packed]


def test_the_stand_in_has_the_signature_of_torch() -> None:
    """A torch that changes it would break the path that no CPU test can run."""

    def shape(function: Callable[..., Any]) -> list[tuple[Any, ...]]:
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    assert shape(varlen_attn) == shape(varlen.varlen_attn)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let the CPU take the path of CUDA; returns the keywords of every call."""
    seen: list[dict[str, Any]] = []

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs)
        return varlen_attn(*args, **kwargs)

    monkeypatch.setattr(attention, "find_varlen", lambda query: noted)
    return seen


@pytest.mark.parametrize("name", PACKED)
def test_varlen_attention_gives_the_logits_of_the_padded_forward(
    name: str, model_of: Callable[..., Any], calls: list[dict[str, Any]]
) -> None:
    model = model_of(name)
    for chosen in (range(60, 100), [3], [83, 3, 83, 24, 5]):
        found = model.found(chosen)
        np.testing.assert_allclose(found, model.expected[list(chosen)], rtol=0, atol=TOLERANCE)
    assert calls


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_varlen_attention_is_told_the_window_of_local_layers_alone(
    pooling: str, model_of: Callable[..., Any], calls: list[dict[str, Any]]
) -> None:
    """Layers 0 and 3 of 4 see all; local_attention 8 is four tokens to either side."""
    model = model_of(f"modernbert {pooling}")
    model.found([i for i, pair in enumerate(model.encoded) if pair.tokens == MAX_TOKENS][:2])

    assert [call["window_size"] for call in calls] == [(-1, -1), (4, 4), (4, 4), (-1, -1)]


@pytest.mark.parametrize(
    ("device", "dtype", "size", "taken"),
    [
        ("cuda", torch.float16, 64, True),
        ("cuda", torch.bfloat16, 32, True),
        ("cuda", torch.float32, 64, False),
        ("cuda", torch.float16, 20, False),
        ("cuda", torch.float16, 264, False),
        ("cpu", torch.bfloat16, 64, False),
        ("mps", torch.float16, 64, False),
    ],
)
def test_varlen_attention_is_taken_where_it_runs(
    device: str,
    dtype: torch.dtype,
    size: int,
    taken: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ours, "_working_varlen", lambda *_: varlen_attn)
    query = SimpleNamespace(device=SimpleNamespace(type=device), dtype=dtype, shape=(1, 4, 9, size))

    assert ours.find_varlen(query) is (varlen_attn if taken else None)  # type: ignore[arg-type]


def refuses(*_: Any, **__: Any) -> None:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


def older(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
    """Take neither a scale nor a window, as torch 2.10 may."""
    return query


def wrong(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.zeros_like(query)


@pytest.mark.parametrize(
    ("function", "usable"),
    [(varlen_attn, True), (refuses, False), (older, False), (wrong, False)],
)
def test_varlen_attention_is_tried_before_it_is_used(
    function: Callable[..., Any], usable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", function)

    found = ours._working_varlen.__wrapped__(torch.device("cpu"), torch.bfloat16, 16)

    assert (found is function) is usable


def test_a_batch_does_not_decide_how_keys_are_split(
    monkeypatch: pytest.MonkeyPatch, model_of: Callable[..., Any]
) -> None:
    """Torch would split by the longest pair, and a logit would move with its company."""
    seen: list[int | None] = []

    def noted(*args: Any, num_splits: int | None = None, **kwargs: Any) -> Any:
        seen.append(num_splits)
        return varlen_attn(*args, **kwargs)

    monkeypatch.setattr(attention, "find_varlen", lambda query: noted)
    model_of("bert").found([1, 2])

    assert set(seen) == {1}


@pytest.mark.gpu
@pytest.mark.parametrize("window", [(-1, -1), (4, 4)])
@pytest.mark.parametrize("reads_only", [False, True])
def test_the_stand_in_computes_what_torch_does(window: tuple[int, int], reads_only: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    lengths = [1, 7, 64, 30]
    offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    queries = torch.arange(len(lengths) + 1, dtype=torch.int32) if reads_only else offsets
    random = torch.Generator().manual_seed(1)
    states = [
        torch.randn(int(ends[-1]), 4, 64, generator=random).half()
        for ends in (queries, offsets, offsets)
    ]
    longest = 1 if reads_only else max(lengths)
    sizes = longest, max(lengths)
    options = {"scale": 0.2, "window_size": window}

    expected = varlen_attn(*states, queries, offsets, *sizes, **options)
    found = varlen.varlen_attn(
        *(part.cuda() for part in states), queries.cuda(), offsets.cuda(), *sizes, **options
    )

    assert isinstance(expected, torch.Tensor)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-2, atol=2e-3)
