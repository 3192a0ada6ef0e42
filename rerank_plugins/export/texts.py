"""The pairs that an export is calibrated on and checked with."""

from __future__ import annotations

import importlib
import inspect
import json
import platform
import random
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from rerank_plugins.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_NAMES = (
    "argparse ast asyncio base64 bisect calendar collections concurrent.futures configparser "
    "contextlib copy csv dataclasses datetime decimal difflib email.message fractions functools "
    "glob gzip heapq html http.client inspect io ipaddress itertools json logging mailbox "
    "mimetypes os os.path pathlib pickle pprint queue random re sched shelve shlex shutil "
    "smtplib socket sqlite3 statistics string subprocess tarfile tempfile textwrap threading "
    "time tokenize traceback unicodedata unittest urllib.parse urllib.request uuid zipfile"
)
SAMPLE_MODULES = tuple(_NAMES.split())

SAMPLE_QUERIES = 48
SAMPLE_DOCUMENTS = 6
"""Half of the queries calibrate, half check: 144 pairs each, enough that the ranges settle."""

MOST_CALIBRATION = 500
"""Pairs of a file that calibrate at most: the ranges have settled long before."""

LONGEST_TEXT = 1500
"""Characters of a docstring that are kept: about as long as a chunk of retrieval."""

SHORTEST_TEXT = 200
SHORTEST_QUERY = 15


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """A query with the documents that are scored with it."""

    query: str
    documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckTexts:
    """Texts to calibrate on, and others to check with; ``source`` says where they come from."""

    calibration: tuple[QueryGroup, ...]
    check: tuple[QueryGroup, ...]
    source: str


def read_pairs(path: Path) -> CheckTexts:
    """Read JSON lines of ``{"query", "document"}``; every second query is kept for the check.

    Raises:
        InputError: the file cannot be read, a line is no pair, or there are less than two queries.
    """
    groups: dict[str, list[str]] = {}
    try:
        # Not splitlines(): JSON may hold U+2028 and others as they are.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"--calibration: {path} cannot be read: {exc}") from exc
    for number, line in enumerate(lines, start=1):
        if line.strip():
            query, document = _pair(line, f"{path}:{number}")
            groups.setdefault(query, []).append(document)
    if len(groups) < 2:
        raise InputError(
            f"--calibration: {path} holds {len(groups)} queries; at least 2 are needed, one to "
            "calibrate and one to check"
        )
    found = _halves([QueryGroup(q, tuple(d)) for q, d in groups.items()], str(path.name))
    return replace(found, calibration=_first(found.calibration, MOST_CALIBRATION))


def _first(groups: Sequence[QueryGroup], pairs: int) -> tuple[QueryGroup, ...]:
    """Return the groups up to that many pairs, the last of them cut."""
    kept = []
    for group in groups:
        if pairs > 0:
            kept.append(QueryGroup(group.query, group.documents[:pairs]))
            pairs -= len(group.documents)
    return tuple(kept)


def _pair(line: str, where: str) -> tuple[str, str]:
    try:
        value = json.loads(line)
        query, document = value["query"], value["document"]
        f"{query}{document}".encode()
    except UnicodeEncodeError as exc:
        raise InputError(f"--calibration: {where}: a text holds a lone surrogate") from exc
    except (ValueError, KeyError, TypeError, RecursionError):
        query = document = None
    if not (isinstance(query, str) and isinstance(document, str) and query.strip()):
        raise InputError(
            f'--calibration: {where}: expected {{"query": TEXT, "document": TEXT}}, got {line:.60}'
        )
    return query, document


def sample_texts() -> CheckTexts:
    """Return docstrings of Python's standard library: the summary of one asks for its text.

    English alone. Beside its own text, a query has that of a neighbour, and others drawn by chance.

    Raises:
        InputError: this Python runs without docstrings.
    """
    texts = list(dict.fromkeys(_docstrings()))
    if len(texts) < SAMPLE_QUERIES * 2:
        raise InputError(
            "this Python has no docstrings (-OO) to take texts from; pass --calibration FILE"
        )
    draw = random.Random(0)  # noqa: S311  the same sample in every run, no secret
    groups = []
    for text, neighbour in draw.sample(list(pairwise(texts)), SAMPLE_QUERIES):
        others = draw.sample(texts, SAMPLE_DOCUMENTS - 2)
        groups.append(QueryGroup(_summary(text), (text, neighbour, *others)))
    source = f"docstrings of the standard library of Python {platform.python_version()}"
    return _halves(groups, source)


def _halves(groups: Sequence[QueryGroup], source: str) -> CheckTexts:
    return CheckTexts(tuple(groups[::2]), tuple(groups[1::2]), source)


def _docstrings() -> Iterator[str]:
    for name in SAMPLE_MODULES:
        try:
            module = importlib.import_module(name)
        # Some builds of Python come without a part: sqlite3, say, or ssl.
        except ImportError:
            continue
        for thing in vars(module).values():
            if not (inspect.isclass(thing) or inspect.isroutine(thing)):
                continue
            # A docstring is long enough to rank, and begins with a sentence that can ask for it.
            text = inspect.getdoc(thing) or ""
            if len(text) >= SHORTEST_TEXT and len(_summary(text)) >= SHORTEST_QUERY:
                yield text[:LONGEST_TEXT]


def _summary(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split()).partition(". ")[0]
