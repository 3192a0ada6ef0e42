"""Where a batch reads: JSON lines, gzipped or not, and Parquet, from any record on."""

from __future__ import annotations

import gzip
import stat
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

from rerank_plugins.batch.arrow import import_arrow, readable_parquet
from rerank_plugins.errors import InputError
from rerank_plugins.evaluation.lines import BOM, json_value, readable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

_LINE_ENDINGS: Final = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_ROWS_AT_ONCE: Final = 64
"""A row may hold a query with hundreds of documents."""


class Place(NamedTuple):
    """Where a record begins: the byte, or the row, and the number that people count it by."""

    at: int
    number: int


BEGINNING: Final = Place(0, 1)


class Record(NamedTuple):
    """One JSON value or row, or the error that stands for it."""

    start: Place
    where: str
    value: object


class Source(Protocol):
    """A file of records; one thread at a time reads it."""

    path: Path

    def records(self, start: Place = BEGINNING) -> Iterator[Record]:
        """Yield the records from *start* on; blank lines are none."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def open_source(path: Path) -> Source:
    """Open the file by the ending of its name.

    Raises:
        InputError: another ending, or a file that cannot be read, or not twice.
        MissingExtraError: Parquet without pyarrow.
    """
    with readable(path):
        # A pipe would be at its end after the first reading, and never open again.
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path}: is no file; a batch reads its input more than once")
    name = path.name.lower()
    if name.endswith(".parquet"):
        return ParquetSource.open(path)
    if name.endswith(_LINE_ENDINGS):
        return LineSource.open(path)
    endings = ", ".join((*_LINE_ENDINGS, ".parquet"))
    raise InputError(f"{path}: a batch is read from a file that ends in one of {endings}")


class LineSource:
    """JSON lines. Going on where it stopped is free, also in a gzipped file."""

    def __init__(self, path: Path, file: BinaryIO | gzip.GzipFile) -> None:
        self.path = path
        self._file = file

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the file."""
        with readable(path):
            if path.name.lower().endswith(".gz"):
                return cls(path, gzip.open(path, "rb"))
            return cls(path, path.open("rb"))

    def records(self, start: Place = BEGINNING) -> Iterator[Record]:
        """Yield a record for each line that is not blank."""
        at, number = start
        try:
            with readable(self.path):
                if self._file.tell() != at:
                    self._file.seek(at)
                for line in self._file:
                    if line.strip():
                        yield self._record(line, Place(at, number))
                    at, number = at + len(line), number + 1
        except (EOFError, zlib.error) as exc:
            raise InputError(f"{self.path}: cannot be read ({exc})") from None

    def _record(self, line: bytes, start: Place) -> Record:
        where = f"{self.path}:{start.number}"
        try:
            text = line.decode().removeprefix(BOM if start.at == 0 else "")
        except UnicodeDecodeError as exc:
            return Record(start, where, InputError(f"{where}: not UTF-8 text ({exc.reason})"))
        try:
            return Record(start, where, json_value(text, where))
        except InputError as exc:
            return Record(start, where, exc)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(slots=True)
class _Group:
    """A row group as far as it is read: its last batch, the row that begins with, and the rest."""

    number: int
    first: int
    batch: Any
    rest: Iterator[Any]


class ParquetSource:
    """Parquet: a row is what a JSON object is, its columns the fields.

    Going on where it stopped is free: a group of rows, often the whole file, is read from its
    beginning otherwise.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._group: _Group | None = None
        self._file: Any = import_arrow().parquet.ParquetFile(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the file and read its footer."""
        with readable_parquet(path):
            return cls(path)

    def records(self, start: Place = BEGINNING) -> Iterator[Record]:
        """Yield a record for each row."""
        with readable_parquet(self.path):
            for first, batch in self._batches(start.at):
                begin = max(first, start.at)
                for row, value in enumerate(batch.slice(begin - first).to_pylist(), start=begin):
                    where = f"{self.path}: row {row + 1}"
                    yield Record(Place(row, row + 1), where, value)

    def _batches(self, start: int) -> Iterator[tuple[int, Any]]:
        """Yield batches with the number of their first row; groups before *start* go unread."""
        metadata = self._file.metadata
        row = 0
        for number in range(metadata.num_row_groups):
            rows = metadata.row_group(number).num_rows
            if row + rows > start:
                yield from self._batches_of(number, row, start)
            row += rows

    def _batches_of(self, number: int, first: int, start: int) -> Iterator[tuple[int, Any]]:
        """Yield the batches of a group that begins with row *first*, from row *start* on."""
        group = self._group
        if group is None or group.number != number or start < group.first:
            rest = self._file.iter_batches(_ROWS_AT_ONCE, row_groups=[number])
            group = self._group = _Group(number, first, None, rest)
        while True:
            read = 0 if group.batch is None else group.batch.num_rows
            if read and group.first + read > start:
                yield group.first, group.batch
            batch = next(group.rest, None)
            if batch is None:
                return
            group.first, group.batch = group.first + read, batch

    def close(self) -> None:
        """Close the file."""
        self._file.close()
