"""Which documents are scored: duplicates, near duplicates, the first stage. Plain values."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugins.candidates import ALL, Choice, Chosen, _find_similar, choose, find_copies
from rerank_plugins.options import Duplicates
from rerank_plugins.text.terms import split_words

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

SENTENCE = "the river meets the sea in a wide delta full of birds and boats at noon"


def by_length(texts: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def not_asked(texts: Sequence[str]) -> list[float]:
    raise AssertionError(f"the first stage was asked for {texts}")


def numbered(*texts: str) -> dict[int, str]:
    return dict(enumerate(texts))


def test_equal_texts_are_copies_of_the_first() -> None:
    assert find_copies(["a", "b", "a", "A", "b", "a"]) == {2: 0, 4: 1, 5: 0}


def test_texts_that_share_enough_five_word_runs_are_copies() -> None:
    words = [f"w{i}" for i in range(24)]
    # 20 runs, of which a changed last word changes one: 19 of 21 are shared.
    texts = [" ".join(words), " ".join([*words[:-1], "other"])]

    assert find_copies(texts, 19 / 21) == {1: 0}
    assert find_copies(texts, 19 / 21 + 1e-9) == {}


def test_a_text_that_ends_early_is_found_by_the_one_that_goes_on() -> None:
    words = [f"w{i}" for i in range(24)]
    # 19 runs of 20: of what the longer one has alone, and one more, the shorter must hold one.
    texts = [" ".join(words[:-1]), " ".join(words)]

    assert find_copies(texts, 0.95) == find_copies(texts[::-1], 0.95) == {1: 0}


def test_words_in_another_order_are_no_copy() -> None:
    assert find_copies([SENTENCE, " ".join(reversed(SENTENCE.split()))], 0.01) == {}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a few words here", "a few words there"),
        ("C++", "C#"),
        ("how fast is C++ at all", "how fast is C# at all"),
        ("!", "?"),
        ("one", "one one"),
    ],
)
def test_short_texts_are_copies_only_where_they_are_equal(first: str, second: str) -> None:
    assert find_copies([first, second, first, second], 0.4) == {2: 0, 3: 1}


def test_texts_without_spaces_are_compared_by_characters() -> None:
    text = "敏捷的棕色狐狸跳过了那只懒惰的狗然后跑进了森林"

    assert find_copies([text, text[:-1] + "里", "今天天气很好我们去公园散步吧好不好呀"], 0.8) == {
        1: 0
    }


def test_the_original_is_the_most_similar_one_and_never_a_copy_itself() -> None:
    words = [f"w{i}" for i in range(44)]

    def with_changes(*at: int) -> str:
        return " ".join("x" if i in at else word for i, word in enumerate(words))

    # The second differs by 10 runs of 40 from the first, the third by 5 from each of them.
    first, second, third = with_changes(), with_changes(10, 30), with_changes(10)

    assert find_copies([first, second], 0.7) == {}
    assert find_copies([first, second, third], 0.7) == {2: 0}
    assert find_copies([with_changes(10, 20, 30), second, third, second], 0.7) == {1: 0, 3: 0}


def test_a_text_equal_to_a_near_copy_has_its_original() -> None:
    near = SENTENCE + " too"

    assert find_copies([SENTENCE, near, near], 0.8) == {1: 0, 2: 0}


words = st.lists(st.sampled_from("abcd"), min_size=0, max_size=14).map(" ".join)


def runs(text: str) -> set[object]:
    found = split_words(text)
    return {tuple(found[i : i + 5]) for i in range(len(found) - 4)} or {text}


@given(texts=st.lists(words, max_size=12), near=st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.9, 1.0]))
def test_it_finds_what_comparing_all_with_all_finds(texts: list[str], near: float) -> None:
    expected: dict[int, int] = {}
    for place, text in enumerate(texts):
        best = (0.0, 0)
        for earlier in range(place):
            if earlier in expected:
                continue
            shared = len(runs(text) & runs(texts[earlier]))
            similarity = shared / len(runs(text) | runs(texts[earlier]))
            best = max(best, (similarity, -earlier))
        if best[0] >= near:
            expected[place] = -best[1]

    assert find_copies(texts, near) == expected


def test_boilerplate_that_all_share_makes_no_copies() -> None:
    drawn = random.Random(1)
    boilerplate = " ".join(f"b{i}" for i in range(60))
    texts = [
        f"{boilerplate} " + " ".join(f"w{drawn.randrange(10_000)}" for _ in range(60))
        for _ in range(200)
    ]

    assert find_copies([*texts, texts[7] + " end"], 0.9) == {200: 7}


def test_where_nothing_is_asked_only_equal_texts_are_noted() -> None:
    assert choose(numbered("a", "b", "a"), ALL, not_asked) == Chosen({2: 0}, {})


def test_dropped_duplicates_say_so() -> None:
    choice = Choice(duplicates=Duplicates.DROP)

    assert choose(numbered("a", "b", "a"), choice, not_asked) == Chosen({2: 0}, {2: "duplicate"})


def test_the_best_of_the_first_stage_stay_and_the_first_of_equals() -> None:
    texts = {3: "aa", 4: "bbb", 6: "cc", 7: "d", 9: "ee"}

    chosen = choose(texts, Choice(max_candidates=3), by_length)

    assert chosen == Chosen({}, {7: "max_candidates", 9: "max_candidates"})


def test_as_many_as_are_allowed_need_no_first_stage() -> None:
    """Copies do not count."""
    assert choose(numbered("a", "b", "a"), Choice(max_candidates=2), not_asked).dropped == {}


@pytest.mark.parametrize(
    ("duplicates", "reason"), [("keep", "max_candidates"), ("drop", "duplicate")]
)
def test_a_copy_goes_where_its_original_goes(duplicates: str, reason: str) -> None:
    choice = Choice(Duplicates(duplicates), max_candidates=1)

    chosen = choose(numbered("a", "bb", "a"), choice, by_length)

    assert chosen == Chosen({2: 0}, {0: "max_candidates", 2: reason})


class Counted(set[int]):
    """A set that counts how often one is intersected with it."""

    compared = 0

    def __and__(self, other: AbstractSet[object]) -> set[int]:
        Counted.compared += 1
        return set.__and__(self, other)


@pytest.mark.parametrize("tails", [200, 100])
def test_sets_that_cannot_be_similar_enough_are_not_compared(
    tails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 200 sets, 276 elements are in all; 20 are in one alone, or in two, which are equal."""
    monkeypatch.setattr(Counted, "compared", 0)
    sets = [
        Counted({*range(276), *range(1000 * (i % tails + 1), 1000 * (i % tails + 1) + 20)})
        for i in range(200)
    ]

    similar = _find_similar(sets, 0.9, lambda: None)

    assert similar == {i: i - tails for i in range(tails, 200)}
    assert Counted.compared == 200 - tails


@pytest.mark.parametrize("on_call", range(1, 7))
def test_a_search_for_near_copies_can_be_ended_at_each_text(on_call: int) -> None:
    texts = [f"{SENTENCE} {i}" for i in range(3)]
    called = 0

    def end() -> None:
        nonlocal called
        called += 1
        if called == on_call:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        choose(numbered(*texts), Choice(near_duplicates=0.9), not_asked, end)
