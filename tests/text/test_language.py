"""The language chooses the model, so a wrong name is worse than none."""

from __future__ import annotations

import gzip
import importlib.util
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rerank_plugins.text import language
from rerank_plugins.text.language import DefaultLanguageDetector, detect_script_language

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("py3langid") is None, reason="py3langid is not installed"
)

DATA = Path(os.environ.get("RERANK_PLUGINS_DATA", Path(__file__).parents[3] / "shared" / "data"))

Ranked = list[tuple[str, float]]


def queries(name: str) -> list[str]:
    path = DATA / name / "queries.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{name} is not in the data folder (RERANK_PLUGINS_DATA)")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def detector() -> DefaultLanguageDetector:
    return DefaultLanguageDetector()


def with_library(monkeypatch: pytest.MonkeyPatch, ranked: Ranked) -> DefaultLanguageDetector:
    """Give a detector whose library always answers *ranked*."""
    monkeypatch.setattr(language, "_load_rank", lambda: lambda _text: ranked)
    return DefaultLanguageDetector()


# --- by script
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u6771\u4eac\u306e\u4eba\u53e3\u306f", "ja"),
        ("\uff8b\uff9f\uff6f\uff82\uff67", "ja"),
        ("\u4e2d\u56fd\u7684\u9996\u90fd", "zh"),
        ("\uc11c\uc6b8\uc758 \uc778\uad6c", "ko"),
        ("\u0e1b\u0e23\u0e30\u0e40\u0e17\u0e28\u0e44\u0e17\u0e22", "th"),
        ("\u03a0\u03bf\u03b9\u03b1 \u03b5\u03af\u03bd\u03b1\u03b9;", "el"),
        ("\u05de\u05d4 \u05d1\u05d9\u05e8\u05ea", "he"),
        ("\u10e1\u10d0\u10e5\u10d0\u10e0\u10d7\u10d5\u10d4\u10da\u10dd", "ka"),
        ("\u0540\u0561\u0575\u0561\u057d\u057f\u0561\u0576", "hy"),
        ("\u0ba4\u0bae\u0bbf\u0bb4\u0bcd", "ta"),
        ("\u0c24\u0c46\u0c32\u0c41\u0c17\u0c41", "te"),
        ("\u0d2e\u0d32\u0d2f\u0d3e\u0d33\u0d02", "ml"),
        ("\u0c95\u0ca8\u0ccd\u0ca8\u0ca1", "kn"),
        ("\u0a97\u0ac1\u0a9c\u0ab0\u0abe\u0aa4\u0ac0", "gu"),
        ("\u0a2a\u0a70\u0a1c\u0a3e\u0a2c\u0a40", "pa"),
        ("\u0dc3\u0dd2\u0d82\u0dc4\u0dbd", "si"),
        ("\u1781\u17d2\u1798\u17c2\u179a", "km"),
        ("\u1019\u103c\u1014\u103a\u1019\u102c", "my"),
        ("\u0ea5\u0eb2\u0ea7", "lo"),
        ("\u12a0\u121b\u122d\u129b", "am"),
        ("\u0f56\u0f7c\u0f51\u0f0b\u0f66\u0f90\u0f51\u0f0b", "bo"),
    ],
)
def test_a_script_of_one_language_names_it(text: str, expected: str) -> None:
    assert detect_script_language(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "capital of France",
        "\u00bfQui\u00e9n gan\u00f3?",
        "\u0441\u0442\u043e\u043b\u0438\u0446\u0430",
        "\u0639\u0627\u0635\u0645\u0629",
        "\u0930\u093e\u091c\u0927\u093e\u0928\u0940",
        "\U0001f600 12 \u20ac",
        "\ud800",
    ],
)
def test_a_script_of_many_languages_names_none(text: str) -> None:
    assert detect_script_language(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("iPhone 15 \u306e\u4fa1\u683c", "ja"),
        ("docker compose \u6559\u7a0b", "zh"),
        ("what does \u4f60\u597d mean", None),
        ("\u03b2-blocker dose", None),
        ("TNF-\u03b1", None),
        ("\u9bae\u306e\u5473\u9910\u5ef3\u5728\u53f0\u5317\u5e02\u4e2d\u5c71\u5340", "zh"),
        ("\u5f17\u62c9\u57fa\u7c73\u5c14\u30fb\u666e\u4eac", "zh"),
        ("\ud55c\uad6d\uc0ac\u6614 Korea", "ko"),
    ],
)
def test_in_mixed_text_the_script_with_most_words_decides(text: str, expected: str | None) -> None:
    assert detect_script_language(text) == expected


# --- the rule of confidence, on a library that says what the test wants
# -------------------------------------


@pytest.mark.parametrize(
    ("ranked", "expected"),
    [
        ([("es", 0.61), ("en", 0.39)], "es"),
        ([("es", 0.59), ("en", 0.41)], None),
        ([("es", 0.4), ("pt", 0.35), ("gl", 0.25)], "es"),
        ([("es", 0.24), ("pt", 0.23), ("gl", 0.23), ("it", 0.2), ("ca", 0.1)], None),
        ([("es", 0.5), ("pt", 0.48), ("en", 0.02)], None),
        ([("en", 0.31), ("de", 0.3), ("nl", 0.3), ("af", 0.09)], "en"),
        ([("en", 0.29), ("de", 0.28), ("nl", 0.28), ("af", 0.15)], None),
        ([("zxx", 0.9), ("es", 0.1)], None),
        ([("pcm", 0.9), ("en", 0.08), ("de", 0.02)], "en"),
        ([("xx", 1.0)], None),
        ([], None),
    ],
)
def test_a_latin_text_is_named_only_when_that_is_safe(
    ranked: Ranked, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert with_library(monkeypatch, ranked)("Lorem ipsum dolor") == expected


@pytest.mark.parametrize(
    ("ranked", "expected"),
    [
        ([("en", 0.9), ("uk", 0.08), ("ru", 0.02)], "uk"),
        ([("uk", 0.5), ("ru", 0.3)], "ru"),
        ([("en", 1.0)], "ru"),
        ([], "ru"),
    ],
)
def test_a_shared_script_is_never_english(
    ranked: Ranked, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        with_library(monkeypatch, ranked)("\u0441\u0442\u043e\u043b\u0438\u0446\u0430") == expected
    )


def test_only_the_beginning_of_a_long_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def rank(text: str) -> Ranked:
        seen.append(len(text))
        return [("es", 1.0)]

    monkeypatch.setattr(language, "_load_rank", lambda: rank)
    assert DefaultLanguageDetector()("palabra " * 200_000) == "es"
    assert seen == [500]


def test_threads_that_meet_at_the_first_text_load_the_library_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads: list[int] = []
    barrier = threading.Barrier(8)

    def load() -> object:
        loads.append(1)
        threading.Event().wait(0.05)
        return lambda _text: [("es", 1.0)]

    monkeypatch.setattr(language, "_load_rank", load)
    detector = DefaultLanguageDetector()
    answers: list[str | None] = []

    def ask() -> None:
        barrier.wait()
        answers.append(detector("hola"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["es"] * 8
    assert len(loads) == 1


def test_a_used_detector_can_be_sent_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = with_library(monkeypatch, [("es", 1.0)])
    assert detector("hola") == "es"
    assert pickle.loads(pickle.dumps(detector))("hola") == "es"


# --- without the library
# ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("what is the capital of France", "en"),
        ("\u00bfcu\u00e1l es la capital de Francia?", None),
        ("capital", None),
        ("\u0e1b\u0e23\u0e30\u0e40\u0e17\u0e28", "th"),
        ("\u0441\u0442\u043e\u043b\u0438\u0446\u0430", "ru"),
        ("\u0639\u0627\u0635\u0645\u0629", "ar"),
        ("\u0930\u093e\u091c\u0927\u093e\u0928\u0940", "hi"),
    ],
)
def test_a_minimal_install_still_names_what_the_script_shows(
    text: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    assert DefaultLanguageDetector()(text) == expected


@needs_library
def test_an_unreadable_model_is_logged_once_and_not_raised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from py3langid import langid

    monkeypatch.setattr(langid, "MODEL_FILE", "no/such/model")
    detector = DefaultLanguageDetector()
    with caplog.at_level(logging.WARNING):
        assert [detector("hola amigo"), detector("guten Tag")] == [None, None]
    assert len(caplog.records) == 1


def test_nothing_heavy_is_imported_before_a_text_needs_it() -> None:
    code = (
        "import sys; from rerank_plugins.text.language import DefaultLanguageDetector\n"
        "d = DefaultLanguageDetector()\n"
        "assert d('what is the capital of France') == 'en'\n"
        "assert d('\\u4e2d\\u56fd') == 'zh' and d('42') is None\n"
        "assert not {'numpy', 'py3langid'} & set(sys.modules), 'loaded too early'\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


# --- the real thing
# -----------------------------------------------------------------------------------------


@needs_library
def test_the_librarys_own_identifier_is_left_alone(detector: DefaultLanguageDetector) -> None:
    from py3langid import langid

    before = langid.IDENTIFIER
    assert detector("\u00bfcu\u00e1l es la capital de Francia?") == "es"
    assert langid.IDENTIFIER is before


@given(st.text())
@example("\ud800")
@example("a\ud800 b\udfff")
@example("\u200d\ufeff")
@example("A" * 100_000)
def test_any_text_has_a_code_or_none_and_always_the_same(
    detector: DefaultLanguageDetector, text: str
) -> None:
    code = detector(text)
    assert code is None or (len(code) == 2 and code.isascii() and code.islower())
    assert detector(text) == code
    by_script = detect_script_language(text)
    assert by_script is None or by_script == code


@pytest.mark.parametrize(
    "text",
    ["", " ", "12345", "3.14", "\U0001f600\U0001f600", "!?", "2023-11-21", "\ud800", "\u03b1"],
)
def test_a_text_without_words_has_no_language(detector: DefaultLanguageDetector, text: str) -> None:
    assert detector(text) is None


@needs_library
@pytest.mark.parametrize(
    "text",
    [
        "python sort dict by value",
        "git rebase -i HEAD~3",
        "RTX 4090 vs 3090",
        "useEffect cleanup",
        "ModuleNotFoundError: No module named 'yaml'",
        "Taylor Swift",
        "Leonardo da Vinci",
        "SKU 4471-B",
        "BRCA1 mutation",
        "opening hours",
        "WHAT IS THE CAPITAL OF FRANCE",
    ],
)
def test_english_names_and_code_get_no_other_language(
    detector: DefaultLanguageDetector, text: str
) -> None:
    assert detector(text) in {"en", None}


@needs_library
@pytest.mark.parametrize(
    "name", ["dev/mtrag_un", "dev/scifact", "train/cosqa_dev", "train/nq_open_oracle"]
)
def test_hardly_any_english_query_is_called_something_else(
    detector: DefaultLanguageDetector, name: str
) -> None:
    codes = Counter(map(detector, queries(name)))
    assert codes["en"] + codes[None] >= 0.998 * codes.total()
    assert codes["en"] >= 0.9 * codes.total()


@needs_library
@pytest.mark.parametrize(
    "code", ["en", "zh", "es", "de", "ru", "ar", "hi", "th", "tr", "vi", "el", "ro"]
)
def test_short_questions_in_twelve_languages(detector: DefaultLanguageDetector, code: str) -> None:
    codes = Counter(map(detector, queries(f"dev/xquad/xquad_{code}")))
    assert codes[code] >= 0.96 * codes.total()
    assert code == "en" or not codes["en"]
