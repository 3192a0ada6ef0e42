"""What goes to standard output, and the progress that goes beside it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

SHOW_PROGRESS_AFTER_S = 1.0
"""Shorter work is done before a bar could be read."""


def print_json(value: object) -> None:
    """Print one JSON value, readable, in the characters that standard output can write."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    print(json.dumps(value, ensure_ascii=encoding != "utf8", indent=2, allow_nan=False))


def print_line(line: str = "") -> None:
    """Print a line; characters that standard output has no code for become question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, errors="replace").decode(encoding))


def print_note(note: str) -> None:
    """Say something about the run on standard error, out of the way of the result."""
    print(note, file=sys.stderr)


def progress_bar(total: int, *, unit: str, label: str = "") -> tqdm[Any]:
    """Return a bar on standard error that shows itself on a terminal, if the work is long."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=label or None,
        unit=f" {unit}",
        delay=SHOW_PROGRESS_AFTER_S,
        leave=False,
        disable=not sys.stderr.isatty(),
    )
