"""A packed row: where the pairs of one forward pass lie in it, and what each token may see."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from rerank_plugins.scorers.torch.products import Masks

if TYPE_CHECKING:
    from collections.abc import Sequence


BEFORE: Final = -1
"""The number of the segment that is not in the row: the `KeptPrefix` of an earlier one."""

KEPT_BYTES: Final = 64_000_000
"""Keys and values of a prefix that are kept: of 500 tokens of Qwen3-Reranker-0.6B's shape."""


class Segment(NamedTuple):
    """A stretch of a row whose tokens see each other, and one of which is read where ``read``.

    They also see those of the segment with the number ``after``, where there is one; it may be
    `BEFORE`.
    """

    length: int
    after: int | None = None
    read: bool = True


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbours of one kind in a row: *count* segments of *length* tokens.

    ``start`` is the first token of the first of them, ``pair`` the number of its pair, None where
    they are not read. ``context`` is (start, length) of the tokens that all of them see too; its
    start is negative where they are not in the row.
    """

    start: int
    pair: int | None
    count: int
    length: int
    context: tuple[int, int] | None


@dataclass(slots=True)
class KeptPrefix:
    """What the tokens of a prefix are to those after them: keys and values of every layer.

    ``key`` is the prefix's digest, ``tokens`` its length. ``layers`` has keys and values of each,
    (1, heads, tokens, size), in the order in which layers attend.
    """

    key: bytes
    tokens: int
    layers: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def add(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep a copy of what a layer, whose row begins with the prefix, attends to of it."""
        kept = (keys[:, :, : self.tokens].clone(), values[:, :, : self.tokens].clone())
        self.layers.append(kept)


@dataclass(frozen=True, slots=True)
class Keys:
    """What the segments of a row attend to: tokens by ``index``, None for all tokens in order.

    ``offsets`` (segments + 1,) int32 says where those of each begin, ``longest`` how many one has
    at most.
    """

    index: torch.Tensor | None
    offsets: torch.Tensor
    longest: int


@dataclass
class PackedRow:
    """The segments of one forward pass, and how far the pass has come.

    Segments of one length and context should be neighbours: they share a call. With ``causal`` a
    token sees those before it, and each pair's last token is read, else its first. ``keys_only``
    makes attention leave the keys and values of the whole row in ``kept`` and stop; while they are
    kept, queries are those of the read tokens. ``before`` is what is known of the prefix that the
    segments after `BEFORE` have; ``keeping`` takes what the first segment is to others. ``masks``
    are those of causal attention by plain products.
    """

    segments: Sequence[Segment]
    device: torch.device
    causal: bool = False
    layer_calls: int = 0
    attention_calls: int = 0
    window: int | None = None
    keys_only: bool = False
    kept: tuple[torch.Tensor, torch.Tensor] | None = None
    before: KeptPrefix | None = None
    keeping: KeptPrefix | None = None
    masks: Masks = field(default_factory=Masks)
    ends: list[int] = field(init=False)
    """Where each segment starts, and where the last one ends."""

    def __post_init__(self) -> None:
        self.ends = list(accumulate((segment.length for segment in self.segments), initial=0))

    @property
    def tokens(self) -> int:
        """Length of the row."""
        return self.ends[-1]

    @property
    def longest(self) -> int:
        """Tokens in the longest segment."""
        return max(segment.length for segment in self.segments)

    @cached_property
    def offsets(self) -> torch.Tensor:
        """``ends`` as (segments + 1,) int32."""
        return self._tensor(self.ends)

    @cached_property
    def reads(self) -> torch.Tensor:
        """(pairs,) int32: the token that the head reads of each pair."""
        last = 1 if self.causal else 0
        return self._tensor(
            [self.ends[i + last] - last for i, segment in enumerate(self.segments) if segment.read]
        )

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The segments, neighbours of one kind together."""
        groups: list[Group] = []
        number = pair = 0
        for segment, members in groupby(self.segments):
            count = sum(1 for _ in members)
            context = self._span(segment.after) if segment.after is not None else None
            at = pair if segment.read else None
            groups.append(Group(self.ends[number], at, count, segment.length, context))
            number += count
            pair += count if segment.read else 0
        return tuple(groups)

    @cached_property
    def keys(self) -> Keys:
        """What each segment attends to."""
        return self._keys(range(len(self.segments)))

    @cached_property
    def read_keys(self) -> Keys:
        """What each pair attends to."""
        return self._keys([i for i, segment in enumerate(self.segments) if segment.read])

    def _keys(self, numbers: Sequence[int]) -> Keys:
        spans = [
            [self._span(i) for i in (self.segments[number].after, number) if i is not None]
            for number in numbers
        ]
        lengths = [sum(length for _, length in parts) for parts in spans]
        offsets = self._tensor(list(accumulate(lengths, initial=0)))
        index = None
        if sum(lengths) != self.tokens or any(len(parts) > 1 for parts in spans):
            pieces = [torch.arange(start, start + n) for parts in spans for start, n in parts]
            index = torch.cat(pieces).to(self.device)
        return Keys(index, offsets, max(lengths))

    def _span(self, number: int) -> tuple[int, int]:
        if number == BEFORE and self.before is not None:
            return -self.before.tokens, self.before.tokens
        return self.ends[number], self.segments[number].length

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)
