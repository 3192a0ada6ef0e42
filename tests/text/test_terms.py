"""Terms: what a word is in each script."""

import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugins.text import terms
from rerank_plugins.text.terms import split_terms, split_words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t—…!?", []),
        ("The QUICK fox, the quick fox", ["the", "quick", "fox", "the", "quick", "fox"]),
        ("is_iterable 1,000.5 covid19", ["is", "iterable", "1", "000", "5", "covid19"]),
        ("Größe STRASSE", ["grösse", "strasse"]),
        ("İstanbul ISTANBUL", ["istanbul", "istanbul"]),
        ("Ещё ещe", ["еще", "ещe"]),  # noqa: RUF001
        ("हिन्दी में किताब", ["हिन्दी", "में", "किताब"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("العَرَبِيَّة والكتاب", ["عربية", "كتاب"]),
        ("الله", ["الله"]),
        ("手塚治虫", ["手塚", "塚治", "治虫"]),
        ("猫。犬", ["猫", "犬"]),
        ("サッカー・ワールド", ["サッ", "ッカ", "カー", "ワー", "ール", "ルド"]),
        ("2019年5月FIFA", ["2019", "年", "5", "月", "fifa"]),
        ("월드컵 FIFA월드", ["월드", "드컵", "fifa", "월드"]),
        ("ที่นี่", ["ที่นี่"]),
        ("ภาษา", ["ภา", "าษ", "ษา"]),
        ("ខ្មែរ", ["ខ្មែ", "មែរ"]),
        ("𠀀𠀁", ["𠀀𠀁"]),
        ("co\u00adoperate co\u200boperate", ["cooperate", "cooperate"]),
    ],
)
def test_terms_of_a_text(text: str, expected: list[str]) -> None:
    """Each script is cut by its own rule, with case, optional signs and joiners evened out."""
    assert split_terms(text) == expected


def test_every_mark_of_the_basic_plane_stays_in_its_word() -> None:
    """A combining mark never cuts the word it stands in."""
    marks = [
        chr(code) for code in range(0x10000) if unicodedata.category(chr(code)).startswith("M")
    ]
    cut = [mark for mark in marks if len(split_terms(f"a{mark}b")) != 1]
    assert [f"{ord(mark):04x}" for mark in cut if not _is_unspaced(mark)] == []


def _is_unspaced(mark: str) -> bool:
    return re.match(f"[{terms._UNSPACED}]", mark) is not None


def test_no_punctuation_gets_into_a_term() -> None:
    """Punctuation, symbols and spaces separate terms in every script."""
    separators = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code))[0] in "PZ" and unicodedata.category(chr(code)) != "Pc"
    ]
    for mark in separators:
        assert split_terms(f"a{mark}b") == ["a", "b"], hex(ord(mark))


@given(st.text())
def test_any_text_gives_clean_terms(text: str) -> None:
    """Whatever comes in, terms are never empty and hold no white space."""
    found = split_terms(text)
    assert all(term and not re.search(r"\s", term) for term in found)


@given(st.text(), st.text())
def test_lines_are_cut_apart(first: str, second: str) -> None:
    """No term reaches across a line break, so a document can be cut line by line."""
    assert split_terms(f"{first}\n{second}") == split_terms(first) + split_terms(second)


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_case_does_not_matter(text: str) -> None:
    """Upper and lower case give the same terms."""
    assert split_terms(text.upper()) == split_terms(text.lower())


@given(st.text(alphabet="手塚治虫のアトムは年", min_size=2))
def test_a_run_has_one_term_fewer_than_characters(text: str) -> None:
    """Unspaced text of n characters gives its n - 1 pairs, in order."""
    assert split_terms(text) == [text[i : i + 2] for i in range(len(text) - 1)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" C++ is\tnot  C#, \n", ["C++", "is", "not", "C#,"]),
        ("Größe — über", ["Größe", "—", "über"]),
        ("猫が好き, or GPT-4だ", ["猫", "が", "好", "き", ",", "or", "GPT-4", "だ"]),
        ("ประเทศ", list("ประเทศ")),
        ("हिन्दी में", ["हिन्दी", "में"]),
    ],
)
def test_words_are_split_as_they_are_written(text: str, expected: list[str]) -> None:
    assert split_words(text) == expected
