"""Which device and which of a model's ONNX files are taken here, and why."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rerank_plugins.errors import ConfigError
from rerank_plugins.models.manifest import MANIFEST, is_unchanged, preferred_files, read_manifest
from rerank_plugins.models.weights import USUAL_NAMES, choose_onnx, wanted_precisions
from rerank_plugins.options import Backend, Precision
from rerank_plugins.scorers.onnx.session import CUDA
from rerank_plugins.scorers.processor import cpu_features, read_cpuinfo
from rerank_plugins.scorers.runtime import import_onnxruntime
from rerank_plugins.scorers.selection import (
    Choice,
    as_set,
    backend_choice,
    installed_backends,
    unread,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rerank_plugins.config import RerankConfig
    from rerank_plugins.models.files import ModelFiles
    from rerank_plugins.models.weights import ChooseFiles
    from rerank_plugins.scorers.onnx.session import Session


def choose_device(device: str, offered: Sequence[str]) -> int | None:
    """Return the number of the CUDA device to run on, or None for the CPU.

    Raises:
        ConfigError: *device* is not a device, or not among what onnxruntime offers.
    """
    found = re.fullmatch(r"(auto|cpu|cuda)|cuda:(\d+)", device)
    if device == "mps":
        raise ConfigError('device: onnxruntime has no "mps", PyTorch weights do; use device="cpu"')
    if found is None:
        raise ConfigError(f'device: expected "auto", "cpu", "cuda" or "cuda:N", got {device!r}')
    if device == "cpu" or (device == "auto" and CUDA not in offered):
        return None
    if CUDA not in offered:
        raise ConfigError(
            f"device: this onnxruntime has no CUDA, it offers {', '.join(offered)}; got "
            f"{device!r}. CUDA comes with onnxruntime-gpu in place of onnxruntime: "
            'pip uninstall onnxruntime; pip install "rerank-plugins[onnx-gpu]"'
        )
    return int(found[2] or 0)


def precisions_here(config: RerankConfig) -> tuple[Precision, ...]:
    """Return the precisions to take on this machine, best first."""
    return wanted_precisions(config.precision, cuda=_on_cuda(config))


def _on_cuda(config: RerankConfig) -> bool:
    if config.device == "auto" and Backend.ONNX in installed_backends():
        return CUDA in import_onnxruntime('backend "onnx"').get_available_providers()
    return config.device.startswith("cuda")


def files_here(config: RerankConfig) -> ChooseFiles:
    """Return what picks the ONNX file for this machine: by an export's manifest, then by name.

    The manifest is read in a local folder; of a hub model, names are all that is known here. Both
    it and onnxruntime are left alone until there is an ONNX file to choose.
    """

    def choose(model: str, names: Collection[str]) -> Sequence[str]:
        wanted = precisions_here(config)
        return choose_onnx(model, names, wanted, _preferred(config) if MANIFEST in names else ())

    return choose


def _preferred(config: RerankConfig) -> tuple[str, ...]:
    folder = Path(config.model).expanduser()
    if not folder.is_dir():
        return ()
    records = read_manifest(folder, config.model)
    found = preferred_files(
        records,
        config.precision,
        cuda=_on_cuda(config),
        cpu_features=cpu_features(read_cpuinfo()) if records else (),
    )
    # The first is the one that is taken; no other has to be read.
    return tuple(
        islice((n for n in found if n in records and is_unchanged(folder / n, records[n])), 1)
    )


def settled_choices(
    config: RerankConfig, files: ModelFiles, session: Session, max_length: int
) -> dict[str, Choice]:
    """Return what the settings came to, and why, for whoever asks."""
    if session.device != "cpu":
        why = "onnxruntime offers CUDA"
    elif session.offers_cuda:
        why = "onnxruntime offers CUDA but could not start it"
    else:
        why = "onnxruntime offers no CUDA"
    return {
        "backend": backend_choice(config, Backend.ONNX, installed_backends()),
        "device": as_set(config, "device") or Choice(session.device, why),
        "precision": _precision_choice(config, files.weights[0].name),
        "max_length": as_set(config, "max_length")
        or Choice(str(max_length), "the model's own limit"),
    }


def _precision_choice(config: RerankConfig, file: str) -> Choice:
    if config.model.endswith(".onnx"):
        return Choice("its own", unread(config, "precision", "an ONNX file is taken as it is"))
    made = as_set(config, "precision")
    if made is not None:
        return made
    named = next((kind for kind, names in USUAL_NAMES.items() if file in names), "its own")
    if named not in precisions_here(config) and named == Precision.INT8:
        return Choice(
            named, f"{MANIFEST} says that {file} ranks as torch does, and the CPU is fast at it"
        )
    looked = " or else ".join(precisions_here(config))
    return Choice(named, f"{file} is what the model has of {looked}")
