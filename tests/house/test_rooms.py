"""Doors, command line and scorers can go, and the engine stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    "langchain.py",
    "llama_index.py",
    "doors.py",
    "cli",
    "evaluation",
    "scorers/onnx.py",
    "scorers/embedded.py",
    "scorers/lexical.py",
    "scorers/runtime.py",
    "scorers/selection.py",
)


@pytest.mark.slow
def test_the_engines_tests_pass_without_the_other_rooms(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "rerank_plugins", tmp_path / "rerank_plugins")
    shutil.copytree(ROOT / "tests" / "core", tmp_path / "tests" / "core")
    for name in ("tests/conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for room in ROOMS:
        gone = tmp_path / "rerank_plugins" / room
        if gone.is_dir():
            shutil.rmtree(gone)
        else:
            gone.unlink()

    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/core"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode == 0, answer.stdout
    assert " passed" in answer.stdout
