"""Commands run in this process, over a scorer that counts words."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pytest

from rerank_plugins.cli import main
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from pathlib import Path

    from rerank_plugins.config import RerankConfig


NOTES = "fine weather today\n\na red fox\nsleeps\n\nblue sky, red sun\n"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


class Run(Protocol):
    def __call__(self, *argv: str, stdin: bytes | None = None) -> Outcome: ...


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[RerankConfig]:
    """Every model opens as a fake scorer of its name; what was asked for is kept."""
    asked: list[RerankConfig] = []

    def open_fake(config: RerankConfig) -> FakeScorer:
        asked.append(config)
        return FakeScorer(name=config.model, max_words=config.max_length or 512)

    # A setting that no other test has: an engine that still stands elsewhere is not shared.
    monkeypatch.setenv("RERANK_PLUGINS_QUEUE_TOKENS", "3999999")
    monkeypatch.setattr("rerank_plugins.registry.open_scorer", open_fake)
    monkeypatch.setattr("rerank_plugins.scorers.open_scorer", open_fake)
    return asked


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    opened: list[RerankConfig],
) -> Run:
    """Run a command; without *stdin*, standard input is empty."""
    monkeypatch.setenv("COLUMNS", "80")

    def run_it(*argv: str, stdin: bytes | None = None) -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin or b"")))
        try:
            code = main(argv)
        except SystemExit as exc:  # argparse ends the program
            code = int(exc.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run_it


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "notes.txt"
    path.write_text(NOTES, encoding="utf-8")
    return path
