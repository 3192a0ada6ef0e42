"""A batch on Ray: the output of one machine, also where a worker is killed."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from rerank_plugins.batch.options import BatchOptions
from rerank_plugins.batch.parts import Parts
from rerank_plugins.batch.rows import RankedChunk
from rerank_plugins.batch.running import run_batch
from rerank_plugins.config import RerankConfig
from rerank_plugins.distributed.batches import RayBatch
from rerank_plugins.distributed.rays import running
from rerank_plugins.errors import ConfigError, InputError, ModelLoadError, PluginError, ScoringError
from tests.batch.conftest import rows_of, write_lines
from tests.distributed.mortal import KillOnce, refuse_fox_13

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    # Ray's own: what it deprecates of itself, and sockets and files that it leaves to the end.
    pytest.mark.filterwarnings("ignore"),
]

OPTIONS = BatchOptions(chunk_pairs=8)
LEXICAL = RerankConfig(model="lexical")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    queries = [
        {"query": f"red fox {i}", "documents": [f"blue sky {i}", f"red {j} fox", "x", "fox"]}
        for i, j in zip(range(24), range(24, 0, -1), strict=True)
    ]
    return write_lines(tmp_path / "run.jsonl", queries)


@pytest.mark.usefixtures("ray")
def test_ray_writes_what_one_machine_writes(source: Path, tmp_path: Path) -> None:
    here = run_batch(source, tmp_path / "here.parquet", LEXICAL, OPTIONS)
    ranked: list[int] = []

    class Progress:
        def read(self, queries: int) -> None: ...

        def begins(self, pairs: int, done: int) -> None: ...

        def ranked(self, pairs: int) -> None:
            ranked.append(pairs)

    there = run_batch(
        source,
        tmp_path / "there.parquet",
        LEXICAL,
        OPTIONS,
        progress=Progress(),
        rank_chunks=RayBatch(max_workers=2),
    )

    assert rows_of(there.output) == rows_of(here.output)
    assert (there.rows, there.scorers) == (96, {"lexical": 24})
    assert ranked == [8] * 12


@pytest.mark.usefixtures("ray")
def test_no_row_is_lost_with_a_worker_that_is_killed(source: Path, tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    config = RerankConfig(model="lexical", text_hook=KillOnce("fox 13", marker))

    result = run_batch(
        source,
        tmp_path / "out.parquet",
        config,
        OPTIONS,
        rank_chunks=RayBatch(min_workers=2, max_workers=2),
    )

    here = run_batch(source, tmp_path / "here.parquet", LEXICAL, OPTIONS)
    assert marker.exists()
    assert rows_of(result.output) == rows_of(here.output)


@pytest.mark.usefixtures("ray")
def test_an_error_of_a_worker_is_the_one_it_was_and_what_was_done_is_gone_on_with_here(
    source: Path, tmp_path: Path
) -> None:
    lines = source.read_text().splitlines()
    # Blank only once it is cleaned: nothing that the survey could see.
    bad = '{"query": "\\u200b", "documents": ["a"]}'
    source.write_text("\n".join([*lines, bad]))
    output = tmp_path / "out.parquet"

    with pytest.raises(InputError, match=r"run\.jsonl:25: .*once cleaned") as raised:
        run_batch(source, output, LEXICAL, OPTIONS, rank_chunks=RayBatch(max_workers=1))
    done = len(Parts.beside(output).done())
    result = run_batch(
        source, output, LEXICAL, BatchOptions(chunk_pairs=8, on_bad="skip"), resume=True
    )

    assert "--resume" in raised.value.__notes__[0]
    assert done > 0
    assert (result.rows, result.skipped) == (96, 1)
    assert result.ranked_pairs == 97 - 8 * done


@pytest.mark.usefixtures("ray")
def test_workers_do_not_add_to_the_parts_of_another_scorer(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    config = RerankConfig(model="lexical", text_hook=refuse_fox_13)
    with pytest.raises(PluginError):
        run_batch(source, output, config, OPTIONS)
    parts = Parts.beside(output)
    done = parts.done()
    for number in done:
        note, table = parts.read(number)
        chunk = RankedChunk(table, note.queries, note.pairs, dict(note.scorers), note.skipped)
        parts.write(number, chunk, "another")

    with pytest.raises(ConfigError, match="by the scorer 'another', and now it would be 'lexical"):
        run_batch(source, output, config, OPTIONS, resume=True, rank_chunks=RayBatch(max_workers=1))
    assert parts.done() == done


@pytest.mark.usefixtures("ray")
def test_a_model_that_no_worker_can_open_is_named(source: Path, tmp_path: Path) -> None:
    config = RerankConfig(model=str(tmp_path / "nothing"))

    with pytest.raises(ModelLoadError, match="nothing"):
        run_batch(source, tmp_path / "out.parquet", config, rank_chunks=RayBatch(max_workers=1))
    assert not Parts.beside(tmp_path / "out.parquet").exist()


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "127.0.0.1:9{}"])
def test_a_cluster_that_is_not_there_is_named_at_once(address: str) -> None:
    ray = pytest.importorskip("ray", reason="needs Ray")
    begun: list[object] = []
    # The real one may have been started by another test.
    idle = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **told: begun.append(told),
        shutdown=lambda: None,
        exceptions=ray.exceptions,
    )
    with socket.socket() as taken:
        # Bound, and nobody listens.
        taken.bind(("127.0.0.1", 0))
        nowhere = address.format(taken.getsockname()[1])
        with (
            pytest.raises(ScoringError, match=f"Ray: no cluster at {nowhere} "),
            running(idle, nowhere),
        ):
            pass
    assert not begun


def test_where_no_node_has_what_a_worker_reserves_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    for cpus, gpus in ((8, 0), (2, 0.5), (0, 0)):
        RayBatch(cpus=cpus, gpus=gpus)._tell_if_nothing_fits(nodes)
    assert not caplog.messages

    RayBatch(cpus=3, gpus=1)._tell_if_nothing_fits(nodes)
    assert "3 CPUs and 1 GPUs that a worker reserves" in caplog.text
    assert "up to 8 CPUs and 1 GPUs" in caplog.text


def test_numbers_out_of_range_are_named() -> None:
    for numbers, complaint in (
        ({"min_workers": 0}, "min_workers must be at least 1"),
        ({"min_workers": 3, "max_workers": 2}, "max_workers must be at least min_workers"),
        ({"gpus": -1}, "gpus must be at least 0"),
        ({"cpus": float("nan")}, "cpus must be at least 0"),
    ):
        with pytest.raises(InputError, match=complaint):
            RayBatch(**numbers)  # type: ignore[arg-type]
