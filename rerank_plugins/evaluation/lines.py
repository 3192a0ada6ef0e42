"""Files of lines, JSON or plain: how they are read, and how what is wrong in them is named."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rerank_plugins.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BOM = "\ufeff"
"""What some editors put before the first line."""


@contextmanager
def readable(name: object) -> Iterator[None]:
    """Turn what the system says against a path into an `InputError` that begins with *name*."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{name}: no such file or folder") from None
    except OSError as exc:
        raise InputError(f"{name}: cannot be read ({exc.strerror or exc})") from None


def numbered(lines: Iterable[str], name: object) -> Iterator[tuple[str, str]]:
    """Yield ``name:line`` and the text of each line that is not blank."""
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(BOM) if number == 1 else line
        if text.strip():
            yield f"{name}:{number}", text.rstrip("\r\n")


def json_values(lines: Iterable[str], name: object) -> Iterator[tuple[str, object]]:
    """Yield ``name:line`` and the JSON value of each line that is not blank.

    Raises:
        InputError: a line is no JSON, or too deep a nest of it.
    """
    for where, line in numbered(lines, name):
        yield where, json_value(line, where)


def json_value(line: str, where: str) -> object:
    """Return the JSON value of one line.

    Raises:
        InputError: it is no JSON, or too deep a nest of it.
    """
    try:
        return json.loads(line)
    except ValueError as exc:
        raise InputError(f"{where}: invalid JSON ({exc})") from None
    except RecursionError:
        raise InputError(f"{where}: JSON nested too deeply to be read") from None


def check_characters(text: str, where: str) -> str:
    """Return *text* if every character is whole; JSON can spell halves of one."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        half = f"U+{ord(text[exc.start]):04X}"
        raise InputError(
            f"{where} holds half a character, the lone surrogate {half} at {exc.start}; "
            "the program that wrote it cut a text in two"
        ) from None
    return text
