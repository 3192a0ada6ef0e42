"""Retrieval sets on disk: queries, documents, grades, and a given first stage if there is one.

A set is a folder of ``queries.jsonl`` ({"qid", "text"}), ``corpus.jsonl`` ({"docid", "title",
"text"}), ``qrels.tsv`` (qid, docid, grade) and, where a first stage is given, ``candidates.tsv``
(qid, docid, rank, score); each may be gzipped and then ends in ``.gz``.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_plugins.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Query:
    """A query of a set."""

    qid: str
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """A document of a set; the title may be empty."""

    docid: str
    title: str
    text: str

    @property
    def full_text(self) -> str:
        """Title and text, as they are searched and reranked."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """A set as it was read; every mapping keeps the order of its file.

    ``grades`` is query id to document id to grade, 0 meaning "judged and not relevant".
    ``candidates`` is query id to document ids, best first, or None where no first stage is given.
    """

    name: str
    queries: tuple[Query, ...]
    documents: Mapping[str, Document]
    grades: Mapping[str, Mapping[str, int]]
    candidates: Mapping[str, tuple[str, ...]] | None = None

    @property
    def judged_queries(self) -> tuple[Query, ...]:
        """The queries that something is relevant to; the others measure nothing."""
        return tuple(
            query
            for query in self.queries
            if any(grade > 0 for grade in self.grades.get(query.qid, {}).values())
        )


def read_set(folder: Path) -> RetrievalSet:
    """Read the set in *folder*; its name is the folder's.

    Raises:
        InputError: a file is missing or broken, by path and line.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    queries = _read_queries(_existing(folder, "queries.jsonl"))
    documents = _read_documents(_existing(folder, "corpus.jsonl"))
    grades = _read_grades(_existing(folder, "qrels.tsv"))
    given = _find(folder, "candidates.tsv")
    candidates = None if given is None else _read_candidates(given, documents)
    return RetrievalSet(folder.resolve().name, queries, documents, grades, candidates)


def _read_queries(path: Path) -> tuple[Query, ...]:
    queries: dict[str, Query] = {}
    for where, row in _json_lines(path):
        query = Query(_text(row, "qid", where), _text(row, "text", where))
        if query.qid in queries:
            raise InputError(f"{where}: query {query.qid!r} is there twice")
        queries[query.qid] = query
    return tuple(queries.values())


def _read_documents(path: Path) -> dict[str, Document]:
    documents: dict[str, Document] = {}
    for where, row in _json_lines(path):
        document = Document(
            _text(row, "docid", where),
            _text(row, "title", where) if row.get("title") is not None else "",
            _text(row, "text", where),
        )
        if document.docid in documents:
            raise InputError(f"{where}: document {document.docid!r} is there twice")
        documents[document.docid] = document
    return documents


def _read_grades(path: Path) -> dict[str, dict[str, int]]:
    grades: dict[str, dict[str, int]] = {}
    for where, (qid, docid, grade) in _columns(path, 3):
        grades.setdefault(qid, {})[docid] = _whole_number(grade, where)
    return grades


def _read_candidates(path: Path, documents: Mapping[str, Document]) -> dict[str, tuple[str, ...]]:
    ranks: dict[str, dict[str, int]] = {}
    for where, (qid, docid, rank, _) in _columns(path, 4):
        if docid not in documents:
            raise InputError(f"{where}: document {docid!r} is not in the corpus")
        ranks.setdefault(qid, {})[docid] = _whole_number(rank, where)
    return {qid: tuple(sorted(ranked, key=ranked.__getitem__)) for qid, ranked in ranks.items()}


def _find(folder: Path, name: str) -> Path | None:
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _existing(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise InputError(f"{folder}: has neither {name} nor {name}.gz, so it is no retrieval set")
    return path


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ``path:line`` and the text of each line that is not blank."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as lines
        ):
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", line.rstrip("\r\n")
    except UnicodeDecodeError as exc:
        raise InputError(f"{path}: not UTF-8 text ({exc.reason})") from None
    except (OSError, EOFError, zlib.error) as exc:
        raise InputError(f"{path}: cannot be read ({exc})") from None


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for where, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as exc:
            raise InputError(f"{where}: invalid JSON ({exc})") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an object, got {line:.60}")
        yield where, row


def _columns(path: Path, count: int) -> Iterator[tuple[str, list[str]]]:
    for where, line in _lines(path):
        columns = line.split("\t")
        if len(columns) != count:
            raise InputError(f"{where}: expected {count} columns, got {len(columns)}")
        yield where, columns


def _text(row: Mapping[str, object], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise InputError(f"{where}: {field!r} must be a string, got {value!r:.60}")
    return value


def _whole_number(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{where}: expected a whole number, got {text!r:.60}") from None
