"""The examples run as they stand, offline, and print what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def _answer(name: str, *argv: str) -> subprocess.CompletedProcess[str]:
    keys = ("OPENAI_API_KEY",)
    outside = {key: value for key, value in os.environ.items() if key not in keys}
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *argv],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=outside | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
    )


def _run(name: str, *argv: str) -> str:
    answer = _answer(name, *argv)
    assert answer.returncode == 0, answer.stderr
    assert all(len(line) <= 100 for line in answer.stdout.splitlines()[:12])
    return answer.stdout


@pytest.fixture(scope="module", autouse=True)
def _doors() -> None:
    for module in ("langchain", "llama_index", "scorers.embedded", "scorers.lexical"):
        pytest.importorskip(f"rerank_plugins.{module}", exc_type=ImportError)
    pytest.importorskip("bm25s")


def test_the_demo_ranks_in_both_frameworks_and_answers_again_from_the_cache() -> None:
    out = _run("demo.py")

    # A question is asked of both frameworks, which agree on every place.
    places = [line[58:].split() for line in out.splitlines() if "?" in line and "→" in line]
    assert len(places) == 10
    assert all(row[0:3] == row[3:6] for row in places)
    first, second = out.split("First pass")[1].split("Second pass")
    assert "500 pairs scored      0 from the cache" in first
    assert "  0 pairs scored    500 from the cache" in first
    assert second.count("  0 pairs scored    500 from the cache") == 2


def test_the_demo_ranks_files_of_the_readers_own(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("The weather is fine.\n\nA red fox eats rodents.\n")

    out = _run("demo.py", "--docs", str(tmp_path), "--query", "What does a red fox eat?")

    assert out.count("A red fox eats rodents.") == 2


def test_a_folder_without_a_question_is_refused() -> None:
    answer = _answer("demo.py", "--docs", ".")

    assert answer.returncode == 2
    assert "--docs needs a --query" in answer.stderr


def test_a_folder_without_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n \n")

    answer = _answer("demo.py", "--docs", str(tmp_path), "--query", "fox")

    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1].startswith(f"demo.py: error: no text in {tmp_path}: ")
    assert "Traceback" not in answer.stderr


def test_a_question_of_unknown_words_is_answered_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("The weather is fine.\n")

    out = _run("demo.py", "--docs", str(tmp_path), "--query", "xyzzy")

    for name in ("LangChain", "LlamaIndex"):
        assert f"{name}: BM25 finds no document with a word of the question" in out
    for name in ("langchain_rag.py", "llama_index_rag.py"):
        assert "there is nothing to rerank" in _run(name, "xyzzyplugh")


def test_the_loop_by_hand_says_how_it_is_called() -> None:
    answer = _answer("rerank_by_hand.py", "folder", "query")

    assert answer.returncode == 1
    assert answer.stderr == (
        "Usage: python examples/rerank_by_hand.py FOLDER QUERY DOCUMENT [DOCUMENT ...]\n"
    )


def test_examples_use_what_the_package_offers_and_nothing_of_its_command_line() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert "rerank_plugins.cli" not in path.read_text(encoding="utf-8"), path.name


@pytest.mark.parametrize(("name", "kept"), [("langchain_rag.py", 3), ("llama_index_rag.py", 5)])
def test_the_rag_examples_print_what_a_language_model_would_get(name: str, kept: int) -> None:
    out = _run(name, "How do I pretty-print a dictionary?")

    assert f"docstrings → 30 by BM25 → {kept} by the reranker" in out
    assert "What a language model gets" in out
    assert "no language model is set up; set OPENAI_API_KEY" in out


def test_both_doors_agree_and_the_second_is_served_by_the_cache() -> None:
    out = _run("both_doors.py")

    assert "The same 5 documents with the same scores, in the same order." in out
    assert "30 pairs scored" in out
    assert "30 pairs from the cache" in out
