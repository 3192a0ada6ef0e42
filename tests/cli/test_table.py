"""Columns are counted in terminal cells."""

from __future__ import annotations

import pytest

from rerank_plugins.cli.table import aligned, cells, clip, clip_start, one_line, pad


@pytest.mark.parametrize(
    ("text", "width"),
    [("", 0), ("fox", 3), ("狐狸", 4), ("\uff46", 2), ("e\u0301", 1), ("한국", 4), ("a\u200bb", 2)],
)
def test_a_wide_character_is_two_cells_and_a_mark_none(text: str, width: int) -> None:
    assert cells(text) == width


@pytest.mark.parametrize("width", range(8))
@pytest.mark.parametrize("text", ["red fox", "敏捷的狐狸", "a狐b狸c", "e\u0301e\u0301e\u0301"])
def test_a_clipped_text_fits_and_says_that_it_was_clipped(text: str, width: int) -> None:
    for clipped in (clip(text, width), clip_start(text, width)):
        assert cells(clipped) <= width
        assert (clipped == text) == (cells(text) <= width)
        assert clipped == text or "…" in clipped or width == 0


def test_the_start_of_a_path_is_cut() -> None:
    assert clip_start("a/long/path.md:12", 10) == "…ath.md:12"


def test_rows_become_columns() -> None:
    assert aligned([("a", "狐狸", "x"), ("bb", "c", "")], right=frozenset({0})) == [
        " a  狐狸  x",
        "bb  c",
    ]


def test_padding_counts_cells() -> None:
    assert pad("狐", 3) == "狐 "
    assert pad("狐", 3, right=True) == " 狐"


def test_one_line_has_no_control_characters() -> None:
    assert one_line(" a\n\tb\x1b[0m\x07 ") == "a b [0m"
