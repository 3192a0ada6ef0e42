"""`rerank-plugins eval`: the numbers it prints are those of the toy set."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from pathlib import Path

    from rerank_plugins.config import RerankConfig
    from tests.cli.conftest import Run


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """One query, whose given first stage puts the wrong document first."""
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "queries.jsonl").write_text('{"qid": "q", "text": "where is the red fox"}\n')
    (folder / "corpus.jsonl").write_text(
        '{"docid": "right", "text": "the red fox"}\n{"docid": "wrong", "text": "red sky"}\n'
    )
    (folder / "qrels.tsv").write_text("q\tright\t1\n")
    (folder / "candidates.tsv").write_text("q\twrong\t1\t2.0\nq\tright\t2\t1.0\n")
    return folder


def test_the_table_shows_before_after_and_gain(run: Run, toy: Path) -> None:
    found = run("eval", str(toy), "--model", "lexical")

    lines = [line.split() for line in found.out.splitlines()]
    assert found.code == 0
    assert found.out.startswith("toy · 1 queries · 2 documents · first stage: as given, top 100\n")
    assert lines[1] == ["nDCG@10", "MRR@10", "recall@10", "recall@100", "pairs/s", "seconds"]
    assert lines[2] == ["as", "given", "0.631", "0.500", "1.000", "1.000"]
    assert lines[3][:3] == ["lexical", "1.000", "1.000"]
    assert lines[4][:3] == ["gain", "+0.369", "+0.500"]
    assert lines[5][:3] == ["standard", "error", "0.000"]


def test_json_holds_the_numbers(run: Run, toy: Path) -> None:
    found = run("eval", str(toy), str(toy), "--json", "--depth", "50", "--seed", "4")

    report = json.loads(found.out)
    (first, second) = report["sets"]
    (reranker,) = first["rerankers"]
    assert (report["depth"], report["seed"]) == (50, 4)
    assert first["queries_without_relevant_documents"] == 0
    assert first["first_stage"]["name"] == "as given"
    assert first["first_stage"]["measures"]["MRR@10"] == 0.5
    assert reranker["measures"]["MRR@10"] == 1.0
    assert reranker["gains"]["MRR@10"] == 0.5
    assert (reranker["pairs"], reranker["scorers"]) == (2, {"embedded": 1})
    assert second["rerankers"][0]["measures"] == reranker["measures"]


def test_where_no_first_stage_is_given_it_is_bm25(run: Run, toy: Path) -> None:
    (toy / "candidates.tsv").unlink()

    report = json.loads(run("eval", str(toy), "--json").out)["sets"][0]

    assert report["first_stage"]["name"] == "BM25"
    assert report["first_stage"]["measures"]["MRR@10"] == 1.0


def test_models_are_compared_on_the_same_first_stage(
    run: Run, toy: Path, opened: list[RerankConfig]
) -> None:
    flags = ("--model", "a/b", "--backend", "onnx", "--batch-tokens", "64")

    report = json.loads(run("eval", str(toy), "--json", "--compare", "lexical", *flags).out)

    assert [r["model"] for r in report["sets"][0]["rerankers"]] == ["lexical", "a/b"]
    assert [(c.model, c.backend, c.batch_tokens) for c in opened] == [
        ("lexical", "auto", 64),
        ("a/b", "onnx", 64),
    ]


def test_the_family_of_the_model_is_not_that_of_a_compared_one(
    run: Run, toy: Path, opened: list[RerankConfig]
) -> None:
    flags = ("--model", "a/b", "--family", "yes-no", "--compare", "c/d")

    assert run("eval", str(toy), *flags).code == 0
    assert [(config.model, config.family) for config in opened] == [
        ("c/d", "auto"),
        ("a/b", "yes-no"),
    ]


def test_a_compared_model_is_told_the_instruction_only_if_it_takes_one(
    run: Run, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorers: dict[str, FakeScorer] = {}

    def open_fake(config: RerankConfig) -> FakeScorer:
        own = None if config.model == "embedded" else "find words"
        scorers[config.model] = FakeScorer(name=config.model, instruction=own)
        return scorers[config.model]

    monkeypatch.setattr("rerank_plugins.registry.open_scorer", open_fake)
    flags = ("--instruction", "find foxes", "--compare", "embedded", "--compare", "c/d")

    found = run("eval", str(toy), "--model", "a/b", *flags)

    assert (found.code, found.err) == (0, "")
    last = {name: scorer.batches[-1][0][0] for name, scorer in scorers.items()}
    assert last == {
        "embedded": "where is the red fox",
        "c/d": "find foxes: where is the red fox",
        "a/b": "find foxes: where is the red fox",
    }
    assert run("eval", str(toy), "--model", "embedded", *flags[:2]).code == 2


def test_a_second_run_measures_the_same(run: Run, toy: Path) -> None:
    first, second = (json.loads(run("eval", str(toy), "--json").out) for _ in range(2))

    for report in (first, second):
        for reranker in report["sets"][0]["rerankers"]:
            del reranker["seconds"], reranker["pairs_per_s"]
    assert first == second


@pytest.mark.parametrize("flag", ["--queries", "--depth"])
def test_a_limit_below_one_is_refused(run: Run, toy: Path, flag: str) -> None:
    found = run("eval", str(toy), flag, "0")

    assert (found.code, found.out) == (2, "")
    assert f"{flag} must be at least 1, got 0" in found.err


def test_all_sets_are_read_before_one_is_ranked(
    run: Run, toy: Path, opened: list[RerankConfig]
) -> None:
    found = run("eval", str(toy), str(toy / "missing"))

    assert found.code == 2
    assert "missing: no such folder" in found.err
    assert opened == []


def test_a_set_that_measures_nothing_is_refused(run: Run, toy: Path) -> None:
    (toy / "qrels.tsv").write_text("q\tright\t0\n")

    found = run("eval", str(toy))

    assert found.code == 2
    assert "no query has a relevant document" in found.err


def test_rows_are_named_by_model_and_say_who_answered(run: Run, toy: Path) -> None:
    (toy / "queries.jsonl").write_text(
        '{"qid": "q", "text": "where is the red fox"}\n'
        '{"qid": "r", "text": "红色的狐狸在哪里呢"}\n',
        encoding="utf-8",
    )
    (toy / "qrels.tsv").write_text("q\tright\t1\nr\tright\t1\n")
    (toy / "candidates.tsv").write_text("q\tright\t1\t1\nr\tright\t1\t1\n")
    routes = ("--language-models", "zh=zh/model")

    mixed = run("eval", str(toy), "--model", "a/b", *routes).out
    replaced = run("eval", str(toy), "--model", "embedded", "--backend", "lexical").out

    assert "a/b (answered by a/b 1, zh/model 1)  " in mixed
    assert "embedded (answered by lexical)  " in replaced


def test_no_loading_is_timed(
    run: Run, toy: Path, opened: list[RerankConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    (toy / "queries.jsonl").write_text(
        '{"qid": "q", "text": "红色的狐狸在哪里呢"}\n', encoding="utf-8"
    )
    open_at_tick: list[int] = []

    def tick() -> float:
        open_at_tick.append(len(opened))
        return float(len(open_at_tick))

    monkeypatch.setattr("rerank_plugins.evaluation.reranking.time.perf_counter", tick)

    report = run("eval", str(toy), "--language-models", "zh=zh/model", "--json")

    (reranker,) = json.loads(report.out)["sets"][0]["rerankers"]
    assert reranker["scorers"] == {"zh/model": 1}
    assert "zh/model" in [config.model for config in opened]
    assert set(open_at_tick) == {len(opened)}


def test_documents_that_are_judged_and_not_there_are_counted(run: Run, toy: Path) -> None:
    (toy / "qrels.tsv").write_text("q\tright\t1\nq\tlost\t1\nq\tgone\t0\n")

    found = run("eval", str(toy), "--json")

    assert json.loads(found.out)["sets"][0]["relevant_documents_not_in_corpus"] == 1
    assert found.err == (
        "toy: not in the corpus, and so never found: 1 relevant document of the qrels, "
        "such as 'lost'\n"
    )


def test_qrels_of_another_corpus_are_refused(run: Run, toy: Path) -> None:
    (toy / "qrels.tsv").write_text("q\tlost\t1\n")

    found = run("eval", str(toy))

    assert found.code == 2
    assert "toy: no relevant document of the qrels is in the corpus" in found.err


@pytest.mark.parametrize("text", [" ", "\u200b"])
def test_a_query_that_cannot_be_ranked_by_is_named(run: Run, toy: Path, text: str) -> None:
    (toy / "queries.jsonl").write_text(f'{{"qid": "q", "text": "{text}"}}\n', encoding="utf-8")

    found = run("eval", str(toy))

    assert (found.code, found.out) == (2, "")
    assert "queries.jsonl:1: query 'q'" in found.err
    assert "is blank" in found.err


def test_a_blank_query_of_the_last_set_is_found_before_the_first_is_ranked(
    run: Run, toy: Path, tmp_path: Path, opened: list[RerankConfig]
) -> None:
    shutil.copytree(toy, tmp_path / "other")
    (tmp_path / "other" / "queries.jsonl").write_text('{"qid": "q", "text": ""}\n')

    assert run("eval", str(toy), str(tmp_path / "other")).code == 2
    assert opened == []


def test_a_path_that_is_too_long_is_one_line(run: Run) -> None:
    found = run("eval", "a" * 300)

    assert (found.code, found.out) == (2, "")
    assert "cannot be read (File name too long)" in found.err
    assert found.err.count("\n") == 1
