"""A batch from input to output: its rows, its checkpoints, and what stands in its way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins.batch.lock import only_one
from rerank_plugins.batch.options import BatchOptions
from rerank_plugins.batch.parts import Parts
from rerank_plugins.batch.running import run_batch
from rerank_plugins.config import RerankConfig
from rerank_plugins.errors import ConfigError, InputError, ModelLoadError, ScoringError
from rerank_plugins.reranker import Reranker
from tests.batch.conftest import QUERIES, RunBatch, rows_of, write_lines

if TYPE_CHECKING:
    from pathlib import Path

    from rerank_plugins.testing import FakeScorer

pytestmark = pytest.mark.usefixtures("no_leaks")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rows_are_what_the_reranker_says(
    batch: RunBatch, source: Path, tmp_path: Path, scorer: FakeScorer
) -> None:
    result = batch(source, tmp_path / "out.parquet")

    expected = []
    with Reranker("fake") as reranker:
        for number, query in enumerate(QUERIES):
            documents: Any = query["documents"]
            ranking = reranker.rank(query["query"], [d["text"] for d in documents])
            expected += [
                {
                    "query_index": number,
                    "query_id": query["query_id"],
                    "rank": rank,
                    "index": ranked.index,
                    "document_id": documents[ranked.index]["id"],
                    "score": ranked.score,
                    "logit": ranked.logit,
                    "truncated": ranked.truncated,
                    "scorer": "fake",
                }
                for rank, ranked in enumerate(ranking, start=1)
            ]
    assert rows_of(result.output) == expected
    assert (result.queries, result.pairs, result.rows) == (10, 19, 19)
    assert (result.skipped, result.scorers, result.ranked_pairs) == (0, {"fake": 10}, 19)
    assert _names(tmp_path) == ["out.parquet", "run.jsonl"]


def test_both_formats_hold_the_same_rows(batch: RunBatch, source: Path, tmp_path: Path) -> None:
    batch(source, tmp_path / "out.parquet", texts=True, top_n=1)
    batch(source, tmp_path / "out.jsonl", texts=True, top_n=1)

    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    rows = rows_of(tmp_path / "out.parquet")
    assert list(map(json.loads, lines)) == rows
    assert (len(rows), rows[1]["query"], rows[1]["document"]) == (10, "red fox 1", "a red fox")


def test_a_batch_fills_batches_with_pairs_of_many_queries(
    batch: RunBatch, source: Path, tmp_path: Path, scorer: FakeScorer
) -> None:
    batch(source, tmp_path / "out.parquet", chunk_pairs=100)

    assert len(scorer.batches) < len(QUERIES)
    assert max(len({query for query, _ in pairs}) for pairs in scorer.batches) > 1


def test_a_setting_of_a_deadline_or_of_a_full_queue_ends_no_batch(
    batch: RunBatch, source: Path, tmp_path: Path
) -> None:
    config = RerankConfig(model="fake", timeout_s=1e-6, queue_tokens=1, when_full="raise")

    assert batch(source, tmp_path / "out.parquet", config=config).rows == 19


def test_a_failure_keeps_what_was_done_and_resuming_scores_only_the_rest(
    batch: RunBatch, source: Path, tmp_path: Path, scorer: FakeScorer
) -> None:
    whole = tmp_path / "whole.parquet"
    batch(source, whole)
    scorer.pairs_scored.clear()
    output = tmp_path / "out.parquet"
    scorer._poison = "red 8"
    with pytest.raises(ScoringError, match=r"run\.jsonl:9: .*red 8") as raised:
        batch(source, output)
    done = len(Parts.beside(output).done())
    scored = scorer.pairs_scored.copy()
    scorer._poison = None
    result = batch(source, output, resume=True)

    assert "--resume goes on from there" in raised.value.__notes__[0]
    assert done >= 1
    assert rows_of(output) == rows_of(whole)
    assert 0 < result.ranked_pairs < result.pairs == 19
    again = {query for query, _ in scorer.pairs_scored - scored}
    assert again <= {"warm up", *(query["query"] for query in QUERIES[done:])}
    assert not Parts.beside(output).exist()


def test_parts_of_an_earlier_batch_are_in_the_way_unless_told(
    batch: RunBatch, source: Path, tmp_path: Path, scorer: FakeScorer
) -> None:
    output = tmp_path / "out.parquet"
    scorer._poison = "red 8"
    with pytest.raises(ScoringError):
        batch(source, output)
    scorer._poison = None

    with pytest.raises(InputError, match="--resume goes on with it, --force begins anew"):
        batch(source, output)
    assert batch(source, output, force=True).ranked_pairs == 19


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"top_n": 1}, "its top_n was None, and is now 1"),
        ({"chunk_pairs": 5}, "its chunk_pairs was 4, and is now 5"),
        ({"config": RerankConfig(model="fake", max_length=9)}, "its max_length was None, and is"),
        ({"source": QUERIES[:9]}, "its digest was"),
        ({"source": [*QUERIES[:9], QUERIES[0]]}, "its digest was"),
        ({"identity": "other"}, "by the scorer 'fake@512', and now it would be 'other@512'"),
    ],
    ids=["option", "chunks", "setting", "shorter", "changed", "scorer"],
)
def test_another_batch_is_not_gone_on_with(
    batch: RunBatch,
    source: Path,
    tmp_path: Path,
    scorer: FakeScorer,
    change: dict[str, Any],
    complaint: str,
) -> None:
    output = tmp_path / "out.parquet"
    scorer._poison = "red 8"
    with pytest.raises(ScoringError):
        batch(source, output)
    scorer._poison = None
    if "source" in change:
        write_lines(source, change.pop("source"))
    scorer.name = change.pop("identity", "fake")

    with pytest.raises(ConfigError, match=complaint):
        batch(source, output, resume=True, **change)
    assert Parts.beside(output).done()


def test_what_changes_no_score_may_change_before_resuming(
    batch: RunBatch, source: Path, tmp_path: Path, scorer: FakeScorer
) -> None:
    output = tmp_path / "out.parquet"
    scorer._poison = "red 8"
    with pytest.raises(ScoringError):
        batch(source, output)
    config = RerankConfig(
        model="fake",
        batch_tokens=7,
        cache_entries=0,
        timeout_s=9,
        shared_cache=tmp_path,
        shared_cache_ttl_s=9,
        shared_cache_bytes=10**9,
        shared_cache_timeout_s=9,
    )
    scorer._poison = None

    assert batch(source, output, resume=True, config=config, on_bad="skip").rows == 19


def test_no_secret_is_written_beside_the_output() -> None:
    config = RerankConfig(
        model="http://127.0.0.1:9",
        api_key="hushhush",
        shared_cache="redis://user:hushhush@127.0.0.1:9/0",
    )

    assert "hushhush" not in repr(BatchOptions().identity(config))


def test_what_is_no_folder_of_parts_is_named(batch: RunBatch, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.parquet.parts").write_text("mine")

    for told in ({}, {"resume": True}, {"force": True}):
        with pytest.raises(InputError, match=r"out\.parquet\.parts: cannot be read \(Not a dir"):
            batch(source, tmp_path / "out.parquet", **told)


def test_an_output_may_have_a_long_name(batch: RunBatch, source: Path, tmp_path: Path) -> None:
    assert batch(source, tmp_path / f"{'o' * 230}.parquet").rows == 19


def test_a_model_that_does_not_open_leaves_nothing_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: RerankConfig) -> None:
        raise ModelLoadError("fake", "not there")

    monkeypatch.setattr("rerank_plugins.registry.open_scorer", fail)
    with pytest.raises(ModelLoadError):
        run_batch(source, tmp_path / "out.parquet", RerankConfig(model="fake"))

    assert _names(tmp_path) == ["run.jsonl"]


def test_bad_queries_stop_the_batch_before_anything_is_ranked(
    batch: RunBatch, tmp_path: Path, scorer: FakeScorer
) -> None:
    source = write_lines(tmp_path / "run.jsonl", [*QUERIES, {"query": " ", "documents": ["a"]}])

    with pytest.raises(InputError, match=r"run\.jsonl:11: 'query' is blank"):
        batch(source, tmp_path / "out.parquet")
    assert not scorer.batches
    assert _names(tmp_path) == ["run.jsonl"]


def test_skipped_queries_are_listed_and_the_others_keep_their_numbers(
    batch: RunBatch, tmp_path: Path, scorer: FakeScorer
) -> None:
    scorer._poison = "poison"
    bad = [[], {"query": "q", "documents": ["poison"]}, {"query": "\u200b", "documents": ["a"]}]
    source = write_lines(tmp_path / "run.jsonl", [QUERIES[0], *bad, *QUERIES[1:3]])
    output = tmp_path / "out.parquet"

    result = batch(source, output, on_bad="skip", chunk_pairs=100)

    listed = (tmp_path / "out.parquet.skipped.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition(": ")[0] for line in listed] == [f"{source}:{n}" for n in (2, 3, 4)]
    assert (result.queries, result.skipped) == (3, 3)
    assert [row["query_index"] for row in rows_of(output)] == [0, 4, 4, 5, 5, 5]


def test_a_model_that_fails_on_everything_is_not_taken_for_bad_queries(
    batch: RunBatch, tmp_path: Path, scorer: FakeScorer
) -> None:
    scorer._poison = "sky"
    source = write_lines(tmp_path / "run.jsonl", [{"query": "q", "documents": ["sky"]}] * 9)

    with pytest.raises(ScoringError, match=r"run\.jsonl:1: "):
        batch(source, tmp_path / "out.parquet", on_bad="skip")


def test_an_output_that_is_there_is_replaced_only_if_told(
    batch: RunBatch, source: Path, tmp_path: Path, scorer: FakeScorer
) -> None:
    output = tmp_path / "out.parquet"
    output.write_text("mine")

    with pytest.raises(InputError, match="is there already; --force replaces it"):
        batch(source, output)
    assert not scorer.batches
    assert output.read_text() == "mine"
    assert batch(source, output, force=True).rows == len(rows_of(output)) == 19


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("out.csv", "ends in one of .parquet"),
        ("away/out.parquet", "away: no such folder"),
        ("folder.jsonl", "is a folder"),
        ("run.jsonl", "is the input"),
    ],
)
def test_an_output_that_cannot_be_is_refused_first(
    batch: RunBatch,
    source: Path,
    tmp_path: Path,
    scorer: FakeScorer,
    output: str,
    complaint: str,
) -> None:
    (tmp_path / "folder.jsonl").mkdir()

    with pytest.raises(InputError, match=complaint):
        batch(source, tmp_path / output, force=True)
    assert not scorer.batches
    assert len(source.read_text().splitlines()) == 10


def test_a_damaged_part_is_named(
    batch: RunBatch, source: Path, tmp_path: Path, scorer: FakeScorer
) -> None:
    output = tmp_path / "out.parquet"
    scorer._poison = "red 8"
    with pytest.raises(ScoringError):
        batch(source, output)
    scorer._poison = None
    part = tmp_path / "out.parquet.parts" / "part-000000.parquet"
    part.write_bytes(part.read_bytes()[:40])

    with pytest.raises(InputError, match=r"part-000000\.parquet: cannot be read as Parquet"):
        batch(source, output, resume=True)
    part.unlink()
    assert batch(source, output, resume=True).rows == 19


def test_forcing_deletes_no_files_of_others(batch: RunBatch, source: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out.parquet.parts" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("")

    with pytest.raises(InputError, match=r"mine\.txt: no part of a batch"):
        batch(source, tmp_path / "out.parquet", force=True)
    assert mine.exists()


def test_two_batches_do_not_write_the_same_parts(
    batch: RunBatch, source: Path, tmp_path: Path, scorer: FakeScorer
) -> None:
    pytest.importorskip("fcntl", reason="this system locks no folders")
    output = tmp_path / "out.parquet"
    scorer._poison = "red 8"
    with pytest.raises(ScoringError):
        batch(source, output)

    with (
        only_one(Parts.beside(output).folder),
        pytest.raises(InputError, match="another batch is at work there"),
    ):
        batch(source, output, resume=True)


def test_options_out_of_range_are_named() -> None:
    for options, complaint in (
        ({"on_bad": "ignore"}, "on_bad must be"),
        ({"chunk_pairs": 0}, "chunk_pairs must be at least 1"),
        ({"top_n": 0}, "top_n must be"),
    ):
        with pytest.raises(InputError, match=complaint):
            BatchOptions(**options)  # type: ignore[arg-type]


def test_what_cannot_be_written_to_its_end_is_not_there(
    batch: RunBatch, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    write_table, room = pq.write_table, []

    def fill_the_disk(table: Any, path: Path, **options: Any) -> None:
        write_table(table, path, **options)
        if path.name.startswith("part-000001") and not room:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fill_the_disk)
    output = tmp_path / "out.parquet"

    with pytest.raises(InputError, match=r"cannot be written \(No space left"):
        batch(source, output)
    assert all(name.endswith(("json", "parquet")) for name in _names(Parts.beside(output).folder))
    room.append(True)
    assert batch(source, output, resume=True).rows == 19


def test_a_batch_that_is_killed_while_it_joins_leaves_nothing_beside_the_output(
    batch: RunBatch, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def look(self: Parts, number: int) -> Any:
        seen.extend(_names(tmp_path))
        return read(self, number)

    read = Parts.read
    monkeypatch.setattr(Parts, "read", look)
    batch(source, tmp_path / "out.parquet")

    assert set(seen) == {"run.jsonl", "out.parquet.parts"}
