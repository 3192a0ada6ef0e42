"""`rerank-plugins batch`: flags, summary, exit codes; the rest is told in tests/batch."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("pyarrow", reason="batches need pyarrow")

if TYPE_CHECKING:
    from pathlib import Path

    from rerank_plugins.config import RerankConfig
    from tests.cli.conftest import Run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl"
    path.write_text(
        '{"query": "red fox", "documents": ["blue sky", "a red fox"]}\n{"query": "x"}\n'
    )
    return path


def test_a_file_becomes_a_file_and_the_summary_says_what_happened(
    run: Run, source: Path, tmp_path: Path, opened: list[RerankConfig]
) -> None:
    output = tmp_path / "out.jsonl"
    found = run(
        "batch", str(source), str(output), "--on-bad", "skip", "--top-n", "1", "--max-length", "9"
    )

    (row,) = map(json.loads, output.read_text().splitlines())
    assert (found.code, found.out) == (0, "")
    assert (row["query_index"], row["rank"], row["index"], row["scorer"]) == (0, 1, 1, "embedded")
    summary = re.sub(r"\d+ pairs/s", "N pairs/s", found.err)
    assert summary == (
        f"1 queries · 2 pairs · 1 rows in {output} · scored by embedded · N pairs/s · "
        f"skipped 1 queries, listed in {output}.skipped.txt\n"
    )
    assert opened[0].max_length == 9


def test_json_tells_the_same(run: Run, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    found = run("batch", str(source), str(output), "--on-bad", "skip", "--json")

    report = json.loads(found.out)
    assert (report["queries"], report["pairs"], report["rows"], report["skipped"]) == (1, 2, 2, 1)
    assert (report["output"], report["scorers"]) == (str(output), {"embedded": 1})


def test_a_bad_query_is_a_wrong_call(run: Run, source: Path, tmp_path: Path) -> None:
    found = run("batch", str(source), str(tmp_path / "out.parquet"))

    assert found.code == 2
    assert found.err.startswith(f"rerank-plugins: {source}:2: no documents; its fields are query")


def test_settings_that_a_batch_sets_itself_are_no_flags(run: Run, source: Path) -> None:
    found = run("batch", str(source), "out.parquet", "--timeout-s", "3")

    assert "unrecognized arguments: --timeout-s" in found.err


def test_without_pyarrow_the_extra_is_named(
    run: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    found = run("batch", str(source), str(tmp_path / "out.parquet"), "--on-bad", "skip")

    assert found.code == 2
    assert 'pip install "rerank-plugins[batch]"' in found.err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--ray-workers", "3"), "--ray-gpus need --ray"),
        (("--ray", "--ray-workers", "0"), "max_workers must be at least min_workers (1), got 0"),
        (("--ray", "--ray-gpus", "-1"), "gpus must be at least 0, got -1.0"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrong_flags_of_ray_are_named(
    run: Run, source: Path, tmp_path: Path, flags: tuple[str, ...], complaint: str
) -> None:
    pytest.importorskip("ray.data", reason="needs Ray Data")
    found = run("batch", str(source), str(tmp_path / "out.parquet"), *flags)

    assert found.code == 2
    assert complaint in found.err


def test_without_ray_the_extra_is_named_before_the_input_is_read(
    run: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    found = run("batch", str(source), str(tmp_path / "out.parquet"), "--ray")

    assert found.code == 2
    assert 'pip install "rerank-plugins[ray]"' in found.err
