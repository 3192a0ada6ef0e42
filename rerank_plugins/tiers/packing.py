"""A scored pair as bytes, and back: no pickle, and nothing that is only nearly a pair."""

from __future__ import annotations

import math
import struct
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final
from zlib import crc32

from rerank_plugins.jobs import CachedPair
from rerank_plugins.results import Window

FORMAT: Final = 1
"""Raised when the layout below changes: values of another one are not found."""

_PAIR: Final = struct.Struct("<BBdI4I")
"""Format, flags, logit, tokens; index, count, start and end of the window."""

_CHECK: Final = struct.Struct("<I")

_TRUNCATED, _WINDOWED = 1, 2


@cache
def namespace() -> bytes:
    """Return what every key begins with: a release may change a logit, so it names the release."""
    try:
        release = version("rerank-plugins")
    except PackageNotFoundError:
        release = "unknown"
    return f"rerank-plugins:{release}:{FORMAT}:".encode()


def pack(key: bytes, pair: CachedPair) -> bytes | None:
    """Return *pair* as bytes that belong to *key*, or None where its numbers are too large."""
    window = pair.window
    flags = _TRUNCATED * pair.truncated | _WINDOWED * (window is not None)
    place = (0, 0, 0, 0)
    if window is not None:
        place = (window.index, window.count, window.start, window.end)
    try:
        packed = _PAIR.pack(FORMAT, flags, pair.logit, pair.tokens, *place)
    except struct.error:
        return None
    return packed + _CHECK.pack(crc32(packed, crc32(key)))


def unpack(key: bytes, value: object) -> CachedPair | None:
    """Return the pair that *value* holds, or None where it is not what `pack` made for *key*."""
    if not isinstance(value, bytes) or len(value) != _PAIR.size + _CHECK.size:
        return None
    packed = value[: _PAIR.size]
    if _CHECK.unpack(value[_PAIR.size :])[0] != crc32(packed, crc32(key)):
        return None
    form, flags, logit, tokens, index, count, start, end = _PAIR.unpack(packed)
    if form != FORMAT or flags & ~(_TRUNCATED | _WINDOWED) or not math.isfinite(logit):
        return None
    window = Window(index, count, start, end) if flags & _WINDOWED else None
    return CachedPair(logit, bool(flags & _TRUNCATED), window, tokens)
