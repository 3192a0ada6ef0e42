"""Pairs as servers are asked for them, and the requests that a batch comes to. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BYTES_PER_TOKEN: Final = 4
"""Of English text in most vocabularies; the server has the true number, only costs hang on this."""

MOST_BODY_BYTES: Final = 1_500_000
"""Text in one request: servers take 2 MB and more, and JSON adds to it."""

FEWEST: Final = 16
"""Documents below which a request is not divided among servers: that would save nothing."""


def estimated_tokens(text: str) -> int:
    """Return about how many tokens *text* has, at least 1."""
    return max(1, len(text.encode()) // BYTES_PER_TOKEN)


class RemotePrefix(NamedTuple):
    """The query that pairs share: those of one travel together, as one request."""

    key: bytes
    tokens: int


@dataclass(frozen=True, slots=True)
class RemotePair:
    """A pair of texts; its ``tokens`` are estimated, for the server does not say."""

    query: str
    document: str
    prefix: RemotePrefix
    own: int
    truncated: bool = False
    instruction: str | None = None

    @property
    def tokens(self) -> int:
        """About how long it is, its query counted."""
        return self.prefix.tokens + self.own


def prefix_of(query: str, instruction: str | None) -> RemotePrefix:
    """Return what the pairs of *query* share."""
    digest = blake2b(repr((query, instruction)).encode(), digest_size=16).digest()
    return RemotePrefix(digest, estimated_tokens(query))


class Part(NamedTuple):
    """One request: pairs of a query, and their places in the batch."""

    places: Sequence[int]
    pairs: Sequence[RemotePair]

    def halves(self) -> tuple[Part, Part]:
        """Divide it in two."""
        half = len(self.pairs) // 2
        return (
            Part(self.places[:half], self.pairs[:half]),
            Part(self.places[half:], self.pairs[half:]),
        )


def parts_of(pairs: Sequence[RemotePair], *, documents: int, servers: int) -> list[Part]:
    """Divide a batch into requests of one query, *documents* and a body of bounded size each.

    Where there are several *servers*, a large one is divided among them.
    """
    share = max(FEWEST, -(-len(pairs) // servers))
    groups: dict[bytes, list[int]] = {}
    for place, pair in enumerate(pairs):
        groups.setdefault(pair.prefix.key, []).append(place)
    return [
        Part(places, [pairs[place] for place in places])
        for group in groups.values()
        for places in _bounded(group, pairs, min(documents, share))
    ]


def _bounded(
    places: Sequence[int], pairs: Sequence[RemotePair], documents: int
) -> Iterator[list[int]]:
    current: list[int] = []
    size = 0
    for place in places:
        length = pairs[place].own * BYTES_PER_TOKEN
        if current and (len(current) == documents or size + length > MOST_BODY_BYTES):
            yield current
            current, size = [], 0
        current.append(place)
        size += length
    if current:
        yield current
