"""Documents from texts, files, folders and standard input, each with where it came from."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from rerank_plugins.errors import InputError
from rerank_plugins.evaluation.lines import BOM, check_characters, json_values, readable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

Format = Literal["auto", "text", "jsonl"]
Split = Literal["paragraph", "line", "file"]

STDIN: Final = "-"
TEXT_FIELDS: Final = ("text", "page_content", "content")
"""Where a JSON object keeps its text, tried in this order."""

_JSON_LINES: Final = frozenset({".jsonl", ".ndjson"})
_SNIFFED_BYTES: Final = 8192
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
"""How text in UTF-16 begins, which has zero bytes like a binary file."""

_HEADING: Final = re.compile(r"#{1,6} ")


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """A text and where it was read: its id if it has one, otherwise ``path:line``."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read: their format, how text is split, where JSON objects keep theirs."""

    format: Format = "auto"
    split: Split = "paragraph"
    field: str | None = None


@dataclass(slots=True)
class Read:
    """What was read; ``skipped`` counts the files of folders that were passed over, by reason."""

    documents: list[SourceDocument] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


class _BinaryError(InputError):
    """A file is no text."""


class _NoTextError(InputError):
    """A JSON value is, or has, no text."""


class NoFieldError(_NoTextError):
    """A JSON object has no text in the fields that were looked at; others may be named."""


def read_documents(paths: Sequence[str], reading: Reading) -> Read:
    """Read every path in turn; ``-``, or no path at all, is standard input.

    Raises:
        InputError: a path that is not there or cannot be read, by name, line or byte; no
            documents at all.
    """
    read = Read()
    for name in paths or (STDIN,):
        if name == STDIN:
            read.documents += _parse(_standard_input(), "stdin", reading)
        elif _is_folder(name):
            for path in _files_under(Path(name), read.skipped):
                _read_from_folder(path, reading, read)
        else:
            with readable(name), Path(name).open("rb") as file:
                text = _read_text(file, name)
            read.documents += _parse(text, name, reading)
    if not read.documents:
        where = ", ".join("standard input" if name == STDIN else name for name in paths or (STDIN,))
        raise InputError(f"no documents in {where}{_aside(read.skipped)}")
    return read


def parse_documents(content: str | bytes, name: str, reading: Reading) -> list[SourceDocument]:
    """Return the documents of a text, or of a file's bytes; the end of *name* tells the format.

    Raises:
        InputError: bytes that are no UTF-8 text, or lines that are no JSON, by name and place.
    """
    if isinstance(content, bytes):
        _check_binary(content[:_SNIFFED_BYTES], name)
        content = _decoded(content, name)
    return _parse(content, name, reading)


def skipped_note(skipped: Counter[str]) -> str:
    """Say in words how many files were passed over, and why; blank where none were."""
    if not skipped:
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    total = skipped.total()
    return f"skipped {total} {'file' if total == 1 else 'files'}: {reasons}"


def _aside(skipped: Counter[str]) -> str:
    return f" ({skipped_note(skipped)})" if skipped else ""


def _standard_input() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("no documents: name files or folders, or pipe documents in")
    with readable("stdin"):
        return _read_text(sys.stdin.buffer, "stdin")


def _is_folder(name: str) -> bool:
    with readable(name):
        if not Path(name).is_dir():
            return False
        # One that was named and cannot be listed is an error; one below it is counted.
        next(Path(name).iterdir(), None)
        return True


def _files_under(folder: Path, skipped: Counter[str]) -> Iterator[Path]:
    """Yield the files below a folder in the order of their names, hidden ones left out."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        skipped["unreadable"] += 1
        return
    for path in paths:
        if path.name.startswith("."):
            continue
        try:
            is_folder, is_file = path.is_dir(), path.is_file()
        except OSError:
            skipped["unreadable"] += 1
            continue
        # A link to a folder may lead back to where it is.
        if is_folder and not path.is_symlink():
            yield from _files_under(path, skipped)
        elif is_file:
            yield path


def _read_from_folder(path: Path, reading: Reading, read: Read) -> None:
    """Read one file that nobody named: what is no text is counted and passed over."""
    try:
        with path.open("rb") as file:
            text = _read_text(file, str(path))
    except OSError:
        read.skipped["unreadable"] += 1
        return
    except _BinaryError:
        read.skipped["binary"] += 1
        return
    except InputError:
        read.skipped["not UTF-8"] += 1
        return
    try:
        read.documents += _parse(text, str(path), reading)
    except _NoTextError:
        # A field that was asked for is missed; one that was guessed may belong to other data.
        if reading.field is not None:
            raise
        read.skipped["without a text field"] += 1


def _read_text(file: BinaryIO, name: str) -> str:
    """Read a file of UTF-8; the head comes first, since a binary file may be large."""
    head = file.read(_SNIFFED_BYTES)
    _check_binary(head, name)
    return _decoded(head + file.read(), name)


def _check_binary(head: bytes, name: str) -> None:
    if b"\0" in head and not head.startswith(_UTF_16):
        raise _BinaryError(f"{name}: a binary file; documents are read from text and JSON lines")


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode().removeprefix(BOM)
    except UnicodeDecodeError as exc:
        raise InputError(
            f"{name}: not UTF-8 text (byte 0x{data[exc.start]:02x} at {exc.start}); convert it, "
            "for example with iconv"
        ) from None


def _parse(text: str, name: str, reading: Reading) -> list[SourceDocument]:
    if _is_json_lines(text, name, reading.format):
        return list(_json_lines(text, name, reading.field))
    if reading.split == "file":
        return [SourceDocument(text.strip(), name)] if text.strip() else []
    # Lines as editors count them: `splitlines` knows more line ends than they do.
    lines = text.split("\n")
    numbered = _lines(lines) if reading.split == "line" else _paragraphs(lines)
    return [SourceDocument(document, f"{name}:{line}") for line, document in numbered]


def _is_json_lines(text: str, name: str, form: Format) -> bool:
    if form != "auto":
        return form == "jsonl"
    if name == "stdin":
        return text.lstrip().startswith(('{"', "{ "))
    return Path(name).suffix.lower() in _JSON_LINES


def _lines(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, line.strip()


def _paragraphs(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the runs of lines between blank ones; headings go with the paragraph they announce."""
    first = 1
    paragraph: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            if not paragraph:
                first = number
            paragraph.append(line.rstrip())
        elif paragraph and not all(map(_HEADING.match, paragraph)):
            yield first, "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield first, "\n".join(paragraph)


def _json_lines(text: str, name: str, wanted: str | None) -> Iterator[SourceDocument]:
    for where, value in json_values(text.split("\n"), name):
        if isinstance(value, str):
            yield SourceDocument(check_characters(value, f"{where}: the text"), where)
        elif isinstance(value, dict):
            yield SourceDocument(_text_of(value, where, wanted), _source_of(value, where))
        else:
            raise _NoTextError(f"{where}: expected a string or an object, got {value!r:.60}")


def _text_of(value: dict[str, object], where: str, wanted: str | None) -> str:
    fields = TEXT_FIELDS if wanted is None else (wanted,)
    for name in fields:
        text = value.get(name)
        if isinstance(text, str):
            return check_characters(text, f"{where}: {name!r}")
    known = ", ".join(sorted(value)) or "none"
    raise NoFieldError(
        f"{where}: no text in {' or '.join(map(repr, fields))}; its fields are {known}"
    )


def _source_of(value: dict[str, object], where: str) -> str:
    identity = value.get("id")
    return str(identity) if isinstance(identity, str | int) else where
