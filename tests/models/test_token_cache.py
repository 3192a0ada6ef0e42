"""Documents that were tokenised before are not again, and nothing about their ids changes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rerank_plugins.models.encoding import PairEncoder
from rerank_plugins.models.token_cache import ENTRY_BYTES, TokenCache, Tokens
from rerank_plugins.options import Truncation
from tests.tiny_models import Kind, make_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

DOCUMENTS = (
    "the cat sat on the mat",
    "a dog",
    "",
    "river bank " * 40,
    "[SEP] </s> the cat",
)


def tokens(count: int, length: int | None = None) -> Tokens:
    return Tokens(np.arange(count, dtype=np.int32), count if length is None else length)


def test_what_is_kept_is_bounded_in_bytes_and_the_oldest_goes_first() -> None:
    cache = TokenCache(3 * (ENTRY_BYTES + 40))
    for text in "abc":
        cache.keep(text, tokens(10))
    cache.look_up(["a"])
    cache.keep("d", tokens(10))

    found = cache.look_up(["a", "b", "c", "d"])

    assert [entry is not None for entry in found] == [True, False, True, True]


def test_a_text_larger_than_the_cache_is_not_kept_and_drops_nothing() -> None:
    cache = TokenCache(ENTRY_BYTES + 100)
    cache.keep("small", tokens(5))
    cache.keep("huge", tokens(1000))

    small, huge = cache.look_up(["small", "huge"])

    assert small is not None
    assert huge is None


def test_nothing_is_found_once_it_is_cleared() -> None:
    cache = TokenCache(10_000)
    cache.keep("a", tokens(5))
    cache.clear()

    assert cache.look_up(["a"]) == [None]


class Counting:
    """A tokenizer that counts the texts it is given."""

    def __init__(self, kind: Kind) -> None:
        self._tokenizer = make_tokenizer(kind)
        self.texts: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in {"_tokenizer", "texts"}:
            object.__setattr__(self, name, value)
        else:
            setattr(self._tokenizer, name, value)

    def encode_batch_fast(self, texts: Sequence[str], **options: object) -> object:
        self.texts += texts
        return self._tokenizer.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("cut_left", [False, True])
@pytest.mark.parametrize("truncation", Truncation)
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "roberta"])
@pytest.mark.parametrize("query", ["a query", "a query " * 30])
def test_ids_are_the_same_whether_a_document_was_seen_before(
    kind: Kind, truncation: Truncation, query: str, *, cut_left: bool
) -> None:
    def encoder(tokenizer: object) -> PairEncoder:
        return PairEncoder(tokenizer, max_length=24, truncation=truncation, cut_left=cut_left)

    tokenizer = Counting(kind)
    warm = encoder(tokenizer)
    warm.encode("something else " * 50, DOCUMENTS)
    tokenizer.texts.clear()

    found = warm.encode(query, DOCUMENTS)

    assert tokenizer.texts == [query]
    fresh = encoder(make_tokenizer(kind)).encode(query, DOCUMENTS)
    for one, other in zip(found, fresh, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.segments, other.segments)
        assert one.truncated == other.truncated


def test_many_threads_may_encode_the_same_documents() -> None:
    encoder = PairEncoder(make_tokenizer("bert"), max_length=32)
    expected = [pair.ids.tolist() for pair in encoder.encode("a query", DOCUMENTS * 20)]

    def encode(_: int) -> list[list[int]]:
        return [pair.ids.tolist() for pair in encoder.encode("a query", DOCUMENTS * 20)]

    with ThreadPoolExecutor(8) as threads:
        assert all(found == expected for found in threads.map(encode, range(40)))


@pytest.mark.parametrize("cut_left", [False, True])
def test_of_a_long_document_no_more_is_held_than_is_kept(cut_left: bool) -> None:
    encoder = PairEncoder(make_tokenizer("bert"), max_length=16, cut_left=cut_left)
    encoder.encode("cat", [DOCUMENTS[3]])

    (kept,) = encoder._documents.look_up([DOCUMENTS[3]])

    assert kept is not None
    assert (len(kept.ids), kept.length) == (16, 80)
    assert kept.ids.base is None or kept.ids.base.nbytes == kept.ids.nbytes
