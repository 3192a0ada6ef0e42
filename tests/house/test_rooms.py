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
    "metrics.py",
    "gpu_readings.py",
    "tracing.py",
    "cli",
    "playground",
    "documents.py",
    "batch",
    "distributed",
    "evaluation",
    "export",
    "service",
    "scorers/onnx",
    "scorers/torch",
    "scorers/embedded.py",
    "scorers/labels.py",
    "scorers/lexical.py",
    "scorers/processor.py",
    "scorers/remote",
    "scorers/runtime.py",
    "scorers/selection.py",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tests", "rooms"),
    [
        (("tests/core",), ROOMS),
        (
            ("tests/scorers/test_onnx.py", "tests/scorers/test_by_hand.py"),
            ("scorers/torch", "export", "scorers/embedded.py", "scorers/lexical.py"),
        ),
    ],
    ids=["the engine's", "those of ONNX models"],
)
def test_tests_pass_without_the_other_rooms(
    tests: tuple[str, ...], rooms: tuple[str, ...], tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "rerank_plugins", tmp_path / "rerank_plugins")
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for room in rooms:
        gone = tmp_path / "rerank_plugins" / room
        if gone.is_dir():
            shutil.rmtree(gone)
        else:
            gone.unlink()

    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode == 0, answer.stdout
    assert " passed" in answer.stdout
