"""Cut text of any language into the terms that lexical scoring counts."""

import re
from collections.abc import Sequence
from operator import add

# Marks (Unicode M*) belong to the word they follow, but `\w` leaves them out and would cut Hindi,
# Tamil or vowelled Arabic to pieces.
_MARKS = (
    r"\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1-\u05c2\u05c4-\u05c5\u05c7"
    r"\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed\u0711-\u074a"
    r"\u07a6-\u07b0\u07eb-\u07f3\u07fd\u0816-\u082d\u0859-\u085b\u0898-\u089f\u08ca-\u08e1"
    r"\u08e3-\u0903\u093a-\u0963\u0981-\u0983\u09bc-\u09e3\u09fe-\u0a03\u0a3c-\u0a75"
    r"\u0a81-\u0a83\u0abc-\u0ae3\u0afa-\u0b03\u0b3c-\u0b63\u0b82\u0bbe-\u0bd7\u0c00-\u0c04"
    r"\u0c3c-\u0c63\u0c81-\u0c83\u0cbc-\u0d03\u0d3b-\u0d4d\u0d57-\u0d63\u0d81-\u0d83"
    r"\u0dca-\u0df3\u0e31-\u0e3a\u0e47-\u0e4e\u0eb1-\u0ecd\u0f18-\u0f19\u0f35\u0f37\u0f39"
    r"\u0f3e-\u0f3f\u0f71-\u0f84\u0f86-\u0fbc\u0fc6\u102b-\u103e\u1056-\u109d\u135d-\u135f"
    r"\u1712-\u1734\u1752-\u1773\u17b4-\u17d3\u17dd\u180b-\u180d\u180f\u1885-\u1886\u18a9"
    r"\u1920-\u193b\u1a17-\u1a1b\u1a55-\u1a7f\u1ab0-\u1b04\u1b34-\u1b44\u1b6b-\u1b73"
    r"\u1b80-\u1bad\u1be6-\u1bf3\u1c24-\u1c37\u1cd0-\u1cd2\u1cd4-\u1cf9\u1dc0-\u1dff"
    r"\u20d0-\u20f0\u2cef-\u2cf1\u2d7f\u2de0-\u2dff\u302a-\u302f\u3099-\u309a\ua66f-\ua672"
    r"\ua674-\ua67d\ua69e-\ua69f\ua6f0-\ua6f1\ua802-\ua827\ua82c\ua880-\ua881\ua8b4-\ua8c5"
    r"\ua8e0-\ua8f1\ua8ff\ua926-\ua92d\ua947-\ua953\ua980-\ua983\ua9b3-\ua9c0\ua9e5"
    r"\uaa29-\uaa4d\uaa7b-\uaa7d\uaab0-\uaac1\uaaeb-\uaaef\uaaf5-\uaaf6\uabe3-\uabea"
    r"\uabec-\uabed\ufb1e\ufe00-\ufe0f\ufe20-\ufe2f"
)
_IDEOGRAPHS_AND_KANA = (
    r"\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_HANGUL = r"\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"
_THAI_LAO_BURMESE_KHMER = (
    r"\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0ecf\u0edc-\u0edf\u1000-\u103f\u1050-\u109f"
    r"\u1780-\u17d3\u17dd\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa7f"
)
_UNSPACED = _IDEOGRAPHS_AND_KANA + _HANGUL + _THAI_LAO_BURMESE_KHMER

_ASCII_WORD = re.compile(r"[a-z0-9]+")
_WORD = re.compile(rf"[^\W_]+(?:[{_MARKS}]+[^\W_]*)*")
_RUN = re.compile(
    rf"(?P<plain>[{_IDEOGRAPHS_AND_KANA}]+|[{_HANGUL}]+)|(?P<marked>[{_THAI_LAO_BURMESE_KHMER}]+)"
    rf"|[^\W_{_UNSPACED}]+(?:[{_MARKS}]+[^\W_{_UNSPACED}]*)*"
)
_HAS_UNSPACED = re.compile(rf"[{_UNSPACED}]")
_WORD_AS_WRITTEN = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_WRITTEN_CHARACTER = re.compile(
    r".[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u1056-\u1059"
    r"\u105e-\u1060\u1062-\u1064\u1067-\u106d\u1071-\u1074\u1082-\u108d\u108f\u109a-\u109d"
    r"\u17b4-\u17d3\u17dd\ua9e5\uaa7b-\uaa7d]*"
)

# Written or left out at will: joiners, soft hyphens, direction signs, the dot that case folding
# leaves of a Turkish I, Arabic and Hebrew vowel points, the Arabic stretcher.
_OPTIONAL = re.compile(
    r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\u0307\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4"
    r"\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc]+"
)
# "The", sometimes after "and", "so", "with" or "like": Arabic writes them onto the word.
_ARABIC_ARTICLE = re.compile(r"\b[\u0648\u0641\u0628\u0643]?\u0627\u0644(?=\w{3})")
_SAME_LETTER = (("ё", "е"), ("أ", "ا"), ("إ", "ا"), ("آ", "ا"), ("ى", "ي"))  # noqa: RUF001


def split_terms(text: str) -> list[str]:
    """List the terms of a text in reading order, repeats included.

    *text* should be NFKC-normalised; anything else is cut as well as it can be.

    * Words are case-folded runs of letters, digits and combining marks; everything else separates,
      the underscore and the points within a number too: ``1,000`` is ``1`` and ``000``.
    * Scripts written without spaces (Chinese, Japanese, Thai, Lao, Burmese, Khmer) give overlapping
      pairs of neighbouring characters, a mark counted with its letter. So does Korean, whose
      particles are glued to the word. A character that stands alone is a term by itself.
    * A run of digits or Latin letters inside such text is a word of its own.
    * Optional signs and the Arabic article are dropped; a few letters that people use alike are
      made one.
    """
    folded = text.casefold()
    if folded.isascii():
        return _ASCII_WORD.findall(folded)
    folded = _OPTIONAL.sub("", folded)
    for variant, letter in _SAME_LETTER:
        folded = folded.replace(variant, letter)
    if "ال" in folded:
        folded = _ARABIC_ARTICLE.sub("", folded)
    if not _HAS_UNSPACED.search(folded):
        return _WORD.findall(folded)
    terms: list[str] = []
    for run in _RUN.finditer(folded):
        word_or_run = run.group()
        if run.lastgroup is None:
            terms.append(word_or_run)
        elif run.lastgroup == "marked":
            terms += _neighbours(_WRITTEN_CHARACTER.findall(word_or_run))
        else:
            terms += _neighbours(word_or_run)
    return terms


def split_words(text: str) -> list[str]:
    """List the words of a text as they are written, with case and punctuation.

    White space separates; each character of a script that `split_terms` pairs is a word.
    """
    if text.isascii() or not _HAS_UNSPACED.search(text):
        return text.split()
    return _WORD_AS_WRITTEN.findall(text)


def _neighbours(characters: Sequence[str]) -> list[str]:
    if len(characters) == 1:
        return list(characters)
    return list(map(add, characters, characters[1:]))
