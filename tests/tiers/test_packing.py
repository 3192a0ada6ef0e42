"""A pair as bytes: the same pair comes back, and nothing that is only nearly one."""

from __future__ import annotations

import math
import pickle
import struct
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugins.jobs import CachedPair
from rerank_plugins.results import Window
from rerank_plugins.tiers import packing
from rerank_plugins.tiers.packing import namespace, pack, unpack

KEY = bytes(range(16))
counts = st.integers(0, 2**32 - 1)
pairs = st.builds(
    CachedPair,
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none() | st.builds(Window, counts, counts, counts, counts),
    counts,
)


@given(st.binary(min_size=16, max_size=16), pairs)
def test_a_pair_comes_back_as_it_was(key: bytes, pair: CachedPair) -> None:
    packed = pack(key, pair)

    assert packed is not None
    assert unpack(key, packed) == pair


@given(pairs, st.integers(0, 33), st.integers(1, 255))
def test_a_byte_that_changed_is_no_pair(pair: CachedPair, place: int, change: int) -> None:
    packed = bytearray(pack(KEY, pair) or b"")
    packed[place] ^= change

    assert unpack(KEY, bytes(packed)) is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        7,
        b"",
        b"\0" * 34,
        pickle.dumps(CachedPair(1.0, truncated=False)),
        pack(KEY, CachedPair(1.0, truncated=False)) + b"\0",  # type: ignore[operator]
        pack(KEY, CachedPair(1.0, truncated=False))[:-1],  # type: ignore[index]
        pack(KEY[::-1], CachedPair(1.0, truncated=False)),
        pack(KEY, CachedPair(math.nan, truncated=False)),
        pack(KEY, CachedPair(math.inf, truncated=False)),
    ],
)
def test_what_is_not_a_pair_of_this_key_is_none(value: object) -> None:
    assert unpack(KEY, value) is None


@pytest.mark.parametrize(("form", "flags"), [(2, 0), (0, 0), (1, 4), (1, 255)])
def test_another_format_is_none_even_if_its_sum_is_right(form: int, flags: int) -> None:
    packed = struct.pack("<BBdI4I", form, flags, 1.0, 5, 0, 0, 0, 0)

    assert unpack(KEY, packed + struct.pack("<I", crc32(packed, crc32(KEY)))) is None


def test_numbers_that_do_not_fit_are_not_packed() -> None:
    assert pack(KEY, CachedPair(1.0, truncated=False, tokens=2**32)) is None
    assert pack(KEY, CachedPair(1.0, truncated=False, window=Window(0, 1, -1, 5))) is None


def test_keys_name_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace.cache_clear()
    monkeypatch.setattr(packing, "version", lambda name: f"9.9 of {name}")
    try:
        assert namespace() == b"rerank-plugins:9.9 of rerank-plugins:1:"
    finally:
        namespace.cache_clear()
