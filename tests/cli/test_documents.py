"""What `rerank-plugins rank` reads, and how it names what it cannot read."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins.cli import main
from tests.cli.conftest import NOTES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Run

QUERY = "where is the red fox"


def _sources(out: str) -> list[str]:
    return [document["source"] for document in json.loads(out)["documents"]]


def _texts(out: str) -> list[str]:
    return [document["text"] for document in json.loads(out)["documents"]]


@pytest.mark.parametrize("paths", [(), ("-",)])
def test_standard_input_is_read_where_no_file_is_named(run: Run, paths: tuple[str, ...]) -> None:
    found = run("rank", QUERY, *paths, "--split", "line", "--json", stdin=NOTES.encode())

    assert _sources(found.out) == ["stdin:3", "stdin:6", "stdin:1", "stdin:4"]


def test_json_lines_from_standard_input_are_seen_as_such(run: Run) -> None:
    found = run(
        "rank", QUERY, "--json", stdin=b'{"text": "red fox", "id": 7}\n{"content": "sky"}\n'
    )

    assert _texts(found.out) == ["red fox", "sky"]
    assert _sources(found.out) == ["7", "stdin:2"]


def test_strings_and_objects_of_json_lines_are_documents(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text('"sky"\n\n{"page_content": "red"}\n{"text": "red fox"}\n', encoding="utf-8")

    assert _sources(run("rank", QUERY, str(path), "--json").out) == [
        f"{path}:4",
        f"{path}:3",
        f"{path}:1",
    ]


def test_a_field_may_be_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "sky", "body": "red fox"}\n', encoding="utf-8")

    assert _texts(run("rank", QUERY, str(path), "--json", "--field", "body").out) == ["red fox"]


def test_a_file_may_be_one_document(run: Run, notes: Path) -> None:
    found = run("rank", QUERY, "notes.txt", "--json", "--split", "file")

    assert _texts(found.out) == [NOTES.strip()]
    assert _sources(found.out) == ["notes.txt"]


def test_a_heading_goes_with_the_paragraph_it_announces(run: Run) -> None:
    found = run("rank", QUERY, "--json", stdin=b"# Foxes\n\n## Red\n\nfox\n\nsky\n")

    assert _texts(found.out) == ["# Foxes\n## Red\nfox", "sky"]
    assert _sources(found.out) == ["stdin:1", "stdin:7"]


def test_a_folder_gives_its_text_files_and_counts_the_others(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "docs" / ".hidden").mkdir()
    (tmp_path / "docs" / "b.txt").write_text("sky\r\n\r\nred\r\n", encoding="utf-8")
    (tmp_path / "docs" / "deep" / "a.md").write_text("\ufeffred fox", encoding="utf-8")
    (tmp_path / "docs" / "c.jsonl").write_text('"fox"', encoding="utf-8")
    (tmp_path / "docs" / ".hidden" / "no.txt").write_text("red fox", encoding="utf-8")
    (tmp_path / "docs" / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "docs" / "old.txt").write_bytes("red café".encode("latin-1"))
    (tmp_path / "docs" / "loop").symlink_to(tmp_path / "docs")
    monkeypatch.chdir(tmp_path)

    found = run("rank", QUERY, "docs", "--json")

    assert _sources(found.out) == [
        "docs/deep/a.md:1",
        "docs/b.txt:3",
        "docs/c.jsonl:1",
        "docs/b.txt:1",
    ]
    assert _texts(found.out)[0] == "red fox"
    assert found.err == "skipped 2 files: 1 binary, 1 not UTF-8\n"


def _bad_json(path: Path) -> str:
    path.write_text('"a"\n{"text": }\n', encoding="utf-8")
    return "a.jsonl:2: invalid JSON"


def _no_field(path: Path) -> str:
    path.write_text('{"body": "x"}\n', encoding="utf-8")
    return (
        "a.jsonl:1: no text in 'text' or 'page_content' or 'content'; its fields are body: "
        "choose one with --field"
    )


def _number(path: Path) -> str:
    path.write_text("12\n", encoding="utf-8")
    return "a.jsonl:1: expected a string or an object, got 12"


def _latin(path: Path) -> str:
    path.write_bytes(b'"caf\xe9"')
    return "a.jsonl: not UTF-8 text (byte 0xe9 at 4)"


def _utf_16(path: Path) -> str:
    path.write_text("fox", encoding="utf-16")
    return "a.jsonl: not UTF-8 text (byte 0xff at 0); convert it"


def _binary(path: Path) -> str:
    path.write_bytes(b"\x89PNG\0\0")
    return "a.jsonl: a binary file; documents are read from text and JSON lines"


def _nested(path: Path) -> str:
    path.write_text('"a"\n' + "[" * 200_000, encoding="utf-8")
    return "a.jsonl:2: JSON nested too deeply"


def _half_a_character(path: Path) -> str:
    path.write_text('{"text": "fox \\ud83e"}\n', encoding="utf-8")
    return "a.jsonl:1: 'text' holds half a character, the lone surrogate U+D83E at 4"


def _empty(path: Path) -> str:
    path.write_text("\n \n", encoding="utf-8")
    return "no documents in "


def _missing(path: Path) -> str:
    return "a.jsonl: no such file or folder"


def _folder_of_nothing(path: Path) -> str:
    path.mkdir()
    (path / "x.bin").write_bytes(b"\0")
    return "(skipped 1 file: 1 binary)"


@pytest.mark.parametrize(
    "broken",
    [
        _bad_json,
        _no_field,
        _number,
        _latin,
        _utf_16,
        _binary,
        _nested,
        _half_a_character,
        _empty,
        _missing,
        _folder_of_nothing,
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(run: Run, tmp_path: Path, broken: Any) -> None:
    path = tmp_path / "a.jsonl"
    message = broken(path)

    found = run("rank", QUERY, str(path))

    assert found.code == 2
    assert found.out == ""
    assert found.err.count("\n") == 1
    assert found.err.startswith("rerank-plugins: ")
    assert message in found.err


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_a_terminal_without_documents_is_told_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", _Terminal(io.BytesIO()))

    assert main(["rank", QUERY]) == 2
    assert "name files or folders, or pipe documents in" in capsys.readouterr().err


def test_a_path_that_is_too_long_is_one_line(run: Run) -> None:
    found = run("rank", QUERY, "a" * 300)

    assert (found.code, found.out) == (2, "")
    assert "cannot be read (File name too long)" in found.err
    assert found.err.count("\n") == 1


def test_folders_that_cannot_be_listed_are_counted_unless_they_were_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("red fox", encoding="utf-8")
    listed = type(tmp_path).iterdir

    def refuse(path: Path) -> Any:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)

    below, named = (run("rank", QUERY, str(path)) for path in (tmp_path, tmp_path / "closed"))

    assert below.code == 0
    assert "skipped 1 file: 1 unreadable" in below.err
    assert named.code == 2
    assert "closed: cannot be read (Permission denied)" in named.err


def test_of_a_binary_file_the_head_is_read_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("red fox", encoding="utf-8")
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(1 << 42)  # no memory holds it; nothing is stored

    found = run("rank", QUERY, str(tmp_path), "--json")

    assert _texts(found.out) == ["red fox"]
    assert found.err == "skipped 1 file: 1 binary\n"
    assert "large.bin: a binary file" in run("rank", QUERY, str(tmp_path / "large.bin")).err


@pytest.mark.parametrize("alien", ['{"event": "start"}', "[1, 2]"])
def test_a_file_of_other_data_does_not_stop_a_folder(run: Run, tmp_path: Path, alien: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "red fox"}\n', encoding="utf-8")
    (tmp_path / "log.jsonl").write_text(f"{alien}\n", encoding="utf-8")

    guessed = run("rank", QUERY, str(tmp_path), "--json")
    asked = run("rank", QUERY, str(tmp_path), "--field", "text")

    assert _texts(guessed.out) == ["red fox"]
    assert guessed.err == "skipped 1 file: 1 without a text field\n"
    assert asked.code == 2
    assert "log.jsonl:1: " in asked.err
