"""Where the texts of calibration and check come from, and what is wrong with a file of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from rerank_plugins.errors import InputError
from rerank_plugins.export import texts
from rerank_plugins.export.formats import FP32, INT8, parse_formats
from rerank_plugins.export.texts import read_pairs, sample_texts

if TYPE_CHECKING:
    from pathlib import Path


def test_the_sample_is_the_same_each_time_and_never_checks_what_it_calibrated_on() -> None:
    sample = sample_texts()

    assert sample == sample_texts()
    assert len(sample.calibration) == len(sample.check) == texts.SAMPLE_QUERIES // 2
    asked = {group.query for group in sample.calibration}
    assert not asked & {group.query for group in sample.check}
    for group in (*sample.calibration, *sample.check):
        assert len(group.documents) == texts.SAMPLE_DOCUMENTS
        assert " ".join(group.documents[0].split()).startswith(group.query)
        assert all(len(d) >= texts.SHORTEST_TEXT for d in group.documents)


def test_a_python_without_docstrings_asks_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "SAMPLE_MODULES", ("keyword",))

    with pytest.raises(InputError, match="--calibration FILE"):
        sample_texts()


def test_lines_of_one_query_belong_together(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"query": "a", "document": "1"}\n{"query": "b", "document": "2"}\n\n'
        '{"query": "a", "document": "3", "grade": 1}\n'
    )

    found = read_pairs(path)

    assert [(g.query, g.documents) for g in found.calibration] == [("a", ("1", "3"))]
    assert [(g.query, g.documents) for g in found.check] == [("b", ("2",))]
    assert found.source == "pairs.jsonl"


def test_a_line_ends_where_json_lines_do_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """U+2028 ends a line for str.splitlines, and stands in JSON as it is."""
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(
        '\ufeff{"query": "a", "document": "x\u2028y"}\r\n{"query": "b", "document": "2"}'.encode()
    )

    assert read_pairs(path).calibration[0].documents == ("x\u2028y",)


def test_a_large_file_calibrates_by_its_first_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "MOST_CALIBRATION", 5)
    path = tmp_path / "pairs.jsonl"
    rows = [{"query": q, "document": str(n)} for q in "abcdefgh" for n in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)))

    found = read_pairs(path)

    assert [group.documents for group in found.calibration] == [("0", "1", "2"), ("0", "1")]
    assert sum(len(group.documents) for group in found.check) == 12


def test_a_python_without_some_module_gives_the_texts_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(texts, "SAMPLE_MODULES", ("no_such_module", *texts.SAMPLE_MODULES))

    assert sample_texts().check


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"query": "a", "document": "\\ud800"}\n', r"pairs.jsonl:1: .* lone surrogate"),
        ('{"query": "a", "document": "1"}\n{"query": "a"}\n', r"pairs.jsonl:2: expected"),
        ("[1]\n", r"pairs.jsonl:1: expected"),
        ("not json\n", r":1: expected .* got not json"),
        ('{"query": " ", "document": "1"}\n', r":1: expected"),
        ('{"query": "a", "document": "1"}\n', r"holds 1 queries; at least 2"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)

    with pytest.raises(InputError, match=message):
        read_pairs(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.jsonl cannot be read"):
        read_pairs(tmp_path / "no.jsonl")


def test_formats_come_in_the_order_in_which_they_are_made() -> None:
    assert parse_formats("int8, fp32") == (FP32, INT8)


@pytest.mark.parametrize("text", ["fp32,int4", "", " , "])
def test_unknown_formats_are_named(text: str) -> None:
    with pytest.raises(InputError, match=r"known are fp32, optimized, int8, fp16, int8-dynamic"):
        parse_formats(text)
