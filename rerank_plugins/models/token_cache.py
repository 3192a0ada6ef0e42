"""Token ids of documents that came before, bounded in bytes."""

from __future__ import annotations

import threading
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from cachetools import LRUCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

ENTRY_BYTES: Final = 300
"""What an entry takes beside its ids: its key and the objects around it."""


class Tokens(NamedTuple):
    """A text as token ids, without special tokens.

    ``ids`` (tokens,) int32 may be cut to what a pair has room for; ``length`` counts all tokens.
    ``offsets`` (tokens, 2) int32 are the first character of each token and the one after its last;
    None where nobody asks which characters a token is.
    """

    ids: NDArray[np.int32]
    length: int
    offsets: NDArray[np.int32] | None = None


class TokenCache:
    """Tokens by text, the least recently used dropped first; safe in many threads.

    A text is kept as its digest: what was seen is not held in memory as text.
    """

    def __init__(self, size_bytes: int) -> None:
        self._kept: LRUCache[bytes, Tokens] = LRUCache(size_bytes, getsizeof=_size)
        self._lock = threading.Lock()

    def look_up(self, texts: Sequence[str]) -> list[Tokens | None]:
        """Return what is kept of each text, None where it is new."""
        keys = [_key(text) for text in texts]
        with self._lock:
            return [self._kept.get(key) for key in keys]

    def keep(self, text: str, tokens: Tokens) -> None:
        """Keep a text's tokens, unless they are larger than the whole cache."""
        if _size(tokens) <= self._kept.maxsize:
            with self._lock:
                self._kept[_key(text)] = tokens

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()


def _key(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _size(tokens: Tokens) -> int:
    offsets = 0 if tokens.offsets is None else tokens.offsets.nbytes
    return tokens.ids.nbytes + offsets + ENTRY_BYTES
