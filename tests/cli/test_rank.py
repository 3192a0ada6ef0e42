"""`rerank-plugins rank`: what it prints, what is asked of it, what it says when it cannot."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import pytest

from rerank_plugins.cli.table import cells
from rerank_plugins.scorers import open_scorer
from rerank_plugins.testing import FakeScorer
from tests.tiny_models import write_model

if TYPE_CHECKING:
    from pathlib import Path

    from rerank_plugins.config import RerankConfig
    from tests.cli.conftest import Run

QUERY = "where is the red fox"


def _texts(out: str) -> list[str]:
    return [document["text"] for document in json.loads(out)["documents"]]


def test_the_table_is_aligned_and_best_first(run: Run, notes: Path) -> None:
    found = run("rank", QUERY, "notes.txt")

    assert found.code == 0
    assert found.out.splitlines() == [
        "rank   score  source       text",
        "   1  0.8808  notes.txt:3  a red fox sleeps",
        "   2  0.7311  notes.txt:6  blue sky, red sun",
        "   3  0.5000  notes.txt:1  fine weather today",
    ]
    assert found.err == "3 of 3 documents · scorer embedded · query language en\n"


def test_json_is_one_object_with_everything_that_is_known(run: Run, notes: Path) -> None:
    found = run("rank", QUERY, "notes.txt", "--json", "--top-n", "1")

    assert json.loads(found.out) == {
        "query": QUERY,
        "scorer": "embedded",
        "activation": "sigmoid",
        "language": "en",
        "documents": [
            {
                "index": 1,
                "score": pytest.approx(0.880797),
                "logit": 2.0,
                "text": "a red fox\nsleeps",
                "source": "notes.txt:3",
                "truncated": False,
                "cached": False,
                "duplicate_of": None,
                "window": None,
            }
        ],
        "dropped": [],
    }
    assert found.err == ""
    assert run("rank", QUERY, "notes.txt", "--json", "--top-n", "1").out == found.out


def test_wide_characters_keep_the_columns_and_the_width(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "狐狸.jsonl"
    rows = [{"id": "狐", "text": "敏捷的棕色狐狸" * 20}, {"id": "fox", "text": "red fox " * 40}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    lines = run("rank", QUERY, str(path)).out.splitlines()

    starts = [
        cells(line[: line.index(text)])
        for line, text in zip(lines, ("text", "red", "敏"), strict=True)
    ]
    assert len(set(starts)) == 1
    assert all(cells(line) <= 80 for line in lines)
    assert all(line.endswith("…") for line in lines[1:])


def test_control_characters_do_not_reach_the_terminal(run: Run) -> None:
    assert "\x1b" not in run("rank", QUERY, stdin=b"red \x1b[31m fox").out


def test_top_n_threshold_and_min_results_are_those_of_the_reranker(run: Run, notes: Path) -> None:
    def texts(*flags: str) -> int:
        return len(_texts(run("rank", QUERY, "notes.txt", "--json", *flags).out))

    assert texts("--top-n", "2") == 2
    assert texts("--top-n", "all") == 3
    assert texts("--score-threshold", "0.8") == 1
    assert texts("--score-threshold", "0.99", "--min-results", "2") == 2


def test_an_empty_ranking_is_an_empty_table(run: Run, notes: Path) -> None:
    found = run("rank", QUERY, "notes.txt", "--score-threshold", "0.99")

    assert found.code == 0
    assert found.out.splitlines() == ["rank  score  source  text"]
    assert found.err.startswith("0 of 3 documents")


def test_documents_that_were_cut_are_counted(run: Run, notes: Path) -> None:
    found = run("rank", QUERY, "notes.txt", "--max-length", "8", "--split", "file")

    assert "1 longer than the scorer reads" in found.err


def test_dropped_documents_are_counted_by_reason(run: Run, notes: Path) -> None:
    notes.write_text("red fox\n\nweather\n\nred fox\n\nfox\n\nfox\n", encoding="utf-8")
    flags = ("--duplicates", "drop", "--max-candidates", "2")

    table, found = (run("rank", QUERY, "notes.txt", *flags, *json_) for json_ in ((), ("--json",)))

    assert table.err == (
        "2 of 5 documents · scorer embedded · query language en · dropped as duplicates: 2 · "
        "dropped by --max-candidates: 1\n"
    )
    assert json.loads(found.out)["dropped"][:2] == [
        {
            "index": 1,
            "text": "weather",
            "source": "notes.txt:3",
            "reason": "max_candidates",
            "duplicate_of": None,
        },
        {
            "index": 2,
            "text": "red fox",
            "source": "notes.txt:5",
            "reason": "duplicate",
            "duplicate_of": 0,
        },
    ]


def test_the_instruction_reaches_the_model(
    run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = FakeScorer(instruction="find facts")
    monkeypatch.setattr("rerank_plugins.registry.open_scorer", lambda _: scorer)

    run("rank", "fox", "notes.txt", "--instruction", "find verbs")

    assert {query for query, _ in scorer.pairs_scored} == {"find verbs: fox"}


@pytest.mark.parametrize(
    ("query", "message"),
    [(" ", "query is blank"), ("fox \udcff", "the query holds half a character")],
)
def test_a_query_that_is_none_is_refused_before_anything_is_read(
    run: Run, query: str, message: str
) -> None:
    found = run("rank", query, "missing.txt")

    assert (found.code, found.out) == (2, "")
    assert message in found.err


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--top-n", "0", "a whole number of at least 1, or \"all\", got '0'"),
        ("--top-n", "-1", "a whole number of at least 1, or \"all\", got '-1'"),
        ("--top-n", "many", "a whole number of at least 1, or \"all\", got 'many'"),
        ("--min-results", "-1", "a whole number of at least 0, got '-1'"),
        ("--score-threshold", "nan", "a number, got 'nan'"),
        ("--score-threshold", "high", "a number, got 'high'"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused_by_its_name_before_anything_is_read(
    run: Run, flag: str, value: str, expected: str
) -> None:
    found = run("rank", QUERY, "missing.txt", f"{flag}={value}")

    assert (found.code, found.out) == (2, "")
    assert found.err.endswith(f"argument {flag}: expected {expected}\n")


def test_settings_reach_the_reranker(
    run: Run, notes: Path, opened: list[RerankConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERANK_PLUGINS_MODEL", "from/variable")
    monkeypatch.setenv("RERANK_PLUGINS_BATCH_TOKENS", "99")

    run("rank", QUERY, "notes.txt", "--batch-tokens", "64", "--activation", "logit")

    assert (opened[0].model, opened[0].batch_tokens) == ("from/variable", 64)


def test_a_failing_scorer_ends_the_run_with_1(
    run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "rerank_plugins.registry.open_scorer", lambda _: FakeScorer(poison="weather")
    )

    found = run("rank", QUERY, "notes.txt")

    assert (found.code, found.out) == (1, "")
    assert "holds 'weather'" in found.err


def test_json_tells_the_window_of_a_long_document(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_plugins.registry.open_scorer", open_scorer)
    write_model(tmp_path / "model")
    (tmp_path / "long.txt").write_text("the cat sat on a mat " * 12)

    found = run(
        *("rank", "the dog", str(tmp_path / "long.txt"), "--model", str(tmp_path / "model")),
        *("--json", "--long-documents", "window", "--max-length", "32", "--activation", "logit"),
    )

    (document,) = json.loads(found.out)["documents"]
    window = document["window"]
    assert set(window) == {"index", "count", "start", "end"}
    assert document["text"][window["start"] : window["end"]].split()[0] in {
        *("the", "cat", "sat", "on", "a", "mat")
    }
    assert not document["truncated"]


def test_a_timeout_is_one_line_and_1(
    run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_plugins.registry.open_scorer", lambda _: FakeScorer(delay_s=0.3))

    found = run("rank", QUERY, "notes.txt", "--timeout-s", "0.05")

    assert found.code == 1
    assert "no answer within timeout_s=0.05" in found.err


def test_an_interrupt_ends_the_run_with_130(
    run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(*_: object, **__: object) -> None:
        await asyncio.sleep(0)
        raise KeyboardInterrupt

    monkeypatch.setattr("rerank_plugins.reranker.Reranker.arank", interrupted)

    assert run("rank", QUERY, "notes.txt").code == 130


def test_long_work_on_a_terminal_shows_how_far_it_is(
    run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_plugins.registry.open_scorer", lambda _: FakeScorer(delay_s=0.3))
    monkeypatch.setattr("rerank_plugins.cli.output.SHOW_PROGRESS_AFTER_S", 0.0)
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True, raising=False)

    found = run("rank", QUERY, "notes.txt", "--batch-tokens", "1", "--json")

    assert "ranking:" in found.err
    assert "/3" in found.err
    assert len(_texts(found.out)) == 3


def _broken(config: RerankConfig) -> FakeScorer:
    return FakeScorer(name=config.model, poison="" if config.model == "embedded" else None)


@pytest.mark.parametrize("chain", ["lexical,retrieval_order", "retrieval_order"])
def test_a_flag_says_who_answers_instead_and_the_note_who_did(
    run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch, chain: str
) -> None:
    monkeypatch.setattr("rerank_plugins.registry.open_scorer", _broken)

    found = run("rank", QUERY, "notes.txt", "--on-error", "fallback", "--fallback", chain)

    assert found.code == 0
    assert f"· scorer {chain.partition(',')[0]}" in found.err


def test_a_variable_says_who_answers_instead(
    run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_plugins.registry.open_scorer", _broken)
    monkeypatch.setenv("RERANK_PLUGINS_ON_ERROR", "fallback")
    monkeypatch.setenv("RERANK_PLUGINS_FALLBACK", "retrieval_order")

    found = run("rank", QUERY, "notes.txt", "--json")

    answer = json.loads(found.out)
    assert (answer["scorer"], answer["activation"]) == ("retrieval_order", "logit")
    assert [document["index"] for document in answer["documents"]] == [0, 1, 2]
