"""What goes to standard output, and the progress that goes beside it."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tqdm import tqdm

SHOW_PROGRESS_AFTER_S = 1.0
"""Shorter work is done before a bar could be read."""


class OutputError(Exception):
    """Standard output is closed or cannot be written; the message says why."""


@contextmanager
def writing() -> Iterator[None]:
    """Turn what the system says against standard output into an `OutputError`.

    A reader that went away is none: `BrokenPipeError` passes.
    """
    if sys.stdout is None:
        raise OutputError("standard output is closed")
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise OutputError(exc.strerror or str(exc)) from None


def print_json(value: object) -> None:
    """Print one JSON value, readable, in the characters that standard output can write."""
    with writing():
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        text = json.dumps(value, ensure_ascii=not utf8, indent=2, allow_nan=False)
        # A file name may hold bytes that are no text, and an id halves of a character.
        if utf8 and not _is_text(text):
            text = json.dumps(value, indent=2, allow_nan=False)
        print(text)


def print_line(line: str = "") -> None:
    """Print a line; characters that standard output has no code for become question marks."""
    with writing():
        encoding = sys.stdout.encoding or "utf-8"
        print(line.encode(encoding, errors="replace").decode(encoding))


def flush() -> None:
    """Write what is still held back, so that a failure shows while it can be told."""
    with writing():
        sys.stdout.flush()


def print_note(note: str) -> None:
    """Say something about the run on standard error, out of the way of the result."""
    # `print` would take a closed standard error for standard output.
    if sys.stderr is not None:
        print(note, file=sys.stderr)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def progress_bar(total: int, *, unit: str, label: str = "") -> tqdm[Any]:
    """Return a bar on standard error that shows itself on a terminal, if the work is long."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=label or None,
        unit=f" {unit}",
        delay=SHOW_PROGRESS_AFTER_S,
        leave=False,
        disable=sys.stderr is None or not sys.stderr.isatty(),
    )
