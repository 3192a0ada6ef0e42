"""Text in columns, counted in terminal cells: a Chinese character is two of them."""

from __future__ import annotations

import shutil
import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

GAP: Final = "  "
_WIDTH_UNKNOWN: Final = 100


def terminal_width() -> int:
    """Return the width of the terminal in cells; 100 where there is none."""
    return shutil.get_terminal_size((_WIDTH_UNKNOWN, 24)).columns


def one_line(text: str) -> str:
    """Return *text* on one line, without control characters, which might steer a terminal."""
    plain = "".join(" " if unicodedata.category(char) == "Cc" else char for char in text)
    return " ".join(plain.split())


def cells(text: str) -> int:
    """Return how many terminal cells *text* takes."""
    return len(text) if text.isascii() else sum(map(_cells_of, text))


def _cells_of(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def clip(text: str, width: int) -> str:
    """Cut *text* to *width* cells, the last of them an ellipsis where something is missing."""
    if cells(text) <= width:
        return text
    used = 0
    for place, char in enumerate(text):
        used += _cells_of(char)
        if used > width - 1:
            return text[:place] + "…" * (width > 0)
    return text


def clip_start(text: str, width: int) -> str:
    """Cut the beginning of *text*: the end of a path says more."""
    return clip(text[::-1], width)[::-1]


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Fill *text* up to *width* cells; *right* puts the text at the right end."""
    filling = " " * max(0, width - cells(text))
    return filling + text if right else text + filling


def aligned(rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """Return *rows* as lines of aligned columns; those in *right* are aligned to the right."""
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    return [
        GAP.join(
            pad(text, width, right=place in right)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
