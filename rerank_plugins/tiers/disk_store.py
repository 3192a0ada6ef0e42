"""A shared cache in a folder of this machine: an SQLite database, by diskcache."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rerank_plugins.errors import MissingExtraError

try:
    import diskcache
except ModuleNotFoundError as exc:
    if exc.name != "diskcache":
        raise
    raise MissingExtraError(
        package="diskcache", extra="disk-cache", needed_for="a shared cache in a folder"
    ) from exc

if TYPE_CHECKING:
    from collections.abc import Sequence

SUBFOLDER: Final = "rerank-plugins"
"""A folder of its own within the user's: closed to others, and nothing in it is a stranger's."""

BUSY_S: Final = 1.0
"""How long a write waits for another process's, in seconds."""

_RAW: Final = 1
"""What diskcache calls the mode of a value that lies in its row as it is."""

_SETTINGS: Final[dict[str, Any]] = {
    # By age: what counts uses would write for every look.
    "eviction_policy": "least-recently-stored",
    "statistics": 0,
    "tag_index": 0,
    # More than one goes where one comes, or a full cache would never shrink again.
    "cull_limit": 10,
    "disk_min_file_size": 2**15,
    # Memory that is mapped kills the process if somebody truncates its file: WAL maps one, too.
    "sqlite_journal_mode": "truncate",
    "sqlite_mmap_size": 0,
    # What a power cut leaves half written is found damaged, and only a cache.
    "sqlite_synchronous": 0,
}

_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_FILES: Final = ("cache.db", "cache.db-journal", "cache.db-wal", "cache.db-shm")


class RawDisk(diskcache.Disk):  # type: ignore[misc]  # it has no types
    """Keys and values as they are. What a stranger put into a row is neither unpickled nor opened.

    diskcache itself unpickles what the database says is pickled, and opens and removes the files
    that it names.
    """

    def get(self, key: object, raw: object) -> bytes:
        """Return the key of a row."""
        if not raw or not isinstance(key, bytes):
            raise ValueError("a key that is not raw bytes")
        return key

    def store(
        self,
        value: object,
        read: object,
        key: object = None,  # noqa: ARG002  diskcache calls it so, as below
    ) -> tuple[int, int, None, object]:
        """Return the columns of a value: size of its file, mode, name of its file, value."""
        if read or not isinstance(value, bytes):
            raise TypeError("only bytes are kept")
        return 0, _RAW, None, memoryview(value)

    def fetch(
        self,
        mode: object,
        filename: object,  # noqa: ARG002
        value: object,
        read: object,  # noqa: ARG002
    ) -> bytes:
        """Return the value of a row; one that is none of ours is blank."""
        return value if mode == _RAW and isinstance(value, bytes) else b""

    def remove(self, file_path: object) -> None:
        """Remove no file: no value has one."""


class DiskStore:
    """A database in a folder; a folder that was removed, and a damaged database, are made anew.

    Raises:
        OSError, sqlite3.Error: the folder cannot be used.
    """

    def __init__(self, folder: str, *, ttl_s: float | None, size_limit: int) -> None:
        self._folder = Path(folder).expanduser().absolute() / SUBFOLDER
        self._ttl_s = ttl_s
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(self._folder)
        settings = {**_SETTINGS, "size_limit": size_limit}
        try:
            self._cache = _open(self._folder, settings)
        except sqlite3.DatabaseError as exc:
            if not _is_damaged(exc):
                raise
            self._remove(None)
            self._cache = _open(self._folder, settings)
        # Its next use connects anew: to this file, or to one that the use after it finds changed.
        self._cache.close()
        self._file = self._file_now()

    def get_many(self, keys: Sequence[bytes]) -> Sequence[object]:
        """Return the values, one by one: the database is a file of this machine."""
        self._check_file()
        try:
            return [self._cache.get(key) for key in keys]
        except sqlite3.DatabaseError as exc:
            self._remove_damaged(exc)
            raise

    def set_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Write all in one transaction."""
        self._check_file()
        try:
            with self._cache.transact():
                for key, value in items:
                    self._cache.set(key, value, expire=self._ttl_s)
        except sqlite3.DatabaseError as exc:
            self._remove_damaged(exc)
            raise

    def close(self) -> None:
        """Close the database."""
        self._cache.close()

    def _check_file(self) -> None:
        """Raise `OSError` where the database is another file than was opened, or none."""
        if self._file is None or self._file_now() != self._file:
            raise FileNotFoundError("its database was removed")

    def _file_now(self) -> tuple[int, int] | None:
        try:
            found = (self._folder / _FILES[0]).stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _remove_damaged(self, error: sqlite3.DatabaseError) -> None:
        if _is_damaged(error):
            self._remove(self._file)

    def _remove(self, file: tuple[int, int] | None) -> None:
        """Remove the database, unless another process has made a new one in place of *file*."""
        if file is None or self._file_now() == file:
            for name in _FILES:
                with contextlib.suppress(FileNotFoundError):
                    (self._folder / name).unlink()


def _open(folder: Path, settings: dict[str, Any]) -> Any:  # noqa: ANN401  it has no types
    return diskcache.Cache(os.fspath(folder), timeout=BUSY_S, disk=RawDisk, **settings)


def _check_owner(folder: Path) -> None:
    """Raise `PermissionError` where anybody on the machine could put scores into *folder*."""
    if os.name == "posix" and folder.stat().st_mode & stat.S_IWOTH:
        raise PermissionError(f"anybody may write to {folder}; close it with chmod o-w")


def _is_damaged(error: sqlite3.DatabaseError) -> bool:
    # The lowest byte is the kind of error, the others say more.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED
