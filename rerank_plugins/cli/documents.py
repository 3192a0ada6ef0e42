"""Documents from files, folders and standard input, each with the place it came from."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from rerank_plugins.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Format = Literal["auto", "text", "jsonl"]
Split = Literal["paragraph", "line", "file"]

STDIN: Final = "-"
TEXT_FIELDS: Final = ("text", "page_content", "content")
"""Where a JSON object keeps its text, tried in this order."""

_JSON_LINES: Final = frozenset({".jsonl", ".ndjson"})
_SNIFFED_BYTES: Final = 8192
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


def read_documents(paths: Sequence[str], reading: Reading) -> Read:
    """Read every path in turn; ``-``, or no path at all, is standard input.

    Raises:
        InputError: a path that is not there or cannot be read, by name, line or byte; no
            documents at all.
    """
    read = Read()
    for name in paths or (STDIN,):
        path = Path(name)
        if name == STDIN:
            read.documents += _parse(_standard_input(), "stdin", reading)
        elif path.is_dir():
            for file in _files_under(path):
                _read_from_folder(file, reading, read)
        else:
            read.documents += _parse(_decode(_bytes_of(path), name), name, reading)
    if not read.documents:
        where = ", ".join("standard input" if name == STDIN else name for name in paths or (STDIN,))
        raise InputError(f"no documents in {where}{_aside(read.skipped)}")
    return read


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
    return _decode(sys.stdin.buffer.read(), "stdin")


def _files_under(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in the order of their names, hidden ones left out."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        # A link to a folder may lead back to where it is.
        if path.is_dir():
            if not path.is_symlink():
                yield from _files_under(path)
        elif path.is_file():
            yield path


def _read_from_folder(path: Path, reading: Reading, read: Read) -> None:
    """Read one file that nobody named: what is no text is counted and passed over."""
    try:
        data = path.read_bytes()
    except OSError:
        read.skipped["unreadable"] += 1
        return
    if b"\0" in data[:_SNIFFED_BYTES]:
        read.skipped["binary"] += 1
        return
    try:
        text = _decode(data, str(path))
    except InputError:
        read.skipped["not UTF-8"] += 1
        return
    read.documents += _parse(text, str(path), reading)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file or folder") from None
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from None


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode().removeprefix("\ufeff")
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
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            value = json.loads(line)
        except ValueError as exc:
            raise InputError(f"{where}: invalid JSON ({exc})") from None
        if isinstance(value, str):
            yield SourceDocument(value, where)
            continue
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected a string or an object, got {line.strip():.60}")
        yield SourceDocument(_text_of(value, where, wanted), _source_of(value, where))


def _text_of(value: dict[str, object], where: str, wanted: str | None) -> str:
    fields = TEXT_FIELDS if wanted is None else (wanted,)
    for name in fields:
        text = value.get(name)
        if isinstance(text, str):
            return text
    known = ", ".join(sorted(value)) or "none"
    raise InputError(
        f"{where}: no text in {' or '.join(map(repr, fields))}; its fields are {known}: "
        "choose one with --field"
    )


def _source_of(value: dict[str, object], where: str) -> str:
    identity = value.get("id")
    return str(identity) if isinstance(identity, str | int) else where
