"""What was exported, and how it is written down beside the files."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from rerank_plugins.models.hub import SETTINGS, TOKENIZER
from rerank_plugins.models.integrity import digest
from rerank_plugins.models.manifest import MANIFEST, parts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_plugins.export.drift import Drift
    from rerank_plugins.export.formats import Format
    from rerank_plugins.export.texts import CheckTexts, QueryGroup
    from rerank_plugins.models.files import ModelFiles

PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written, with its drift and where it was checked; or why it was left out."""

    format: Format
    drift: Drift | None
    bytes: int
    checked_on: str
    left_out: str | None = None


def write_manifest(
    folder: Path, files: ModelFiles, texts: CheckTexts, done: Sequence[Exported]
) -> None:
    """Write the manifest of *done* into *folder*."""
    manifest = {
        "model": _public_name(files.name),
        "version": files.version,
        "made_with": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("rerank-plugins", *PACKAGES)},
        },
        "texts": {
            "source": texts.source,
            "calibration_pairs": count_pairs(texts.calibration),
            "check_pairs": count_pairs(texts.check),
            "check_queries": len(texts.check),
        },
        "files": {item.format.file: _entry(item, folder) for item in done if item.left_out is None},
        "settings": sorted({TOKENIZER, *SETTINGS} & {path.name for path in folder.iterdir()}),
        "left_out": {item.format.file: item.left_out for item in done if item.left_out},
    }
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _public_name(model: str) -> str:
    """Return a model's id; where a local folder lies concerns nobody who gets the files."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def _entry(item: Exported, folder: Path) -> dict[str, object]:
    entry: dict[str, object] = {
        "format": item.format.name,
        "made_by": item.format.made_by,
        "bytes": item.bytes,
        "digest": digest(parts_of(folder / item.format.file)),
        "checked_on": item.checked_on,
    }
    if item.format.static_scales is not None:
        entry["static_scales"] = item.format.static_scales
    if item.drift is not None:
        entry["drift"] = asdict(item.drift)
    return entry


def _version(package: str) -> str | None:
    try:
        return version(package)
    # onnxruntime also comes as onnxruntime-gpu.
    except PackageNotFoundError:
        return None


def count_pairs(groups: Sequence[QueryGroup]) -> int:
    """Return how many pairs the texts make."""
    return sum(len(group.documents) for group in groups)
