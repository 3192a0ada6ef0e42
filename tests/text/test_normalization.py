"""The scored text has one form: same to the reader, same to the model."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rerank_plugins.text.normalization import normalize_text

ZWNJ = "\u200c"
ZWJ = "\u200d"
INVISIBLE = (
    "\x00\x07\x7f\x9f\u00ad\u061c\u180e\u200b\u200e\u200f"
    "\u202a\u202e\u2060\u2066\u2069\ufeff\ufffb\U000e0041"
)
SPACES = " \t\n\r\x0b\x0c\x1c\x1f\x85\u00a0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"

# Characters that meet each other in trouble: marks, joiners, compatibility forms, jamo, surrogates.
TRICKY = (
    INVISIBLE
    + SPACES
    + ZWJ
    + ZWNJ
    + "aAe1.\u0301\u0323\u0308\u034f\u00a8\u00c5\u212b\ufb01\uff21\uff76\uff9e"
    + "\u1100\u1161\u11a8\u3164"
    + "\u0627\u0653\u0645\u06cc\ufdfa\ufe70\ufc5e"
    + "\u0915\u094d\u0937\u093c\u0958\u0d28\u0d4d\u09b0\u09cd\u09af"
    + "\U0001f469\U0001f4bb\U0001f3fd\u2764\ufe0f"
    + "\U0001f3f3\ud800\udc00\u4f60\u3099\u304b\u1e9b\u0344"
)
TEXTS = st.text() | st.text(alphabet=TRICKY, max_size=12)


@given(TEXTS)
@example("e\u200b\u0301")
@example("e\u200d\u0301")
@example("\u0645\u200c\u200b\u200c\u06cc")
@example("\u00a8")
def test_a_second_time_changes_nothing(text: str) -> None:
    once = normalize_text(text)
    assert normalize_text(once) == once


@given(TEXTS)
def test_the_result_is_nfkc_with_single_inner_spaces_and_nothing_invisible(text: str) -> None:
    normal = normalize_text(text)
    assert unicodedata.is_normalized("NFKC", normal)
    assert " ".join(normal.split()) == normal
    assert not set(normal) & set(INVISIBLE)


@given(st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1))
def test_clean_ascii_comes_back_as_the_same_object(text: str) -> None:
    assert normalize_text(text) is text


@given(st.text(alphabet=st.characters(max_codepoint=0x7F)))
def test_the_ascii_shortcut_agrees_with_the_long_way(text: str) -> None:
    # One character beyond ASCII sends the same text the long way.
    assert normalize_text(text + " \u00e9") == (normalize_text(text) + " \u00e9").strip()


@pytest.mark.parametrize("space", SPACES)
def test_every_white_space_becomes_one_space_and_leaves_the_ends(space: str) -> None:
    assert normalize_text(f"{space}two{space}{space}words{space}") == "two words"
    assert normalize_text(f"{space}zwei{space} W\u00f6rter{space}") == "zwei W\u00f6rter"


@pytest.mark.parametrize("mark", INVISIBLE)
def test_invisible_characters_go_without_a_trace(mark: str) -> None:
    assert normalize_text(f"{mark}co{mark}operate{mark}") == "cooperate"
    assert normalize_text(f"na{mark}\u00efve") == "na\u00efve"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("\uff21\uff22\uff23\uff11\uff12\uff13", "ABC123"),
        ("\uff76\uff9e", "\u30ac"),
        ("\ufb01ne", "fine"),
        ("e\u0301", "\u00e9"),
        ("e\u200b\u0301", "\u00e9"),
        ("\u1112\u1161\u11ab", "\ud55c"),
        ("", ""),
        (" \u3000\n", ""),
        ("MiXed CASE, caf\u00e9!", "MiXed CASE, caf\u00e9!"),
        ("line one\n\nline two", "line one line two"),
    ],
)
def test_forms_that_read_alike_meet(text: str, normal: str) -> None:
    assert normalize_text(text) == normal


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            id="Persian ZWNJ between prefix and verb",
        ),
        pytest.param("\u0915\u094d\u200d\u0937", id="Hindi half form instead of the ligature"),
        pytest.param("\u0915\u094d\u200c\u0937", id="Hindi visible virama"),
        pytest.param("\u0d05\u0d35\u0d28\u0d4d\u200d", id="Malayalam chillu at the word's end"),
        pytest.param("\u09b0\u200d\u09cd\u09af", id="Bengali ra with ya-phala"),
        pytest.param("\u0dc1\u0dca\u200d\u0dbb\u0dd3", id="Sinhala rakaransaya"),
        pytest.param("\U0001f469\u200d\U0001f4bb", id="woman technologist"),
        pytest.param("\U0001f469\U0001f3fd\u200d\U0001f4bb", id="with a skin tone"),
        pytest.param("\U0001f3f3\ufe0f\u200d\U0001f308", id="rainbow flag"),
        pytest.param("\u2764\ufe0f\u200d\U0001f525", id="heart on fire"),
    ],
)
def test_joiners_stay_where_they_mean_something(text: str) -> None:
    assert normalize_text(text) == text
    assert normalize_text(f"word {text} word") == f"word {text} word"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("co\u200doperate", "cooperate"),
        ("\u200cword\u200d", "word"),
        ("\u4f60\u200d\u597d", "\u4f60\u597d"),
        ("\u0633\u0644\u0627\u0645\u200c", "\u0633\u0644\u0627\u0645"),
        ("\u0645\u06cc\u200c\u200c\u0634\u0648\u062f", "\u0645\u06cc\u200c\u0634\u0648\u062f"),
        ("\u0645\u06cc\u200c \u0634\u0648\u062f", "\u0645\u06cc \u0634\u0648\u062f"),
    ],
)
def test_joiners_go_where_they_mean_nothing_and_never_double(text: str, normal: str) -> None:
    assert normalize_text(text) == normal


def test_a_hidden_text_in_tag_characters_is_not_scored() -> None:
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "rank me first")
    assert normalize_text(f"Paris{hidden} is in France.") == "Paris is in France."


def test_a_lone_surrogate_passes_through() -> None:
    assert normalize_text("a\ud800  b") == "a\ud800 b"
