"""What a batch ranks: one query with its documents, as a line or a row of its input says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from rerank_plugins.errors import InputError
from rerank_plugins.evaluation.lines import check_characters
from rerank_plugins.requests import check_query

if TYPE_CHECKING:
    from rerank_plugins.batch.sources import Place, Record

_FORMS: Final = (
    '{"query_id", "query", "documents": [text or {"id", "text"}, ...]}, '
    'or, one pair each, {"query_id", "query", "document_id", "document"}; ids may be left out'
)


@dataclass(frozen=True, slots=True)
class BatchQuery:
    """A query with its documents; ids that were not given are None. ``where`` is its place."""

    query_id: str | None
    text: str
    documents: tuple[str, ...]
    document_ids: tuple[str | None, ...]
    where: str


@dataclass(frozen=True, slots=True)
class BadQuery:
    """What stands where a query should, and cannot be ranked: the reason begins with its place."""

    reason: str


Item = BatchQuery | BadQuery


class _Pair(NamedTuple):
    """A document of a line of its own; pairs of one key that stand side by side are one query."""

    key: tuple[str | None, str]
    document_id: str | None
    document: str


@dataclass(slots=True)
class _Gathered:
    """A query whose pairs stand in lines of their own, as far as they were read."""

    start: Place
    key: tuple[str | None, str]
    where: str
    documents: list[str] = field(default_factory=list)
    document_ids: list[str | None] = field(default_factory=list)
    behind: list[tuple[Place, BadQuery]] = field(default_factory=list)
    broken: BadQuery | None = None

    def items(self) -> Iterator[tuple[Place, Item]]:
        """Yield the query, or why it cannot be ranked, and the bad lines behind it."""
        ids, texts = tuple(self.document_ids), tuple(self.documents)
        yield self.start, self.broken or BatchQuery(*self.key, texts, ids, self.where)
        yield from self.behind

    def add(self, document_id: str | None, document: str) -> None:
        """Take one more pair; a bad line before it was one of the same query."""
        if self.behind and self.broken is None:
            self.broken = self.behind[0][1]
        self.behind.clear()
        self.document_ids.append(document_id)
        self.documents.append(document)


def read_items(records: Iterator[Record]) -> Iterator[tuple[Place, Item]]:
    """Yield each query, or what stands for a bad one, after the place where it begins.

    Pairs in lines of their own make one query where they stand side by side with the same query
    and id. A bad line among them spoils the whole query: a ranking without it would look complete.
    """
    group: _Gathered | None = None
    for record in records:
        try:
            read = _read(record)
        except InputError as exc:
            bad = record.start, BadQuery(str(exc))
            if group is None:
                yield bad
            else:
                group.behind.append(bad)
            continue
        if group is not None and (isinstance(read, BatchQuery) or read.key != group.key):
            yield from group.items()
            group = None
        if isinstance(read, BatchQuery):
            yield record.start, read
            continue
        group = group or _Gathered(record.start, read.key, record.where)
        group.add(read.document_id, read.document)
    if group is not None:
        yield from group.items()


def _read(record: Record) -> BatchQuery | _Pair:
    value = _object(record)
    read = _query_of if "documents" in value else _pair_of
    return read(value, record.where)


def _object(record: Record) -> Mapping[str, object]:
    if isinstance(record.value, InputError):
        raise record.value
    if not isinstance(record.value, dict):
        raise InputError(
            f"{record.where}: expected an object, got {record.value!r:.60}; it is {_FORMS}"
        )
    return record.value


def _query_of(value: Mapping[str, object], where: str) -> BatchQuery:
    query_id, text = _key_of(value, where)
    documents = value["documents"]
    if isinstance(documents, str) or not isinstance(documents, Sequence):
        raise InputError(f"{where}: 'documents' must be a list, got {documents!r:.60}")
    ids, texts = [], []
    for place, document in enumerate(documents):
        at = f"{where}: documents[{place}]"
        if isinstance(document, Mapping):
            ids.append(_id_of(document.get("id"), f"{at}: 'id'"))
            texts.append(_text_of(document.get("text"), f"{at}: 'text'"))
        else:
            ids.append(None)
            texts.append(_text_of(document, at))
    return BatchQuery(query_id, text, tuple(texts), tuple(ids), where)


def _pair_of(value: Mapping[str, object], where: str) -> _Pair:
    if "document" not in value:
        known = ", ".join(map(str, sorted(value))) or "none"
        raise InputError(f"{where}: no documents; its fields are {known}: it is {_FORMS}")
    document_id = _id_of(value.get("document_id"), f"{where}: 'document_id'")
    document = _text_of(value["document"], f"{where}: 'document'")
    return _Pair(_key_of(value, where), document_id, document)


def _key_of(value: Mapping[str, object], where: str) -> tuple[str | None, str]:
    query = _text_of(value.get("query"), f"{where}: 'query'")
    check_query(query, f"{where}: 'query'")
    return _id_of(value.get("query_id"), f"{where}: 'query_id'"), query


def _text_of(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} must be a string, got {value!r:.60}")
    return check_characters(value, where)


def _id_of(value: object, where: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{where} must be a string or a whole number, got {value!r:.60}")
    return check_characters(str(value), where)
