"""One form for texts that a reader cannot tell apart, so that they score alike and share a cache.

Only what is scored is normalised; the text handed back is the caller's own.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

__all__ = ["normalize_text"]

# Invisible and without meaning for the words: C0 and C1 controls that are not white space, soft
# hyphen,
# zero-width space, word joiner, BOM, bidi marks, annotation anchors, and the tag characters, which
# can
# carry a whole hidden text.
_INVISIBLE: Final = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    r"\ufff9-\ufffb\U000e0000-\U000e007f]+"
)

_JOINERS: Final = re.compile("([\u200c\u200d])[\u200c\u200d]+")
# Arabic to Samaritan, the Indic scripts to Tibetan, Myanmar, Khmer and Mongolian, and what emoji
# are built of.
_JOINABLE: Final = (
    r"\u0600-\u085f\u08a0-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af"
    r"\u2190-\u2bff\ufe0f\U0001f000-\U0001faff"
)
# A virama kills the vowel of its consonant: a joiner after it decides the shape even at a word's
# end.
_VIRAMAS: Final = r"\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca\u1039\u103a\u17d2"
_IDLE_JOINER: Final = re.compile(
    f"(?<![{_JOINABLE}])[\u200c\u200d]|(?<![{_VIRAMAS}])[\u200c\u200d](?![{_JOINABLE}])"
)


def normalize_text(text: str) -> str:
    """Bring *text* into the one form in which it is scored; doing so twice changes nothing more.

    Unicode NFKC, so that full-width and half-width forms meet; every run of white space, line
    breaks
    included, becomes one space and the ends are stripped; invisible and bidi control characters go.
    ZWJ and ZWNJ stay where they shape Persian, Indic and emoji sequences. Case, accents and
    punctuation stay.
    Takes any str, lone surrogates too.
    """
    if text.isascii():
        if not text.isprintable():
            return " ".join(_INVISIBLE.sub("", text).split())
        if "  " in text or text[:1] == " " or text[-1:] == " ":
            return " ".join(text.split())
        return text
    while True:
        composed = unicodedata.normalize("NFKC", text)
        cleaned = " ".join(_drop_invisible(composed).split())
        # Without invisible characters one round is enough. Where one went, its neighbours may now
        # compose.
        if cleaned == text or composed.isprintable():
            return cleaned
        text = cleaned


def _drop_invisible(text: str) -> str:
    if text.isprintable():  # a space is the only white space or format character it has
        return text
    text = _INVISIBLE.sub("", text)
    return _IDLE_JOINER.sub("", _JOINERS.sub(r"\1", text))
