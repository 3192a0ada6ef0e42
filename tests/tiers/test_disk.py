"""A shared cache in a folder: closed to others, never unpickled, made anew where it breaks."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import sqlite3
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("diskcache", reason="the extra disk-cache is not installed")

from rerank_plugins import Reranker
from rerank_plugins.testing import FakeScorer
from rerank_plugins.tiers import disk_store
from rerank_plugins.tiers.disk_store import DiskStore
from tests.tiers.under_load import Load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ITEMS = [(bytes([i]) * 40, bytes([i]) * 34) for i in range(20)]
KEYS = [key for key, _ in ITEMS]
VALUES = [value for _, value in ITEMS]
PATIENT = {"shared_cache_timeout_s": 30}


def logit(query: str, document: str) -> float:
    return len(document) + len(query) / 8


def open_store(folder: Path, **settings: Any) -> DiskStore:
    return DiskStore(str(folder), **{"ttl_s": None, "size_limit": 2**30, **settings})


def database(folder: Path) -> Path:
    return folder / "rerank-plugins" / "cache.db"


def change(folder: Path, statement: str, *values: object) -> None:
    """Write into the database as a stranger."""
    with contextlib.closing(sqlite3.connect(database(folder), isolation_level=None)) as stranger:
        stranger.execute(statement, values)


def test_what_is_written_is_read_by_another(tmp_path: Path) -> None:
    first, second = open_store(tmp_path), open_store(tmp_path)
    first.set_many(ITEMS)

    assert second.get_many(KEYS) == VALUES
    second.set_many([(KEYS[0], b"newer")])
    assert first.get_many([KEYS[0], b"never written"]) == [b"newer", None]
    first.close()
    second.close()
    again = open_store(tmp_path)
    assert again.get_many(KEYS[1:]) == VALUES[1:]
    again.close()


@pytest.mark.parametrize("in_its_place", [True, False])
def test_a_database_that_is_removed_while_it_is_opened_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_its_place: bool
) -> None:
    opened = disk_store._open

    def remove_then(folder: Path, settings: dict[str, Any]) -> object:
        monkeypatch.undo()
        cache = opened(folder, settings)
        shutil.rmtree(folder)
        if in_its_place:
            open_store(tmp_path).close()
        return cache

    monkeypatch.setattr(disk_store, "_open", remove_then)
    store = open_store(tmp_path)
    if in_its_place:
        store.set_many(ITEMS)
        with contextlib.closing(open_store(tmp_path)) as another:
            assert another.get_many(KEYS) == VALUES
    else:
        with pytest.raises(FileNotFoundError, match="removed"):
            store.set_many(ITEMS)
    store.close()


@pytest.mark.skipif(os.name != "posix", reason="modes of folders are POSIX's")
def test_the_folder_is_closed_to_others(tmp_path: Path) -> None:
    open_store(tmp_path / "a" / "b").close()

    mode = (tmp_path / "a" / "b" / "rerank-plugins").stat().st_mode
    assert stat.S_IMODE(mode) == 0o700


@pytest.mark.skipif(os.name != "posix", reason="modes of folders are POSIX's")
def test_a_folder_that_anybody_may_write_to_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "rerank-plugins").mkdir()
    (tmp_path / "rerank-plugins").chmod(0o777)

    with pytest.raises(PermissionError, match="chmod o-w"):
        open_store(tmp_path)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (self.path, "w")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("mode", [4, 1, 2, 3, None])
def test_what_a_stranger_wrote_is_never_unpickled(tmp_path: Path, mode: int | None) -> None:
    """diskcache itself unpickles a row of mode 4."""
    store = open_store(tmp_path)
    store.set_many(ITEMS)
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    change(tmp_path, "UPDATE Cache SET mode = ?, value = ?", mode, bomb)

    assert store.get_many(KEYS) == [bomb if mode == 1 else b""] * 20
    store.close()
    with contextlib.closing(open_store(tmp_path)) as again:
        again.get_many(KEYS)
    assert not (tmp_path / "exploded").exists()


def test_a_stranger_s_pickle_is_a_miss_of_a_reranker(tmp_path: Path) -> None:
    with Reranker(FakeScorer(logit), shared_cache=str(tmp_path), **PATIENT) as reranker:
        reranker.rank("fox", ["a", "b"])
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    change(tmp_path, "UPDATE Cache SET mode = 4, value = ?", bomb)
    with Reranker(FakeScorer(logit), shared_cache=str(tmp_path), **PATIENT) as reranker:
        assert not any(d.cached for d in reranker.rank("fox", ["a", "b"]))
        assert reranker.stats()["fake"].shared_errors == 2
    assert not (tmp_path / "exploded").exists()


def test_files_that_a_stranger_named_are_neither_read_nor_removed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    store = open_store(tmp_path, size_limit=2**20)
    store.set_many(ITEMS)
    change(tmp_path, "UPDATE Cache SET mode = 2, filename = ?, value = NULL", str(secret))

    assert store.get_many(KEYS) == [b""] * 20
    store.set_many(ITEMS)
    store.close()
    assert secret.read_bytes() == b"mine"


def test_settings_that_a_stranger_wrote_are_overruled(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    for name, value in (
        ("eviction_policy", "none"),
        ("size_limit", 2**40),
        ("disk_min_file_size", 7),
        ("sqlite_journal_mode", "wal"),
    ):
        change(tmp_path, "UPDATE Settings SET value = ? WHERE key = ?", value, name)
    with contextlib.closing(open_store(tmp_path, size_limit=2**20)) as store:
        for salt in range(20):
            store.set_many([(f"{salt} {i}".encode() * 5, b"v" * 34) for i in range(512)])
        files = {path.name for path in database(tmp_path).parent.iterdir()}
    assert database(tmp_path).stat().st_size < 1.2 * 2**20
    assert files == {"cache.db", "cache.db-journal"}


def test_it_stays_within_its_bytes(tmp_path: Path) -> None:
    store = open_store(tmp_path, size_limit=2**20)
    for salt in range(40):
        store.set_many([(f"{salt} {i}".encode() * 5, b"v" * 34) for i in range(512)])
    newest = [f"39 {i}".encode() * 5 for i in range(512)]

    assert database(tmp_path).stat().st_size < 1.2 * 2**20
    assert store.get_many(newest) == [b"v" * 34] * 512
    assert store.get_many([b"0 0" * 5]) == [None]
    store.close()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)


def _write_over(folder: Path) -> None:
    with database(folder).open("r+b") as file:
        file.write(os.urandom(8192))


def _write_over_the_middle(folder: Path) -> None:
    with database(folder).open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(database(folder).stat().st_size - 4096))


def _empty(folder: Path) -> None:
    os.truncate(database(folder), 0)


def _cut(folder: Path) -> None:
    os.truncate(database(folder), database(folder).stat().st_size // 2)


@pytest.mark.parametrize(
    "harm",
    [_remove, _write_over, _write_over_the_middle, _empty, _cut],
    ids=lambda harm: harm.__name__,
)
def test_a_folder_that_is_harmed_under_load_is_made_anew(
    tmp_path: Path, harm: Callable[[Path], None], short_pauses: None, no_leaks: None
) -> None:
    folder = tmp_path / "shared"

    def do_harm() -> None:
        # Done again, it may find nothing to harm: the folder is on its way back.
        with contextlib.suppress(OSError, ValueError):
            harm(folder)

    with Reranker(FakeScorer(logit), shared_cache=str(folder), **PATIENT) as reranker:
        with Load(reranker, logit) as load:
            load.hits_come()
            for _ in range(2):
                load.fails(do_harm, again_s=1)
                load.hits_come()
        assert reranker.stats()["fake"].pairs_failed == 0


def test_a_folder_in_whose_place_is_a_file_is_left_alone_until_it_is_back(
    tmp_path: Path, short_pauses: None
) -> None:
    folder = tmp_path / "shared"
    folder.write_text("in the way")
    with (
        Reranker(FakeScorer(logit), shared_cache=str(folder), **PATIENT) as reranker,
        Load(reranker, logit) as load,
    ):
        load.fails(lambda: None)
        folder.unlink()
        load.hits_come()
        folder.rename(tmp_path / "moved")
        load.fails(lambda: folder.write_text("in the way again"), times=2)
        load.go_on()
        folder.unlink()
        (tmp_path / "moved").rename(folder)
        load.hits_come()


def test_a_database_that_another_process_holds_is_waited_for_only_so_long(
    tmp_path: Path, short_pauses: None
) -> None:
    folder = tmp_path / "shared"
    settings: dict[str, Any] = {"shared_cache": str(folder), "shared_cache_timeout_s": 0.5}
    with Reranker(FakeScorer(logit), **settings) as reranker, Load(reranker, logit) as load:
        load.hits_come()
        with contextlib.closing(sqlite3.connect(database(folder), timeout=30)) as holder:
            holder.isolation_level = None
            load.fails(lambda: holder.execute("BEGIN EXCLUSIVE"), times=2)
            load.go_on()
            holder.execute("ROLLBACK")
        load.hits_come()


FULL = """
import resource, sys, time
from rerank_plugins import Reranker
from rerank_plugins.testing import FakeScorer
folder, limit = sys.argv[1], int(sys.argv[2])
documents = [f"document {i}" for i in range(2000)]
with Reranker(FakeScorer(), shared_cache=folder, shared_cache_timeout_s=30) as reranker:
    reranker.rank("fox", documents[:50])
    while reranker._leases.primary._shared._writing:
        time.sleep(0.001)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    assert len(reranker.rank("fox", documents)) == 2000
    while not reranker.stats()["fake"].shared_errors:
        time.sleep(0.001)
    reranker.clear_cache()
    print(sum(d.cached for d in reranker.rank("fox", documents[:50])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files by setrlimit")
def test_a_full_disk_is_still_read(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(100_000)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert (answer.returncode, answer.stdout) == (0, "50\n"), answer.stderr
    assert "writing to the shared cache" in answer.stderr
