"""The program as a shell sees it: cost, exit codes, broken pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rerank_plugins.cli.settings import setting_names
from rerank_plugins.config import RerankConfig

if TYPE_CHECKING:
    from tests.cli.conftest import Run

HEAVY = ("torch", "onnxruntime", "langchain_core", "llama_index", "numpy", "tokenizers", "bm25s")
PROGRAM = """
import sys
from rerank_plugins import registry
from rerank_plugins.cli import main
from rerank_plugins.testing import FakeScorer
registry.open_scorer = lambda config: FakeScorer()
sys.exit(main())
"""


def _program(*argv: str, code: str) -> list[str]:
    return [sys.executable, "-c", code, *argv]


@pytest.mark.parametrize("argv", [("--help",), ("rank", "--help"), ("eval", "--help")])
def test_help_loads_nothing_heavy(argv: tuple[str, ...]) -> None:
    code = f"""
import sys
from rerank_plugins.cli import main
try:
    main()
except SystemExit as exc:
    assert exc.code == 0
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    answer = subprocess.run(_program(*argv, code=code), capture_output=True, text=True, check=False)

    assert answer.returncode == 0, answer.stderr
    assert "usage: rerank-plugins" in answer.stdout


@pytest.mark.parametrize("argv", [("rank", "where is the fox", "--json"), ("--version",)])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_quiet(argv: tuple[str, ...], unbuffered: str) -> None:
    code = f"""
import os
read, write = os.pipe()
os.close(read)
os.dup2(write, 1)
{PROGRAM}
"""
    # Buffered output fails when it is flushed, perhaps by the interpreter as it ends.
    answer = subprocess.run(
        _program(*argv, code=code),
        input="fox",
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": ":".join(sys.path)},
    )

    assert (answer.returncode, answer.stderr) == (141, "")


def test_output_survives_an_encoding_that_knows_few_characters() -> None:
    answer = subprocess.run(
        _program("rank", "where is the fox", code=PROGRAM),
        input="狐狸 fox".encode(),
        capture_output=True,
        check=False,
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
    )

    assert answer.returncode == 0, answer.stderr
    assert b"?? fox" in answer.stdout


@pytest.mark.parametrize("argv", [("--help",), ("rank", "-h"), ("eval", "-h"), ("info", "-h")])
def test_help_is_written_in_the_characters_of_any_terminal(argv: tuple[str, ...]) -> None:
    answer = subprocess.run(
        _program(*argv, code=PROGRAM),
        capture_output=True,
        check=False,
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
    )

    assert (answer.returncode, answer.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="file names are text on Windows")
def test_json_holds_file_names_and_ids_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/fox-\xff.txt"
    Path(os.fsdecode(name)).write_text("red fox", encoding="utf-8")
    (tmp_path / "ids.jsonl").write_text('{"id": "\\ud800", "text": "狐狸"}', encoding="utf-8")
    answer = subprocess.run(
        _program("rank", "where is the fox", str(tmp_path), "--json", code=PROGRAM),
        capture_output=True,
        check=False,
        env={"PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": ":".join(sys.path)},
    )

    assert answer.returncode == 0, answer.stderr
    sources = [document["source"] for document in json.loads(answer.stdout)["documents"]]
    assert sources == [os.fsdecode(name) + ":1", "\ud800"]


SHELL = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")


def _in_shell(redirection: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", f'"$@" {redirection}', "sh", *_program(*argv, code=PROGRAM)],
        input="red fox",
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )


@SHELL
@pytest.mark.parametrize("argv", [("rank", "where is the fox"), ("rank", "fox", "--json")])
def test_a_closed_output_is_one_line_and_1(argv: tuple[str, ...]) -> None:
    answer = _in_shell(">&-", *argv)

    assert answer.returncode == 1
    assert answer.stderr == "rerank-plugins: cannot write: standard output is closed\n"


@SHELL
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("argv", [("rank", "where is the fox", "--json"), ("--version",)])
def test_a_full_disk_is_one_line_and_1(argv: tuple[str, ...]) -> None:
    answer = _in_shell(">/dev/full", *argv)

    assert answer.returncode == 1
    assert answer.stderr == "rerank-plugins: cannot write: No space left on device\n"


@SHELL
def test_with_standard_error_closed_only_the_result_is_printed() -> None:
    answer = _in_shell("2>&-", "rank", "where is the fox")

    assert answer.returncode == 0
    assert [line.split()[0] for line in answer.stdout.splitlines()] == ["rank", "1"]


def test_every_setting_but_functions_and_secrets_is_a_flag(run: Run) -> None:
    shown = run("rank", "--help").out

    assert set(RerankConfig.model_fields) - set(setting_names()) == {
        "normalizer",
        "language_detector",
        "text_hook",
        "observers",
        "api_key",
    }
    for name in setting_names():
        assert f"--{name.replace('_', '-')}" in shown


def test_a_wrong_setting_is_one_line_and_2(run: Run) -> None:
    found = run("rank", "fox", "--max-length", "3", "--timeout-s", "-1")

    assert found.code == 2
    assert found.err.count("\n") == 1
    assert "max_length: Input should be greater than or equal to 8" in found.err
    assert "timeout_s" in found.err


def test_a_wrong_variable_is_one_line_and_2(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_PLUGINS_PRECISION", "fp12")

    found = run("rank", "fox")

    assert found.code == 2
    assert "precision" in found.err


def test_a_flag_wins_over_a_variable_that_is_wrong(
    run: Run, opened: list[RerankConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERANK_PLUGINS_CACHE_ENTRIES", "abc")

    found = run("rank", "fox", "--cache-entries", "5", stdin=b"fox")

    assert found.code == 0, found.err
    assert opened[0].cache_entries == 5


@pytest.mark.parametrize("verb", ["rank", "info", "eval"])
def test_help_speaks_of_nothing_that_a_flag_cannot_hold(run: Run, verb: str) -> None:
    assert "None" not in run(verb, "--help").out


@pytest.mark.parametrize("model", ["lexical", "embedded", "some/model"])
def test_a_device_that_is_none_is_refused_whatever_the_model(run: Run, model: str) -> None:
    found = run("rank", "fox", "--model", model, "--device", "tpu", stdin=b"fox")

    assert found.code == 2
    assert found.err.endswith(
        'device: expected "auto", "cpu", "cuda", "cuda:N" or "mps", got \'tpu\'\n'
    )


def test_paths_may_stand_behind_flags(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("fox")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")

    found = run("rank", "fox", "--top-n", "1", a, "--json", b, "-", stdin=b"sky")
    wrong = run("rank", "fox", "--top-n", "1", a, "--jsno")

    assert (found.code, json.loads(found.out)["documents"][0]["source"]) == (0, f"{a}:1")
    assert wrong.code == 2
    assert "unrecognized arguments: " in wrong.err


def test_a_malformed_command_is_2(run: Run) -> None:
    assert run("rerank", "fox").code == 2
    assert run().code == 2
    assert run("rank", "fox", "--backend", "torch").code == 2


def test_the_version_is_that_of_the_package(run: Run) -> None:
    found = run("--version")

    assert found.code == 0
    assert found.out.startswith("rerank-plugins ")
