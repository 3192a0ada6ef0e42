"""Whether the files of a model are whole, seen before a library stumbles over them."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_plugins.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""What stands in place of a large file where git cloned a model without git-lfs."""

LENGTH = struct.Struct("<Q")

LONGEST_HEADER = 100_000_000
"""In bytes, the limit of the safetensors library."""


def digest(files: Iterable[Path]) -> str:
    """Return a digest of the content of *files*; a size and a date would miss a copy.

    Reading costs about a second per gigabyte.
    """
    found = hashlib.blake2b(digest_size=16)
    for path in files:
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "blake2b").digest())
    return found.hexdigest()


def check_file(path: Path, name: str) -> None:
    """Raise `ModelLoadError` where a file of model *name* is a pointer of git, or half there."""
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise ModelLoadError(
            name,
            f"{path.name} is not the file itself but git's pointer to it; fetch the files in the "
            "folder of the clone: git lfs pull",
        )
    if path.suffix == ".safetensors":
        check_safetensors(path, name)


def check_safetensors(path: Path, name: str) -> None:
    """Raise `ModelLoadError` unless the safetensors file is as long as its header says.

    The file is 8 bytes of the header's length, a JSON header with the place of each tensor behind
    it, and the tensors (https://github.com/huggingface/safetensors#format).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(LENGTH.size)
        length = LENGTH.unpack(start)[0] if len(start) == LENGTH.size else 0
        # Without the limit, eight bytes of anything could ask for all memory.
        header = file.read(length) if length <= LONGEST_HEADER else b""
    if size < LENGTH.size or len(header) < length <= LONGEST_HEADER:
        raise ModelLoadError(name, _half(path, f"it ends in its header, at {size} bytes", name))
    try:
        end = _end_of_tensors(header)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise ModelLoadError(
            name, f"{path.name} is no safetensors file: its header cannot be read"
        ) from exc
    whole = LENGTH.size + length + end
    if size < whole:
        raise ModelLoadError(name, _half(path, f"it has {size} of {whole} bytes", name))
    if size > whole:
        raise ModelLoadError(
            name,
            f"{path.name} is no safetensors file: it has {size} bytes where its header speaks of "
            f"{whole}",
        )


def _end_of_tensors(header: bytes) -> int:
    """Return where the last tensor ends, in bytes after the header."""
    entries = json.loads(header)
    return max(
        (int(entry["data_offsets"][1]) for key, entry in entries.items() if key != "__metadata__"),
        default=0,
    )


def shards_of(index: Path, there: Collection[str], name: str) -> list[str]:
    """Return the names of the files that *index* lists, in order, which all have to be *there*.

    Raises:
        ModelLoadError: the index cannot be read, or a file of it is missing.
    """
    if not index.is_file():
        reason = f"{index.name} is missing, though its parts are there"
        raise ModelLoadError(name, _half(index, reason, name, broken=False))
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise ModelLoadError(name, f"{index.name} cannot be read: it lists no files") from exc
    if missing := [shard for shard in shards if shard not in there]:
        reason = f"{', '.join(missing)} of {len(shards)} files that {index.name} lists is missing"
        raise ModelLoadError(name, _half(index, reason, name, broken=False))
    return shards


def check_code(folder: Path, config: Mapping[str, Any], name: str) -> None:
    """Raise `ModelLoadError` unless the Python files that config.json names lie in *folder*."""
    for module in _code_modules(config):
        path = folder / f"{module}.py"
        if not path.is_file():
            reason = f"its code, {path.name}, is missing"
            raise ModelLoadError(name, _half(path, reason, name, broken=False))


def _code_modules(config: Mapping[str, Any]) -> list[str]:
    """Return the modules beside config.json that hold the model's classes, by name.

    ``auto_map`` holds ``module.Class``, or ``owner/model--module.Class`` for another model's code,
    which is not beside it.
    """
    mapped = config.get("auto_map")
    named = mapped.values() if isinstance(mapped, dict) else ()
    found = {
        name.rpartition(".")[0] for name in named if isinstance(name, str) and "--" not in name
    }
    return sorted(found)


def _half(path: Path, reason: str, name: str, *, broken: bool = True) -> str:
    """Return the message of a download that broke off; a *broken* file would be taken as done."""
    force = " --force-download" if broken else ""
    if Path(name).expanduser().exists():
        command = f"hf download MODEL --local-dir {path.parent}"
    elif path.parent.parent.name == "snapshots":
        # The hub's cache names the folder by the commit.
        command = f"hf download {name} --revision {path.parent.name}"
    else:
        command = f"hf download {name}"
    subject = f"{path.name} is half a download" if broken else "it is half a download"
    return f"{subject}: {reason}. Fetch it again: {command}{force}"
