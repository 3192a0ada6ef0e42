"""Say in which language a short text is written, or that this cannot be told.

Three steps, the cheapest first: the script (Kana is Japanese, Thai is Thai), then plain English by
its function words, then py3langid for the languages that share a script. A wrong name costs more
than none, because the name chooses the model, so a Latin text gets one only when the figures in
docs/languages.md say that it is safe.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

__all__ = ["DefaultLanguageDetector", "detect_script_language"]

_log = logging.getLogger(__name__)

# Queries are shorter than this; of a pasted document the beginning says enough.
_MAX_CHARS: Final = 500

# Chosen on English web, medical and code queries, on Swahili questions and on interface texts in 31
# languages: of the English ones at most 0.1 % get another language's name.
_SURE: Final = 0.6  # this likely: name it
_LIKELY: Final = 0.25  # this likely: name it where English is out of the question
_NOT_ENGLISH: Final = 0.01  # English below this is out of the question
_ENGLISH: Final = 0.3  # enough for English: its short queries are full of names and code
# Russian and Hindi are met far more often than their neighbours, which are hard to tell apart in a
# few words.
_COMMONEST_BONUS: Final = 2.0

_Rank = Callable[[str], list[tuple[str, float]]]


class _Script(NamedTuple):
    """One writing system: its characters as a regular expression, and who writes it."""

    name: str
    ranges: str
    languages: tuple[
        str, ...
    ]  # the most widely written first; several: py3langid chooses among them
    letters_per_word: int = 0  # 0: words are separated, so a run of letters is one word


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_LATIN_LANGUAGES: Final = _words(
    "en es fr de pt it nl pl tr vi id ms sv da no fi cs sk hu ro hr bs sl sq lt lv et is ga cy eu"
    " ca gl mt af"
    " az uz eo sw so ha zu tl"
)

_SCRIPTS: Final = (
    _Script(
        "latin",
        r"A-Za-z\xaa\xba\xc0-\xd6\xd8-\xf6\xf8-\u024f\u0300-\u036f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a",
        _LATIN_LANGUAGES,
    ),
    # Not the middle dot U+30FB: Chinese writes foreign names with it.
    _Script(
        "kana", r"\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d", ("ja",), 1
    ),
    _Script(
        "han",
        r"\u3005\u3007\u3105-\u312f\u31a0-\u31bf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f",
        ("zh",),
        1,
    ),
    _Script(
        "hangul",
        r"\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7a3\ud7b0-\ud7fb\uffa0-\uffdc",
        ("ko",),
        1,
    ),
    _Script(
        "cyrillic",
        r"\u0400-\u052f\u1c80-\u1c88\u2de0-\u2dff\ua640-\ua69f",
        ("ru", "uk", "bg", "sr", "mk", "be", "kk", "ky", "tg"),
    ),
    _Script(
        "arabic",
        r"\u0610-\u061a\u0620-\u065f\u066e-\u06d3\u06d5-\u06dc\u06df-\u06ef\u06fa-\u06ff\u0750-\u077f"
        r"\u0870-\u08ff\ufb50-\ufdff\ufe70-\ufefc",
        ("ar", "fa", "ur", "ps", "ug", "ku"),
    ),
    _Script("devanagari", r"\u0900-\u0963\u0970-\u097f\ua8e0-\ua8ff", ("hi", "mr", "ne")),
    _Script("bengali", r"\u0980-\u09fe", ("bn", "as")),
    _Script("greek", r"\u0370-\u03ff\u1f00-\u1fff", ("el",)),
    _Script("hebrew", r"\u0591-\u05f4\ufb1d-\ufb4f", ("he",)),
    _Script("armenian", r"\u0531-\u058a\ufb13-\ufb17", ("hy",)),
    _Script("georgian", r"\u10a0-\u10ff\u1c90-\u1cbf\u2d00-\u2d2d", ("ka",)),
    _Script("gurmukhi", r"\u0a01-\u0a76", ("pa",)),
    _Script("gujarati", r"\u0a81-\u0aff", ("gu",)),
    _Script("oriya", r"\u0b01-\u0b77", ("or",)),
    _Script("tamil", r"\u0b82-\u0bfa", ("ta",)),
    _Script("telugu", r"\u0c00-\u0c7f", ("te",)),
    _Script("kannada", r"\u0c80-\u0cf3", ("kn",)),
    _Script("malayalam", r"\u0d00-\u0d7f", ("ml",)),
    _Script("sinhala", r"\u0d81-\u0df4", ("si",)),
    _Script("ethiopic", r"\u1200-\u139f\u2d80-\u2dde", ("am",)),
    # These write no spaces between words; a word has about four letters and marks.
    _Script("thai", r"\u0e01-\u0e3a\u0e40-\u0e4e", ("th",), 4),
    _Script("lao", r"\u0e81-\u0edf", ("lo",), 4),
    _Script("khmer", r"\u1780-\u17d3", ("km",), 4),
    _Script("myanmar", r"\u1000-\u109f", ("my",), 4),
    _Script("tibetan", r"\u0f00-\u0fbc", ("bo",), 4),
)
_BY_NAME: Final[Mapping[str, _Script]] = {script.name: script for script in _SCRIPTS}
_RUNS: Final = re.compile("|".join(f"(?P<{script.name}>[{script.ranges}]+)" for script in _SCRIPTS))

_ENGLISH_WORD: Final = re.compile(r"[A-Za-z']+")
# Frequent in English and in hardly any other language's short texts.
_TELLING: Final = frozenset(
    _words(
        "the what which where when why how does did with from this that these those were been have"
        " has should would"
        " could their they and who whose you your between there about into without"
    )
)
# Frequent in English, but words elsewhere too (German was, Danish for, Italian a): they only
# confirm.
_CONFIRMING: Final = frozenset(
    _words("is was are be of in for a an to do can it on i by at as my not or")
)


def detect_script_language(text: str) -> str | None:
    """Name the language that the script of *text* gives away, without any library.

    Looks at the first 500 characters and counts words by script; one Chinese character or one Kana
    counts
    as a word. None means that the script has several languages (Latin, Cyrillic, Arabic,
    Devanagari, Bengali) or that there are no letters. Han without Kana is Chinese.
    """
    if text.isascii():
        return None
    script = _main_script(text[:_MAX_CHARS])
    return script.languages[0] if script is not None and len(script.languages) == 1 else None


class DefaultLanguageDetector:
    """Name the language of a text by ISO 639-1 code, or None where that would be a guess.

    Call it with any text: it never raises, gives the same answer every time and may be shared by
    threads.
    Only the first 500 characters count. A text in a non-Latin script always gets a name of that
    script's
    languages, never "en".

    py3langid (4.6 MB) is loaded when a text first needs it, which takes a second or so. Without it,
    Latin text that is not plainly English gets None, and a script that several languages share gets
    the most widely written of them ("ru", "ar", "hi", "bn"), which keeps it from an English model.
    """

    def __init__(self) -> None:
        """Cost nothing: the library is loaded by the first text that needs it."""
        self.after_fork()
        self._rank: _Rank | None = None
        self._loaded = False

    def after_fork(self) -> None:
        """Make it usable in a child: a thread that stayed in the parent may hold the lock."""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[DefaultLanguageDetector], tuple[()]]:
        """Travel to another process without the lock and the model, which it finds there again."""
        return DefaultLanguageDetector, ()

    def __call__(self, text: str) -> str | None:
        """Give the ISO 639-1 code of *text*'s language in lower case, or None."""
        head = text[:_MAX_CHARS]
        script = _BY_NAME["latin"] if head.isascii() else _main_script(head)
        if script is None:
            return None
        if script.name == "latin":
            return "en" if _is_plain_english(head) else self._name_latin(head)
        if len(script.languages) == 1:
            return script.languages[0]
        return self._name_shared(head, script)

    def _name_shared(self, text: str, script: _Script) -> str:
        """Choose among the languages of a script; the commonest where nothing speaks against."""
        commonest = script.languages[0]
        if (rank := self._library()) is None:
            return commonest
        shares = _shares(rank(text), script.languages)
        shares[commonest] = _COMMONEST_BONUS * shares.get(commonest, 0.0)
        return max(shares, key=shares.__getitem__)

    def _name_latin(self, text: str) -> str | None:
        """Apply the rule of confidence to a Latin text."""
        if not any(map(str.isalpha, text)) or (rank := self._library()) is None:
            return None
        # "zxx" is py3langid's class for what is no language: numbers, identifiers, markup.
        shares = _shares(rank(text), (*_LATIN_LANGUAGES, "zxx"))
        if not shares:
            return None
        best = max(shares, key=shares.__getitem__)
        share = shares[best]
        if best == "zxx":
            return None
        if best == "en":
            return best if share >= _ENGLISH else None
        sure = share >= _SURE or (share >= _LIKELY and shares.get("en", 0.0) < _NOT_ENGLISH)
        return best if sure else None

    def _library(self) -> _Rank | None:
        """Load py3langid once; None where it is not installed or its model cannot be read."""
        if not self._loaded:
            with self._lock:
                if not self._loaded:
                    self._rank = _load_rank()
                    self._loaded = True
        return self._rank


def _load_rank() -> _Rank | None:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        _log.info("py3langid is not installed: languages that share a script are not told apart")
        return None
    try:
        # An identifier of our own: the module's functions share one that any caller may restrict.
        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    except (OSError, ValueError, MemoryError) as error:
        _log.warning(
            "py3langid's model could not be read (%s): languages of one script are not told apart",
            error,
        )
        return None
    rank: _Rank = identifier.rank
    return rank


def _shares(ranked: list[tuple[str, float]], languages: tuple[str, ...]) -> dict[str, float]:
    """Keep the *languages* and make their probabilities add up to 1; empty where none has any."""
    kept = {
        language: probability
        for language, probability in ranked
        if language in languages and probability > 0.0
    }
    total = sum(kept.values())
    return {language: probability / total for language, probability in kept.items()}


def _main_script(text: str) -> _Script | None:
    """Find the script with the most words.

    Against Latin, the other script wins a tie ("iPhone цена").
    """
    words: dict[str, int] = {}
    for run in _RUNS.finditer(text):
        name = str(run.lastgroup)
        length = run.end() - run.start()
        per_word = _BY_NAME[name].letters_per_word
        # A lone Greek letter is a symbol, as in beta-blocker or TNF-alpha.
        count = -(-length // per_word) if per_word else int(length > 1 or name != "greek")
        words[name] = words.get(name, 0) + count
    latin = words.pop("latin", 0)
    if "kana" in words and 10 * words["kana"] >= words.get("han", 0):
        # Japanese mixes Kana and Han; a shop sign's の in a Chinese text stays Chinese.
        words["kana"] += words.pop("han", 0)
    best = max(words, key=words.__getitem__, default="latin")
    if words.get(best, 0) >= max(latin, 1):
        return _BY_NAME[best]
    return _BY_NAME["latin"] if latin else None


def _is_plain_english(text: str) -> bool:
    """Recognise English by its function words: most such queries never load a library."""
    if not text.isascii():
        return False
    words = _ENGLISH_WORD.findall(text.lower())
    telling = {word for word in words if word in _TELLING}
    if not telling:
        return False
    share = sum(word in _TELLING or word in _CONFIRMING for word in words) / len(words)
    return share >= (0.3 if len(telling) > 1 else 0.5) and len(words) > 2
