"""Retrieval sets on disk: queries, documents, grades, and a given first stage if there is one.

A set is a folder of ``queries.jsonl`` ({"qid", "text"}), ``corpus.jsonl`` ({"docid", "title",
"text"}), ``qrels.tsv`` (qid, docid, grade) and, where a first stage is given, ``candidates.tsv``
(qid, docid, rank, score); each may be gzipped and then ends in ``.gz``.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import InputError
from rerank_plugins.evaluation.lines import check_characters, json_values, numbered, readable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

QUERY_FORMAT: Final = {"qid": True, "text": True}
DOCUMENT_FORMAT: Final = {"docid": True, "title": False, "text": True}
"""Fields of a JSON object, and whether each must be there."""

GRADE_FORMAT: Final = ("qid", "docid", "grade")
FIRST_STAGE_FORMAT: Final = ("qid", "docid", "rank", "score")
"""Columns of a line."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query of a set, and the ``path:line`` that it was read from."""

    qid: str
    text: str
    where: str = field(default="", compare=False)


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
    ``first_stage`` is query id to document ids, best first, or None where none is given.
    """

    name: str
    queries: tuple[Query, ...]
    documents: Mapping[str, Document]
    grades: Mapping[str, Mapping[str, int]]
    first_stage: Mapping[str, tuple[str, ...]] | None = None

    @property
    def judged_queries(self) -> tuple[Query, ...]:
        """The queries that something is relevant to; the others measure nothing."""
        return tuple(
            query
            for query in self.queries
            if any(grade > 0 for grade in self.grades.get(query.qid, {}).values())
        )

    @property
    def missing_documents(self) -> frozenset[str]:
        """The relevant documents that are not in the corpus: no ranking can find them."""
        return frozenset(
            docid
            for grades in self.grades.values()
            for docid, grade in grades.items()
            if grade > 0 and docid not in self.documents
        )


def read_set(folder: Path) -> RetrievalSet:
    """Read the set in *folder*; its name is the folder's.

    Raises:
        InputError: a file is missing, broken or at odds with itself, by path and line.
    """
    with readable(folder):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        queries = _read_queries(_existing(folder, "queries.jsonl"))
        documents = _read_documents(_existing(folder, "corpus.jsonl"))
        grades = _read_grades(_existing(folder, "qrels.tsv"))
        given = _find(folder, "candidates.tsv")
        first_stage = None if given is None else _read_first_stage(given, documents)
    return RetrievalSet(folder.resolve().name, queries, documents, grades, first_stage)


def _read_queries(path: Path) -> tuple[Query, ...]:
    queries: dict[str, Query] = {}
    for where, row in _rows(path, QUERY_FORMAT):
        query = Query(row["qid"], row["text"], where)
        if query.qid in queries:
            raise InputError(f"{where}: query {query.qid!r} is there twice")
        queries[query.qid] = query
    return tuple(queries.values())


def _read_documents(path: Path) -> dict[str, Document]:
    documents: dict[str, Document] = {}
    for where, row in _rows(path, DOCUMENT_FORMAT):
        document = Document(row["docid"], row["title"], row["text"])
        if document.docid in documents:
            raise InputError(f"{where}: document {document.docid!r} is there twice")
        documents[document.docid] = document
    if not any(document.full_text.strip() for document in documents.values()):
        raise InputError(f"{path}: {'every document is blank' if documents else 'no documents'}")
    return documents


def _read_grades(path: Path) -> dict[str, dict[str, int]]:
    grades: dict[str, dict[str, int]] = {}
    for where, (qid, docid, text) in _columns(path, GRADE_FORMAT):
        grade = _whole_number(text, where, GRADE_FORMAT)
        if grades.setdefault(qid, {}).setdefault(docid, grade) != grade:
            raise InputError(
                f"{where}: document {docid!r} has the grade {grade} for query {qid!r}, "
                f"and the grade {grades[qid][docid]} in an earlier line"
            )
    return grades


def _read_first_stage(path: Path, documents: Mapping[str, Document]) -> dict[str, tuple[str, ...]]:
    ranks: dict[str, dict[str, int]] = {}
    for where, (qid, docid, rank, _) in _columns(path, FIRST_STAGE_FORMAT):
        if docid not in documents:
            raise InputError(f"{where}: document {docid!r} is not in the corpus")
        ranked = ranks.setdefault(qid, {})
        if docid in ranked:
            raise InputError(f"{where}: document {docid!r} is there twice for query {qid!r}")
        ranked[docid] = _whole_number(rank, where, FIRST_STAGE_FORMAT)
    return {qid: tuple(sorted(ranked, key=ranked.__getitem__)) for qid, ranked in ranks.items()}


def _find(folder: Path, name: str) -> Path | None:
    either = (folder / name, folder / f"{name}.gz")
    return next((path for path in either if path.is_file()), None)


def _existing(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise InputError(f"{folder}: has neither {name} nor {name}.gz, so it is no retrieval set")
    return path


def _lines(path: Path) -> Iterator[str]:
    try:
        with (
            readable(path),
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as lines,
        ):
            yield from lines
    except UnicodeDecodeError as exc:
        raise InputError(f"{path}: not UTF-8 text ({exc.reason})") from None
    except (EOFError, zlib.error) as exc:
        raise InputError(f"{path}: cannot be read ({exc})") from None


def _rows(path: Path, form: Mapping[str, bool]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ``path:line`` and the fields of each object; one that may be absent is then blank."""
    expected = "; a line is {" + ", ".join(f'"{name}": ...' for name in form) + "}"
    for where, row in json_values(_lines(path), path):
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an object, got {row!r:.60}{expected}")
        found = {}
        for name, required in form.items():
            value = row.get(name)
            if value is None and not required:
                value = ""
            if not isinstance(value, str):
                hint = ' (its "_id" is BEIR\'s name for it)' if "_id" in row else ""
                raise InputError(
                    f"{where}: {name!r} must be a string, got {value!r:.60}{hint}{expected}"
                )
            found[name] = check_characters(value, f"{where}: {name!r}")
        yield where, found


def _columns(path: Path, form: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    for where, line in numbered(_lines(path), path):
        columns = line.split("\t")
        if len(columns) != len(form):
            raise InputError(f"{where}: {_expected(form)}; got {line!r:.60}")
        yield where, columns


def _whole_number(text: str, where: str, form: Sequence[str]) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{where}: {_expected(form)}; got {text!r:.60} for a number") from None


def _expected(form: Sequence[str]) -> str:
    return f"a line is {', '.join(form)} with tabs between, and there is no header"
