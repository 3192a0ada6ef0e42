"""The folder that an export writes to: what may be replaced there, and in which order."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rerank_plugins.errors import InputError, ModelLoadError, RerankError
from rerank_plugins.models.hub import SETTINGS, TOKENIZER
from rerank_plugins.models.manifest import MANIFEST
from rerank_plugins.models.weights import PYTORCH, external_data

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

UNFINISHED = ".unfinished-"
"""How the name of the folder begins that files are made in. It lies inside of the other, which may
be a mounted disk of its own: from elsewhere, files could not be moved in one step.
"""


@contextmanager
def unfinished_folder(folder: Path, model: str, *, force: bool) -> Iterator[Path]:
    """Give a folder to write to; what is there in the end takes the place of an earlier export.

    Nothing in *folder* changes before.

    Raises:
        InputError: *folder* cannot be written to, is not empty and *force* is off, or holds
            weights or settings that no export wrote.
        ModelLoadError: the files could not be written.
    """
    try:
        _check(folder, model, force=force)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = tempfile.TemporaryDirectory(
            prefix=UNFINISHED, dir=folder, ignore_cleanup_errors=True
        )
    except OSError as exc:
        raise InputError(
            f"{folder} cannot be written to ({exc.strerror}); name another folder"
        ) from exc
    with unfinished as name:
        try:
            yield Path(name)
            _replace(folder, Path(name))
        except RerankError:
            raise
        # Its own text would name a file that is gone by now.
        except OSError as exc:
            raise ModelLoadError(
                model, f"its export to {folder} stopped: {exc.strerror or type(exc).__name__}"
            ) from exc


def _check(folder: Path, model: str, *, force: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder to export to")
    names = {path.name for path in folder.iterdir()}
    foreign = sorted(name for name in names - written(folder) if _is_of_a_model(name, names))
    if foreign and folder.resolve() == Path(model).expanduser().resolve():
        raise InputError(f"{folder} is the folder of the model itself; name another folder")
    if foreign:
        raise InputError(
            f"{folder} holds {', '.join(foreign)}, which no export wrote and none replaces; name "
            "another folder"
        )
    if names and not force:
        raise InputError(f"{folder} is not empty; name another folder, or pass --force")


def written(folder: Path) -> frozenset[str]:
    """Return the names of what an earlier export wrote to *folder*, its manifest included.

    A manifest that cannot be read names nothing but itself.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return frozenset()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        listed = {*found["files"], *found["settings"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return frozenset({MANIFEST})
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    data = {name for onnx in found["files"] for name in external_data(onnx, names)}
    return frozenset({MANIFEST, *(listed & {*names}), *data})


def _is_of_a_model(name: str, names: Collection[str]) -> bool:
    """Whether *name* is that of weights or settings, which another model could not do without."""
    if name in {TOKENIZER, *SETTINGS} or name.endswith((".onnx", *PYTORCH)):
        return True
    return any(name in external_data(onnx, names) for onnx in names if onnx.endswith(".onnx"))


def _replace(folder: Path, unfinished: Path) -> None:
    """Move the files to where they belong, in the place of those of an earlier export.

    The manifest goes first and comes last: a move that breaks off leaves files without any.
    """
    for name in sorted(written(folder), key=lambda name: (name != MANIFEST, name)):
        (folder / name).unlink()
    for path in folder.glob(f"{UNFINISHED}*"):
        if path != unfinished:
            shutil.rmtree(path)
    for path in sorted(unfinished.iterdir(), key=lambda path: (path.name == MANIFEST, path.name)):
        path.replace(folder / path.name)
