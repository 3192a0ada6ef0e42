"""The files of a model: from a local file, a local folder or the hub."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_plugins.errors import ConfigError, ModelLoadError
from rerank_plugins.models.hub import SETTINGS, TOKENIZER, check_tokenizer, fetch
from rerank_plugins.models.integrity import check_code, check_file, digest, shards_of
from rerank_plugins.models.weights import INDEX, external_data
from rerank_plugins.options import Backend

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from rerank_plugins.models.weights import ChooseFiles

_WEB_ADDRESS = re.compile(r"https?://[^/]+/([^/?#]+(?:/[^/?#]+)?)")
"""A model's page on the hub or a mirror; the group is its id."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's files are, and what its settings say.

    ``version`` is the commit on the hub, or a digest of what changes a logit. ``folder`` holds the
    settings. ``weights`` are an ONNX file and its external data, or the files of a PyTorch
    checkpoint in the order of their names. ``config`` and ``tokenizer_config`` are the JSON files
    of these names, {} where absent; the latter with special_tokens_map.json folded in.
    """

    name: str
    version: str
    folder: Path
    weights: tuple[Path, ...]
    tokenizer: Path
    config: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]

    @property
    def backend(self) -> Backend:
        """What runs the weights."""
        return Backend.ONNX if self.weights[0].suffix == ".onnx" else Backend.TORCH


def find_model(
    name: str,
    *,
    choose: ChooseFiles,
    revision: str | None = None,
    local_files_only: bool = False,
    remote_code: bool = False,
) -> ModelFiles:
    """Find the files of *name*: an ONNX file, a folder, or a model on the hub, in this order.

    *choose* picks the weights among the names of a folder or a hub model. An ONNX file that is
    named is taken as it is, with the settings beside it or, where it lies in a folder ``onnx``, one
    folder above. *remote_code* fetches the Python files of a hub model too.

    Raises:
        ModelLoadError: saying what was looked for, what is there and what to do.
        ConfigError: a *revision* of a local model.
    """
    try:
        path = _local(name)
        if path is None:
            folder, commit = fetch(
                name,
                choose=choose,
                revision=revision,
                local_files_only=local_files_only,
                remote_code=remote_code,
            )
            return _in_folder(name, folder, choose, version=commit, remote_code=remote_code)
        if revision is not None:
            raise ConfigError(
                f"revision: only a model on the hub has one, but {name!r} is local; "
                f"got {revision!r}"
            )
        if path.is_file():
            return _of_file(name, path)
        return _in_folder(name, path, choose, version=None, remote_code=remote_code)
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
        raise ModelLoadError(
            name,
            "it is a file, but not an ONNX file (.onnx); of a PyTorch model, name the folder",
        )
    folder = onnx.parent
    if folder.name == "onnx" and not (folder / TOKENIZER).is_file():
        folder = folder.parent
    beside = external_data(onnx.name, [path.name for path in onnx.parent.iterdir()])
    return _read(name, folder, (onnx, *map(onnx.parent.joinpath, beside)), version=None)


def _in_folder(
    name: str, folder: Path, choose: ChooseFiles, *, version: str | None, remote_code: bool
) -> ModelFiles:
    files = [*folder.iterdir()]
    if (folder / "onnx").is_dir():
        files += (folder / "onnx").iterdir()
    names = {file.relative_to(folder).as_posix() for file in files if file.is_file()}
    weights = map(folder.joinpath, _expand(name, folder, choose(name, names), names))
    return _read(name, folder, tuple(weights), version=version, remote_code=remote_code)


def _expand(
    name: str, folder: Path, chosen: Sequence[str], names: Collection[str]
) -> Sequence[str]:
    """Return the weights themselves: an index stands for the files that it lists."""
    return shards_of(folder / chosen[0], names, name) if chosen[0].endswith(INDEX) else chosen


def _read(
    name: str,
    folder: Path,
    weights: tuple[Path, ...],
    *,
    version: str | None,
    remote_code: bool = False,
) -> ModelFiles:
    tokenizer = folder / TOKENIZER
    check_tokenizer(name, tokenizer.is_file())
    for path in (*weights, tokenizer):
        check_file(path, name)
    config, tokenizer_config, special_tokens = (_json(name, folder / file) for file in SETTINGS)
    found = ModelFiles(
        name=name,
        version=version or "",
        folder=folder,
        weights=weights,
        tokenizer=tokenizer,
        config=config,
        tokenizer_config=special_tokens | tokenizer_config,
    )
    if remote_code and found.backend is Backend.TORCH:
        check_code(folder, config, name)
    return (
        found
        if version
        else replace(found, version=digest(_decisive(found, remote_code=remote_code)))
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


def _decisive(files: ModelFiles, *, remote_code: bool) -> list[Path]:
    """Return the files that decide a logit: a graph is complete, PyTorch weights are not."""
    decisive = [*files.weights, files.tokenizer]
    if files.backend is Backend.TORCH:
        decisive.append(files.folder / SETTINGS[0])
        if remote_code:
            decisive += sorted(files.folder.glob("*.py"))
    return decisive
