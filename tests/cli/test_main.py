"""The program as a shell sees it: cost, exit codes, broken pipes."""

from __future__ import annotations

import subprocess
import sys
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


def test_every_setting_but_the_functions_is_a_flag(run: Run) -> None:
    shown = run("rank", "--help").out

    assert set(RerankConfig.model_fields) - set(setting_names()) == {
        "normalizer",
        "language_detector",
        "text_hook",
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


def test_a_malformed_command_is_2(run: Run) -> None:
    assert run("rerank", "fox").code == 2
    assert run().code == 2
    assert run("rank", "fox", "--backend", "torch").code == 2


def test_the_version_is_that_of_the_package(run: Run) -> None:
    found = run("--version")

    assert found.code == 0
    assert found.out.startswith("rerank-plugins ")
