"""The files of a model: from a local file, a local folder or the hub."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_plugins.errors import ConfigError, ModelLoadError
from rerank_plugins.models.hub import SETTINGS, TOKENIZER, check_tokenizer, fetch
from rerank_plugins.models.weights import choose_onnx, external_data

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rerank_plugins.config import Precision

_WEB_ADDRESS = re.compile(r"https?://[^/]+/([^/?#]+(?:/[^/?#]+)?)")
"""A model's page on the hub or a mirror; the group is its id."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's files are, and what its settings say.

    ``version`` is the commit on the hub, or a digest of the weights and the tokenizer.
    ``config`` and ``tokenizer_config`` are the JSON files of these names, {} where absent; the
    latter with special_tokens_map.json folded in.
    """

    name: str
    version: str
    onnx: Path
    tokenizer: Path
    config: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]


def find_model(
    name: str,
    *,
    wanted: Sequence[Precision],
    revision: str | None = None,
    local_files_only: bool = False,
) -> ModelFiles:
    """Find the files of *name*: an ONNX file, a folder, or a model on the hub, in this order.

    *wanted* lists the precisions to take, best first. An ONNX file that is named is taken as it
    is, with the settings beside it or, where it lies in a folder ``onnx``, one folder above.

    Raises:
        ModelLoadError: saying what was looked for, what is there and what to do.
        ConfigError: a *revision* of a local model.
    """
    try:
        path = _local(name)
        if path is None:
            folder, commit = fetch(
                name, wanted=wanted, revision=revision, local_files_only=local_files_only
            )
            return _in_folder(name, folder, wanted, version=commit)
        if revision is not None:
            raise ConfigError(
                f"revision: only a model on the hub has one, but {name!r} is local; "
                f"got {revision!r}"
            )
        return _of_file(name, path) if path.is_file() else _in_folder(name, path, wanted)
    except OSError as exc:
        raise ModelLoadError(name, f"its files cannot be read: {exc}") from exc


def _local(name: str) -> Path | None:
    """Return the local path that *name* is, or None where it is a hub id."""
    try:
        path = Path(name).expanduser()
    except RuntimeError as exc:
        raise ModelLoadError(name, f"there is no such home folder: {exc}") from exc
    if path.exists():
        return path
    if address := _WEB_ADDRESS.match(name):
        raise ModelLoadError(name, f"it is a web address; name the model by its id: {address[1]}")
    if _is_a_path(name):
        raise ModelLoadError(name, "there is no such file or folder")
    return None


def _is_a_path(name: str) -> bool:
    """Whether *name* cannot be a hub id, which is ``model`` or ``owner/model``."""
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
        or name.endswith((".onnx", "/"))
    )


def _of_file(name: str, onnx: Path) -> ModelFiles:
    if onnx.suffix != ".onnx":
        raise ModelLoadError(name, "it is a file, but not an ONNX file (.onnx)")
    folder = onnx.parent
    if folder.name == "onnx" and not (folder / TOKENIZER).is_file():
        folder = folder.parent
    return _read(name, folder, onnx, version=None)


def _in_folder(
    name: str, folder: Path, wanted: Sequence[Precision], *, version: str | None = None
) -> ModelFiles:
    files = [*folder.iterdir()]
    if (folder / "onnx").is_dir():
        files += (folder / "onnx").iterdir()
    names = {file.relative_to(folder).as_posix() for file in files if file.is_file()}
    onnx = folder / choose_onnx(name, names, wanted)
    return _read(name, folder, onnx, version=version)


def _read(name: str, folder: Path, onnx: Path, *, version: str | None) -> ModelFiles:
    tokenizer = folder / TOKENIZER
    check_tokenizer(name, tokenizer.is_file())
    config, tokenizer_config, special_tokens = (_json(name, folder / file) for file in SETTINGS)
    return ModelFiles(
        name=name,
        version=version or _digest(onnx, tokenizer),
        onnx=onnx,
        tokenizer=tokenizer,
        config=config,
        tokenizer_config=special_tokens | tokenizer_config,
    )


def _json(name: str, path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as exc:
        raise ModelLoadError(name, f"{path.name} is nested too deeply to be read") from exc
    except ValueError as exc:
        raise ModelLoadError(name, f"{path.name} cannot be read as JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ModelLoadError(name, f"{path.name} holds {type(value).__name__}, not an object")
    return value


def _digest(onnx: Path, tokenizer: Path) -> str:
    """Return a digest of what changes a logit; a file's size and date would miss a copy.

    Reading costs about a second per gigabyte, once.
    """
    beside = [path.name for path in onnx.parent.iterdir()]
    digest = hashlib.blake2b(digest_size=16)
    for path in (onnx, *map(onnx.parent.joinpath, external_data(onnx.name, beside)), tokenizer):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
