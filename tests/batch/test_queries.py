"""What a batch reads: the forms of a query, and what is said of a bad one."""

from __future__ import annotations

import gzip
import json
import os
from contextlib import closing
from itertools import accumulate
from typing import TYPE_CHECKING, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugins.batch.chunks import read_chunk, survey
from rerank_plugins.batch.queries import BadQuery, BatchQuery, Item, read_items
from rerank_plugins.batch.sources import BEGINNING, Place, Record, open_source
from rerank_plugins.errors import InputError
from tests.batch.conftest import QUERIES, write_lines

pa = pytest.importorskip("pyarrow", reason="batches need pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="batches need pyarrow")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def _items(*values: object) -> list[Item]:
    records = (Record(Place(i, i + 1), f"f:{i + 1}", value) for i, value in enumerate(values))
    return [item for _, item in read_items(records)]


def _pair(query: str, document: object, query_id: object = None) -> dict[str, object]:
    return {"query_id": query_id, "query": query, "document_id": 7, "document": document}


BROKEN = InputError("f: broken")


def test_documents_are_texts_or_objects_and_ids_may_be_numbers() -> None:
    (item,) = _items({"query_id": 1, "query": "q", "documents": ["a", {"id": 2, "text": "b"}]})

    assert item == BatchQuery("1", "q", ("a", "b"), (None, "2"), "f:1")


def test_pairs_side_by_side_are_one_query() -> None:
    found = _items(_pair("q", "a"), _pair("q", "b"), _pair("r", "c"), _pair("q", "d"))

    assert found == [
        BatchQuery(None, "q", ("a", "b"), ("7", "7"), "f:1"),
        BatchQuery(None, "r", ("c",), ("7",), "f:3"),
        BatchQuery(None, "q", ("d",), ("7",), "f:4"),
    ]


def test_pairs_of_another_id_are_another_query() -> None:
    found = _items(_pair("q", "a", 1), _pair("q", "b", 2))

    assert [item.query_id for item in found if isinstance(item, BatchQuery)] == ["1", "2"]


def test_a_bad_line_among_the_pairs_of_a_query_spoils_the_query() -> None:
    found = _items(_pair("q", "a"), BROKEN, _pair("q", "b"), _pair("r", "c"))

    assert found == [BadQuery("f: broken"), BatchQuery(None, "r", ("c",), ("7",), "f:4")]


def test_a_bad_line_between_two_queries_spoils_neither() -> None:
    found = _items(_pair("q", "a"), BROKEN, _pair("r", "b"))

    assert [type(item) for item in found] == [BatchQuery, BadQuery, BatchQuery]


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (["q"], "f:1: expected an object"),
        ({"query": "q", "docs": []}, "f:1: no documents; its fields are docs, query: it is"),
        ({"query": "q", "documents": "a"}, "f:1: 'documents' must be a list"),
        ({"query": "q", "documents": [1]}, r"f:1: documents\[0\] must be a string, got 1"),
        ({"query": "q", "documents": [{"id": 1}]}, r"documents\[0\]: 'text' must be a string"),
        ({"query": "q", "documents": [{"id": [], "text": ""}]}, r"\[0\]: 'id' must be a string or"),
        ({"query": "q", "documents": ["\ud800"]}, r"documents\[0\] holds half a character"),
        ({"query": " ", "documents": []}, "f:1: 'query' is blank"),
        ({"documents": []}, "f:1: 'query' must be a string, got None"),
        ({"query": "q", "query_id": True, "documents": []}, "'query_id' must be a string or a"),
        (_pair("q", None), "f:1: 'document' must be a string"),
    ],
)
def test_a_bad_query_is_named_with_its_line(value: object, complaint: str) -> None:
    (item,) = _items(value)

    assert isinstance(item, BadQuery)
    with pytest.raises(InputError, match=complaint):
        raise InputError(item.reason)


def test_json_lines_gzip_and_parquet_read_alike(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", QUERIES)
    zipped = tmp_path / "a.jsonl.gz"
    zipped.write_bytes(gzip.compress(lines.read_bytes()))
    table = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(QUERIES), table, row_group_size=3)

    digests = set()
    for path in (lines, zipped, table):
        with closing(open_source(path)) as source:
            found = survey(source, 4, skip_bad=False)
        assert (found.items, found.pairs, found.bad) == (10, 19, 0)
        digests.add(found.digest)
    assert len(digests) == 1


VALUES = st.lists(
    st.sampled_from(
        [
            _pair("q", "a"),
            _pair("r", "b"),
            {"query": "q", "documents": ["a", "b", "c"]},
            {"query": "q", "documents": []},
            "no query",
        ]
    ),
    min_size=1,
)


@given(values=VALUES, chunk_pairs=st.integers(1, 5), ending=st.sampled_from(["jsonl", "jsonl.gz"]))
def test_chunks_read_apart_are_the_input_read_through(
    values: list[object], chunk_pairs: int, ending: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("chunks") / f"a.{ending}"
    data = b"\n".join(json.dumps(value).encode() for value in values)
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    with closing(open_source(path)) as source:
        whole = [item for _, item in read_items(source.records(BEGINNING))]
        found = survey(source, chunk_pairs, skip_bad=True)
        read = [read_chunk(source, chunk) for chunk in reversed(found.chunks)]

    assert [item for items in reversed(read) for item in items] == whole
    firsts = [0, *accumulate(chunk.items for chunk in found.chunks)]
    assert [chunk.first for chunk in found.chunks] == firsts[:-1]
    for chunk in found.chunks[:-1]:
        assert chunk.items + chunk.pairs >= chunk_pairs
    # What has no pairs takes memory all the same.
    assert max(chunk.items for chunk in found.chunks) <= chunk_pairs


def test_a_chunk_of_a_parquet_file_is_read_from_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(QUERIES), path, row_group_size=3)
    with closing(open_source(path)) as source:
        found = survey(source, 4, skip_bad=False)
        texts = [item.text for c in found.chunks for item in read_chunk(source, c)]  # type: ignore[union-attr]

    assert len(found.chunks) > 2
    assert texts == [query["query"] for query in QUERIES]


def test_chunks_read_one_after_another_read_no_row_of_a_parquet_file_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"query": f"q{i}", "documents": ["a", "b"]} for i in range(500)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=300)
    begun: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def noted(self: object, *args: object, row_groups: list[int]) -> object:
        begun.extend(row_groups)
        return iter_batches(self, *args, row_groups=row_groups)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    with closing(open_source(path)) as source:
        found = survey(source, 20, skip_bad=False)
        begun.clear()
        texts = [item.text for c in found.chunks for item in read_chunk(source, c)]  # type: ignore[union-attr]
        assert begun == [0, 1]
        # A chunk again, as after a worker that died, and one far ahead of it.
        for number in (5, 5, 2, 49, 2):
            expected = texts[number * 10 : number * 10 + 10]
            again = read_chunk(source, found.chunks[number])
            assert [item.text for item in again] == expected  # type: ignore[union-attr]

    assert texts == [row["query"] for row in rows]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda lines: lines[:4], id="shorter"),
        pytest.param(lambda lines: [*lines[:5], '{"query": "x", "documents": []}\n'], id="other"),
        pytest.param(lambda lines: ["\n", *lines[1:]], id="a line less"),
    ],
)
def test_an_input_that_changes_after_the_survey_is_not_ranked(
    tmp_path: Path, change: Callable[[list[str]], list[str]]
) -> None:
    path = write_lines(tmp_path / "a.jsonl", QUERIES)
    with closing(open_source(path)) as source:
        found = survey(source, 4, skip_bad=True)
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

        with pytest.raises(InputError, match=r"a\.jsonl: was changed while the batch ran"):
            _ = [read_chunk(source, chunk) for chunk in found.chunks]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")

    with pytest.raises(InputError, match="is no file"):
        open_source(tmp_path / "a.jsonl")


def test_nothing_of_the_input_is_kept_while_it_is_surveyed(tmp_path: Path) -> None:
    alive: list[int] = []
    held: set[int] = set()

    class Tracked:
        path = tmp_path

        def records(self, start: Place = BEGINNING) -> Iterator[Record]:
            for i in range(1000):
                yield Record(Place(i, i + 1), f"f:{i}", {"query": "q", "documents": [_Text("a")]})
                alive.append(len(held))

        def close(self) -> None: ...

    class _Text(str):
        __slots__ = ()

        def __new__(cls, text: str) -> Self:
            made = super().__new__(cls, text)
            held.add(id(made))
            return made

        def __del__(self) -> None:
            held.discard(id(self))

    survey(Tracked(), 10, skip_bad=False)

    assert max(alive) < 10


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("a.csv", b"", "ends in one of .jsonl, .ndjson"),
        ("a.jsonl", None, "no such file"),
        ("a.jsonl", b"\n", "no queries"),
        ("a.jsonl", b"{", "a.jsonl:1: invalid JSON"),
        ("a.jsonl", b"\n\xff\n", "a.jsonl:2: not UTF-8"),
        ("a.jsonl.gz", b"{}", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"{}")[:-5], "cannot be read"),
        ("a.parquet", b"PAR0", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, data: bytes | None, complaint: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)

    with (
        pytest.raises(InputError, match=complaint),
        closing(open_source(tmp_path / name)) as source,
    ):
        survey(source, 4, skip_bad=False)


def test_marks_at_the_beginning_of_a_file_are_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"query": "q", "documents": []}')
    with closing(open_source(path)) as source:
        assert survey(source, 4, skip_bad=False).items == 1
