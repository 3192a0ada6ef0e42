"""A set small enough to measure by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

QUERIES = (
    {"qid": "q1", "text": "red fox"},
    {"qid": "q2", "text": "blue whale"},
    {"qid": "unjudged", "text": "green frog"},
)
CORPUS = (
    {"docid": "fox", "title": "red", "text": "fox"},
    {"docid": "sun", "title": "", "text": "a red sun, red and round"},
    {"docid": "cub", "title": "", "text": "fox cub"},
    {"docid": "whale", "title": "", "text": "a whale that is blue"},
    {"docid": "sky", "title": None, "text": "blue sky"},
)
QRELS = "q1\tfox\t2\nq1\tcub\t1\nq1\tsky\t0\nq2\twhale\t1\nunjudged\tsun\t0\n"
FIRST_STAGE = (
    "q1\tsun\t1\t3.0\nq1\tfox\t3\t1.0\nq1\tcub\t2\t2.0\nq2\tsky\t1\t2.5\nq2\twhale\t2\t1\n"
)


def write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A set without a first stage."""
    folder = tmp_path / "toy"
    folder.mkdir()
    write_lines(folder / "queries.jsonl", QUERIES)
    write_lines(folder / "corpus.jsonl", CORPUS)
    (folder / "qrels.tsv").write_text(QRELS, encoding="utf-8")
    return folder


@pytest.fixture
def toy_with_first_stage(toy: Path) -> Path:
    """The same, with a first stage that is given."""
    (toy / "candidates.tsv").write_text(FIRST_STAGE, encoding="utf-8")
    return toy
