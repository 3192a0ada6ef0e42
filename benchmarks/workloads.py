"""Real text in the shapes that rerankers meet: so many documents of so many words a request."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("RERANK_PLUGINS_DATA", ROOT.parent / "shared" / "data"))

Z_95 = 1.645
"""Standard deviations from the median of a normal distribution to its 95th percentile."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A workload: texts of *source* in requests of one query and *documents* documents.

    Lengths are in words, or in characters where the text has no spaces (*unit* ""). *query* is the
    length that queries are chosen for. *lengths* holds median and 95th percentile of the windows
    that documents are cut to; None leaves the documents of the source as they are.
    """

    source: str
    query: int
    documents: int
    lengths: tuple[int, int] | None = None
    unit: str = " "
    chinese: bool = False


SHAPES = {
    "web search": Shape("dev/mtrag_un", 6, 100, (52, 105)),
    "RAG chunk": Shape("dev/mtrag_un", 9, 50),
    "science": Shape("dev/scifact", 12, 100),
    "zh chunk": Shape("dev/drcd_test_chunk100", 15, 50, unit="", chinese=True),
    "zh paragraph": Shape("dev/xquad/xquad_zh", 15, 20, (462, 896), unit="", chinese=True),
    "code": Shape("train/cosqa_dev", 6, 50),
}
"""The shapes of the data folder's README; its sets of code and of long Chinese text are small."""


@dataclass(frozen=True, slots=True)
class Request:
    """One query with the documents to rank."""

    query: str
    documents: tuple[str, ...]


def make_requests(
    shape: Shape, pairs: int, *, documents: int | None = None, seed: int = 0
) -> list[Request]:
    """Return requests of about *pairs* pairs in all; a part of one where that is fewer.

    *documents* in a request are the shape's where not given.

    Without the data folder the text is this project's own documentation.
    """
    rng = random.Random(seed)
    queries = _nearest(read_texts(shape.source, "queries"), shape)
    rng.shuffle(queries)
    texts = _documents(shape, rng)
    each = min(pairs, documents or shape.documents)
    return [
        Request(queries[i % len(queries)], tuple(next(texts) for _ in range(each)))
        for i in range(max(1, round(pairs / each)))
    ]


def turned(requests: Sequence[Request], turn: int) -> list[Request]:
    """Return *requests* with every document's words moved round by *turn*.

    The work stays the same, and no cache of any engine has seen the texts.
    """
    return [Request(r.query, tuple(_turn(d, turn) for d in r.documents)) for r in requests]


def read_texts(source: str, kind: str) -> list[str]:
    """Return the texts of a set, *kind* being "queries" or "corpus"; titles stand before texts.

    White space is made single, so that turning a text leaves its tokens as many as they were.
    """
    path = DATA / source / f"{kind}.jsonl.gz"
    if not path.exists():
        return _own_pages(kind)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = (" ".join(f"{row.get('title') or ''} {row['text']}".split()) for row in rows)
    return [text for text in texts if text]


def have_data() -> bool:
    """Whether the folder of retrieval data is there."""
    return (DATA / "dev").is_dir()


def _documents(shape: Shape, rng: random.Random) -> Iterator[str]:
    """Give documents without end, none twice before all had their turn."""
    texts = read_texts(shape.source, "corpus")
    rng.shuffle(texts)
    if shape.lengths is None and have_data():
        while True:
            yield from texts
    median, p95 = shape.lengths or (245, 379)
    stream = _units(shape.unit.join(texts), shape.unit)
    start = 0
    while True:
        length = round(math.exp(rng.gauss(math.log(median), math.log(p95 / median) / Z_95)))
        if start + length > len(stream):
            # Windows of the next time round begin elsewhere, so that they are other texts.
            start = rng.randrange(median)
        yield shape.unit.join(stream[start : start + length])
        start += length


def _nearest(queries: list[str], shape: Shape) -> list[str]:
    """Return the fifth of *queries* whose lengths are nearest to the shape's."""
    by_distance = sorted(queries, key=lambda q: abs(len(_units(q, shape.unit)) - shape.query))
    return by_distance[: max(1, len(queries) // 5)]


def _turn(text: str, turn: int) -> str:
    unit = " " if " " in text else ""
    units = _units(text, unit)
    cut = turn % max(1, len(units))
    return unit.join([*units[cut:], *units[:cut]])


def _units(text: str, unit: str) -> list[str]:
    return text.split() if unit else list(text)


def _own_pages(kind: str) -> list[str]:
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    # Markup goes: this package spells a special token's text out, where other engines obey it.
    words = re.sub(r"[^\w\s.,;:()-]", " ", " ".join(pages)).split()
    length = 9 if kind == "queries" else 200
    return [" ".join(words[i : i + length]) for i in range(0, len(words) - length, length)]
