"""``export`` on the command line: what is printed, what is refused, and what the engine reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from rerank_plugins.cli import main
from rerank_plugins.reranker import Reranker
from tests.export.conftest import write_checkpoint
from tests.tiny_models import WORDS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"query": f"the {query}", "document": " ".join(WORDS[i : i + 3])}
        for query in ("cat", "dog")
        for i in range(4)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_folder_that_was_exported_can_be_reranked_with(
    tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_checkpoint(tmp_path / "source", "bert")
    out = tmp_path / "out"
    flags = ["--formats", "optimized", "--calibration", str(pairs)]

    assert main(["export", str(source), str(out), *flags]) == 0

    printed = capsys.readouterr()
    header, row = printed.out.splitlines()
    assert header.split() == ["file", "MB", "mean", "p99", "max", "Spearman", "top", "1", "kept"]
    assert row.startswith("model_optimized.onnx")
    assert "tracing the graph" in printed.err
    assert "pairs.jsonl" in printed.err
    assert not (out / "model.onnx").exists()
    with Reranker(str(out)) as reranker:
        assert len(reranker.rank("the cat", ["dog", "tree"]).documents) == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["embedded", "out"], "needs no export"),
        (["./m/model.onnx", "out"], "is an ONNX file already; name a folder with PyTorch weights"),
        (["model", "out", "--formats", "int4"], "--formats: known are"),
        (["model", "out", "--calibration", "absent.jsonl"], "absent.jsonl cannot be read"),
    ],
)
def test_a_wrong_call_is_told_before_anything_is_loaded(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(["export", *arguments]) == 2

    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_flags_of_settings_that_change_no_export_are_unknown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["export", "model", "out", "--cache-entries", "5"])

    assert "unrecognized arguments: --cache-entries" in capsys.readouterr().err
