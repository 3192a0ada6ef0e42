"""The folder beside an output: a manifest and finished parts, from which a batch can go on."""

from __future__ import annotations

import json
import os
import re
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from rerank_plugins.batch.arrow import import_arrow, readable_parquet
from rerank_plugins.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rerank_plugins.batch.rows import RankedChunk

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
"""Of the folder; another one is not gone on with."""

_PART: Final = re.compile(r"part-([0-9]{6,})\.parquet")
_UNFINISHED: Final = ".tmp"
_ABOUT: Final = b"rerank_plugins"
"""Where the schema metadata of a part tell of it."""


@dataclass(frozen=True, slots=True)
class PartNote:
    """What a part says of its chunk besides the rows; ``identity`` is that of the scorer."""

    identity: str
    queries: int
    pairs: int
    scorers: Mapping[str, int]
    skipped: tuple[str, ...]


class Parts:
    """Finished chunks in a folder. Each is written whole or not at all, by any process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def beside(cls, output: Path) -> Parts:
        """Return the folder of an output."""
        return cls(output.with_name(f"{output.name}.parts"))

    def exist(self) -> bool:
        """Whether an earlier batch left the folder behind."""
        return self.folder.exists()

    def begin(self, manifest: Mapping[str, object]) -> None:
        """Make the folder, with what the batch is.

        Raises:
            InputError: the folder cannot be written.
        """
        with writable(self.folder):
            self.folder.mkdir()
            text = json.dumps({"format": FORMAT, **manifest}, indent=2, sort_keys=True)
            write_whole(self.folder / MANIFEST, text.encode())

    def go_on(self, manifest: Mapping[str, object]) -> None:
        """Check that the folder is one of the same batch.

        Raises:
            ConfigError: it is of another input, of other settings or of another version.
            InputError: it is no such folder.
        """
        path = self.folder / MANIFEST
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError) as exc:
            raise InputError(f"{path}: cannot be read ({exc}); begin anew with --force") from None
        wanted = json.loads(json.dumps({"format": FORMAT, **manifest}))
        for name in sorted(wanted.keys() | found.keys()):
            if found.get(name) != wanted.get(name):
                difference = _difference(name, found.get(name), wanted.get(name))
                raise ConfigError(
                    f"{self.folder} is of another batch: {difference}; call it as it was begun, "
                    "or begin anew with --force"
                )

    def done(self) -> set[int]:
        """Return the numbers of the chunks that are finished."""
        with _listable(self.folder):
            matches = (_PART.fullmatch(path.name) for path in self.folder.iterdir())
            return {int(match[1]) for match in matches if match is not None}

    def write(self, number: int, chunk: RankedChunk, identity: str) -> None:
        """Keep the rows of a chunk; a part that is there already is replaced by its like."""
        arrow = import_arrow()
        note = {
            "identity": identity,
            "queries": chunk.queries,
            "pairs": chunk.pairs,
            "scorers": chunk.scorers,
            "skipped": chunk.skipped,
        }
        table = chunk.table.replace_schema_metadata({_ABOUT: json.dumps(note)})
        with writable(self.folder), unfinished(self._path(number)) as path:
            arrow.parquet.write_table(table, path)

    def read(self, number: int) -> tuple[PartNote, Any]:
        """Return what a part says of itself, and its rows as a pyarrow table."""
        arrow = import_arrow()
        path = self._path(number)
        with readable_parquet(path):
            table = arrow.parquet.read_table(path)
        note = json.loads(table.schema.metadata[_ABOUT])
        note["skipped"] = tuple(note["skipped"])
        return PartNote(**note), table.replace_schema_metadata(None)

    def identity(self) -> str | None:
        """Return that of the scorer of the first part, None before there is one."""
        done = self.done()
        return self.read(min(done))[0].identity if done else None

    def remove(self) -> None:
        """Delete the folder and the files in it that are ours.

        Raises:
            InputError: something else is in it, or it cannot be deleted.
        """
        with writable(self.folder):
            for path in list(self.folder.iterdir()):
                ours = path.name == MANIFEST or _PART.match(path.name)
                if not ours and not path.name.endswith(_UNFINISHED):
                    raise InputError(f"{path}: no part of a batch; move it out of the way")
                path.unlink()
            self.folder.rmdir()

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06}.parquet"


def check_identity(known: str | None, found: str, where: object) -> None:
    """Complain where parts of a batch would be scored in different ways.

    Raises:
        ConfigError: *known* is another identity than the one *found*.
    """
    if known is not None and known != found:
        # A line each for the scorer and for what is done before it: the one that differs says it.
        lines = zip_longest(known.split("\n"), found.split("\n"), fillvalue="")
        before, now = next((old, new) for old, new in lines if old != new)
        raise ConfigError(
            f"{where}: what was ranked before is by the scorer {before!r}, and now it would be "
            f"{now!r}; name revision, precision and device, or begin anew with --force"
        )


@contextmanager
def unfinished(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Give a path to write to, and put the file at *path* once it is whole and on the disk.

    Until then it is in *folder*, on the same disk, or beside *path*.
    """
    # Two workers may write one part at the same time: a retry, and the try that seemed dead.
    # The whole of a long name and more might be too long, after hours of work.
    name = f"{path.name[:20]}.{uuid.uuid4().hex}{_UNFINISHED}"
    temporary = (folder or path.parent) / name
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        temporary.replace(path)
        with suppress(OSError):
            # Not every system can open a folder; the rename is then safe a little later.
            _sync(path.parent, os.O_RDONLY)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file such that it is never seen in part."""
    with unfinished(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def writable(name: object) -> Iterator[None]:
    """Turn what the system says against writing into an `InputError` that begins with *name*."""
    try:
        yield
    except OSError as exc:
        raise InputError(f"{name}: cannot be written ({exc.strerror or exc})") from None


@contextmanager
def _listable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise InputError(f"{folder}: cannot be read ({exc.strerror or exc})") from None


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _difference(name: str, found: object, wanted: object) -> str:
    """Say in words what differs, down to the setting."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for inner in sorted(found.keys() | wanted.keys()):
            if found.get(inner) != wanted.get(inner):
                return _difference(inner, found.get(inner), wanted.get(inner))
    return f"its {name} was {found!r:.80}, and is now {wanted!r:.80}"
