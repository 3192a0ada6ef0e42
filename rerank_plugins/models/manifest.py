"""What an export says of its files, and which of them that makes the better choice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rerank_plugins.errors import ModelLoadError
from rerank_plugins.models.integrity import digest
from rerank_plugins.models.weights import external_data
from rerank_plugins.options import Precision

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

MANIFEST = "rerank_export.json"

FP32_FILE = "model.onnx"
OPTIMIZED_FILE = "model_optimized.onnx"
INT8_FILE = "model_int8.onnx"
INT8_DYNAMIC_FILE = "model_int8_dynamic.onnx"
FP16_FILE = "model_fp16.onnx"

EXACT = 1e-3
"""Largest difference of a logit from torch's that still counts as the same model."""

FAITHFUL = 0.99
"""Least rank agreement (Spearman, within queries) of a file that ``auto`` may take."""

VNNI = frozenset({"avx512_vnni", "avx_vnni"})
BETTER_THAN_INT8 = frozenset({"avx512_bf16", "amx_bf16", "amx_int8"})
"""Where these are, int8 is not worth its drift: half precision is as fast, and closer."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of an export: ``drift`` is its largest difference from a logit of torch.

    ``spearman`` is None where no query of the check had several documents, ``digest`` is that of
    the file and its external data.
    """

    drift: float
    spearman: float | None
    static_scales: bool
    digest: str = ""

    @property
    def exact(self) -> bool:
        """Whether its logits are those of torch, rounding aside."""
        return self.drift <= EXACT

    @property
    def faithful(self) -> bool:
        """Whether it ranks as torch does, as far as the check can tell."""
        return self.spearman is not None and self.spearman >= FAITHFUL


def read_manifest(folder: Path, model: str) -> dict[str, FileRecord]:
    """Return what the export in *folder* says of each file, {} where there was none.

    A file that has another size than when it was checked is left out: nothing is known of it. Who
    takes a file because of its record compares the content too (`is_unchanged`).

    Raises:
        ModelLoadError: the manifest is broken.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {
            name: _record(found)
            for name, found in files.items()
            if (folder / name).is_file() and total_bytes(folder / name) == found["bytes"]
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ModelLoadError(
            model, f"{MANIFEST} cannot be read ({exc!r:.80}); export the model again, or delete it"
        ) from exc


def parts_of(onnx: Path) -> list[Path]:
    """Return a graph and the files of its weights beside it."""
    beside = external_data(onnx.name, [path.name for path in onnx.parent.iterdir()])
    return [onnx, *map(onnx.parent.joinpath, beside)]


def total_bytes(onnx: Path) -> int:
    """Return the size of a graph and of the weights beside it."""
    return sum(path.stat().st_size for path in parts_of(onnx))


def is_unchanged(onnx: Path, record: FileRecord) -> bool:
    """Whether a file is, byte for byte, the one that was checked."""
    return digest(parts_of(onnx)) == record.digest


def _record(found: Mapping[str, Any]) -> FileRecord:
    spearman = found["drift"]["spearman"]
    return FileRecord(
        drift=float(found["drift"]["max"]),
        spearman=None if spearman is None else float(spearman),
        static_scales=found.get("static_scales") is True,
        digest=str(found["digest"]),
    )


def preferred_files(
    records: Mapping[str, FileRecord],
    precision: Precision,
    *,
    cuda: bool,
    cpu_features: Collection[str],
) -> tuple[str, ...]:
    """Return which of an export's files come before the usual names, best first.

    On the CPU that is the optimised graph for fp32. ``auto`` also takes int8 where its scales are
    static (a logit depends on its pair alone), its ranking is that of torch, and the CPU is fast at
    int8 (VNNI) but not at half precision. On CUDA ``auto`` passes over an fp16 file that ranks
    otherwise than torch.
    """
    if cuda:
        half = records.get(FP16_FILE)
        unfaithful = half is not None and not half.faithful and not half.exact
        return (FP32_FILE,) if precision is Precision.AUTO and unfaithful else ()
    int8 = records.get(INT8_FILE)
    static = int8 is not None and int8.static_scales
    optimized = records.get(OPTIMIZED_FILE)
    preferred: dict[str, bool] = {
        INT8_FILE: precision is Precision.INT8 and static,
        OPTIMIZED_FILE: precision is Precision.FP32 and optimized is not None and optimized.exact,
    }
    if precision is Precision.AUTO:
        features = set(cpu_features)
        fast = bool(features & VNNI) and not features & BETTER_THAN_INT8
        preferred[INT8_FILE] = static and int8 is not None and int8.faithful and fast
        preferred[OPTIMIZED_FILE] = optimized is not None and optimized.exact
    return tuple(name for name, take in preferred.items() if take)
