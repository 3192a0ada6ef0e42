"""Arguments of a call: what is read late, and what cannot be waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rerank_plugins.errors import InputError, ScoringError
from rerank_plugins.requests import DeferredTexts, check_timeout

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = ["red fox", "", "blue whale"]


def first_word(text: str) -> str:
    return text.split(maxsplit=1)[0]


def next_word(text: str) -> str:
    return next(iter(text.split()))


def looked_up(text: str) -> str:
    return {"red fox": "fox"}[text]


def test_deferred_texts_are_a_sequence_of_what_is_read() -> None:
    texts = DeferredTexts(WORDS, str.upper)

    assert list(texts) == ["RED FOX", "", "BLUE WHALE"]
    assert (texts[0], texts[-1], texts[1:], len(texts)) == (
        "RED FOX",
        "BLUE WHALE",
        ["", "BLUE WHALE"],
        3,
    )
    with pytest.raises(IndexError):
        texts[3]


@pytest.mark.parametrize(
    ("read", "cause"),
    [(first_word, IndexError), (next_word, StopIteration), (looked_up, KeyError)],
)
def test_a_text_that_cannot_be_read_is_named_by_index(
    read: Callable[[str], str], cause: type[Exception]
) -> None:
    message = rf"the text of documents\[1\] could not be read: {cause.__name__}"
    for use in (list, lambda texts: texts[1], lambda texts: texts[:2]):
        with pytest.raises(ScoringError, match=message) as caught:
            use(DeferredTexts(WORDS, read))
        assert isinstance(caught.value.__cause__, cause)


@pytest.mark.parametrize("timeout_s", [float("inf"), float("nan"), 1e12, 0, -1.0, True, "3"])
def test_a_timeout_that_cannot_be_waited_for_is_refused(timeout_s: object) -> None:
    with pytest.raises(InputError, match=r"timeout_s must be a number of seconds above 0"):
        check_timeout(timeout_s)
    assert check_timeout(0.5) == 0.5
