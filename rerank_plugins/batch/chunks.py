"""An input cut into chunks: runs of whole queries that are ranked, kept and done again as one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING

from rerank_plugins.batch.queries import BadQuery, Item, read_items
from rerank_plugins.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rerank_plugins.batch.sources import Place, Source


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive queries of an input: *items* of them from number *first* on, bad ones counted."""

    number: int
    start: Place
    first: int
    items: int
    pairs: int
    digest: bytes
    """Of its texts and ids."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What an input holds: counts, a digest of all its texts and ids, and its chunks."""

    chunks: tuple[Chunk, ...]
    items: int
    pairs: int
    bad: int
    digest: str


def survey(
    source: Source,
    chunk_pairs: int,
    *,
    skip_bad: bool,
    on_item: Callable[[], object] | None = None,
) -> Survey:
    """Read an input through, and cut it into chunks of at least *chunk_pairs* pairs.

    Nothing of it is kept. Where a chunk ends depends on the input and *chunk_pairs* alone.

    Raises:
        InputError: a query is bad and *skip_bad* is False; there is no query at all.
    """
    cut = _Cut(chunk_pairs)
    digest = _new_digest()
    items = pairs = bad = 0
    for start, item in read_items(source.records()):
        if isinstance(item, BadQuery):
            if not skip_bad:
                raise InputError(item.reason)
            bad += 1
        else:
            pairs += len(item.documents)
        content = _content_of(item)
        digest.update(content)
        cut.add(start, item, content)
        items += 1
        if on_item is not None:
            on_item()
    if not items:
        raise InputError(f"{source.path}: no queries")
    cut.end()
    return Survey(tuple(cut.chunks), items, pairs, bad, digest.hexdigest())


def read_chunk(source: Source, chunk: Chunk) -> list[Item]:
    """Return the queries of a chunk, bad ones as `BadQuery`.

    Raises:
        InputError: they are not those of the survey.
    """
    found = islice(read_items(source.records(chunk.start)), chunk.items)
    items = [item for _, item in found]
    digest = _new_digest()
    for item in items:
        digest.update(_content_of(item))
    if digest.digest() != chunk.digest:
        raise InputError(
            f"{source.path}: was changed while the batch ran; put it back and go on with --resume, "
            "or begin anew with --force"
        )
    return items


class _Cut:
    """Chunks in the making."""

    def __init__(self, chunk_pairs: int) -> None:
        self.chunks: list[Chunk] = []
        self._chunk_pairs = chunk_pairs
        self._start: Place | None = None
        self._first = self._items = self._pairs = self._weight = 0
        self._digest = _new_digest()

    def add(self, start: Place, item: Item, content: bytes) -> None:
        """Put one more query into the chunk, and end it where it is full."""
        if self._start is None:
            self._start = start
        documents = 0 if isinstance(item, BadQuery) else len(item.documents)
        self._items += 1
        self._pairs += documents
        self._digest.update(content)
        # What costs no pair takes memory all the same.
        self._weight += max(1, documents)
        if self._weight >= self._chunk_pairs:
            self.end()

    def end(self) -> None:
        """End the chunk, if anything is in it."""
        if self._start is None:
            return
        number = len(self.chunks)
        counts = self._first, self._items, self._pairs
        self.chunks.append(Chunk(number, self._start, *counts, self._digest.digest()))
        self._digest = _new_digest()
        self._first += self._items
        self._items = self._pairs = self._weight = 0
        self._start = None


def _new_digest() -> blake2b:
    return blake2b(digest_size=16)


def _content_of(item: Item) -> bytes:
    """Return what distinguishes an input from another; places and reasons name files."""
    if isinstance(item, BadQuery):
        return b"bad\n"
    content = item.query_id, item.text, item.document_ids, item.documents
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"
