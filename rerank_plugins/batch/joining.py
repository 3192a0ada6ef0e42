"""Parts → one output, in the order of the input, whole or not at all."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rerank_plugins.batch.arrow import import_arrow
from rerank_plugins.batch.parts import check_identity, unfinished, writable
from rerank_plugins.batch.rows import schema
from rerank_plugins.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import IO

    from rerank_plugins.batch.parts import Parts

JSON_LINES: Final = (".jsonl", ".ndjson")
PARQUET: Final = (".parquet",)

_GROUP_ROWS: Final = 131_072
_GROUP_BYTES: Final = 64_000_000
"""A row group of the output: large enough to be read quickly, small enough to be held."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What an output holds; ``scorers`` counts the queries by who answered them."""

    queries: int
    pairs: int
    rows: int
    skipped: int
    scorers: Mapping[str, int]


def check_output(path: Path) -> None:
    """Complain of an output that could not be written at the end.

    Raises:
        InputError: its ending is none of ours, or its folder is not there.
    """
    if not path.name.lower().endswith((*PARQUET, *JSON_LINES)):
        endings = ", ".join((*PARQUET, *JSON_LINES))
        raise InputError(f"{path}: a batch writes a file that ends in one of {endings}")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder")
    if path.is_dir():
        raise InputError(f"{path}: is a folder")


def skipped_file(output: Path) -> Path:
    """Return where the queries that were left out are listed."""
    return output.with_name(f"{output.name}.skipped.txt")


def join(parts: Parts, chunks: int, output: Path, *, texts: bool) -> Joined:
    """Write the rows of all parts to *output*, a few at a time, and list what was skipped.

    Raises:
        ConfigError: the parts are by different scorers.
        InputError: a part is missing or damaged, or the output cannot be written.
    """
    told = _Told(skipped_file(output))
    with (
        writable(output),
        # Among the parts: what a kill leaves of them goes when those go.
        unfinished(output, parts.folder) as path,
        unfinished(told.path, parts.folder) as listing,
        listing.open("w", encoding="utf-8") as lines,
    ):
        tables = told.tables(parts, chunks, lines)
        if output.name.lower().endswith(PARQUET):
            _write_parquet(path, tables, texts=texts)
        else:
            _write_json_lines(path, tables)
    if not told.skipped:
        # One of an earlier batch, or an empty one of this.
        told.path.unlink(missing_ok=True)
    return Joined(told.queries, told.pairs, told.rows, told.skipped, dict(told.scorers))


class _Told:
    """What parts tell while they are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.queries = self.pairs = self.rows = self.skipped = 0
        self.scorers: Counter[str] = Counter()

    def tables(self, parts: Parts, chunks: int, skipped: IO[str]) -> Iterator[Any]:
        identity = None
        for number in range(chunks):
            note, table = parts.read(number)
            check_identity(identity, note.identity, parts.folder)
            identity = note.identity
            self.queries += note.queries
            self.pairs += note.pairs
            self.rows += table.num_rows
            self.skipped += len(note.skipped)
            self.scorers.update(note.scorers)
            skipped.writelines(" ".join(reason.splitlines()) + "\n" for reason in note.skipped)
            yield table


def _write_parquet(path: Path, tables: Iterator[Any], *, texts: bool) -> None:
    arrow = import_arrow()
    with arrow.parquet.ParquetWriter(path, schema(texts=texts)) as writer:
        for table in _gathered(tables):
            writer.write_table(table, row_group_size=_GROUP_ROWS)


def _gathered(tables: Iterator[Any]) -> Iterator[Any]:
    """Yield tables that are large enough for a row group each, the last one aside."""
    concatenated = import_arrow().concat_tables
    waiting: list[Any] = []
    rows = size = 0
    for table in tables:
        waiting.append(table)
        rows, size = rows + table.num_rows, size + table.nbytes
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield concatenated(waiting)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield concatenated(waiting)


def _write_json_lines(path: Path, tables: Iterator[Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            for row in table.to_pylist():
                # What rows hold is text and finite numbers: checked when it was read and scored.
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
