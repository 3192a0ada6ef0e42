"""Which backend runs a model, by what was asked for, what is there and what is installed."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, NamedTuple

from rerank_plugins.errors import MissingExtraError, ModelLoadError
from rerank_plugins.models.weights import PYTORCH
from rerank_plugins.options import Backend, Precision
from rerank_plugins.server_addresses import is_remote

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from rerank_plugins.config import RerankConfig
    from rerank_plugins.models.weights import ChooseFiles

PACKAGES: dict[Backend, tuple[str, ...]] = {
    Backend.TORCH: ("torch", "transformers"),
    Backend.ONNX: ("onnxruntime",),
}
"""What each backend imports, the backend that is preferred first. Its extra has its name."""

FILES: dict[Backend, str] = {Backend.TORCH: "PyTorch weights", Backend.ONNX: "ONNX file"}

BY_PRECISION: dict[Precision, Backend] = {
    Precision.BF16: Backend.TORCH,
    Precision.INT4: Backend.TORCH,
}
"""Number formats that one backend alone computes in."""


class Choice(NamedTuple):
    """What a setting comes to here, and why."""

    value: str
    why: str


def installed_backends() -> frozenset[Backend]:
    """Return the backends whose packages are installed; none is imported."""
    return frozenset(
        backend for backend, packages in PACKAGES.items() if all(map(_is_installed, packages))
    )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        # Something stands in its place that is no package.
        return False


def settled_backend(config: RerankConfig) -> Choice | None:
    """Return the backend that the settings alone decide, or None where the files do."""
    if config.backend is not Backend.AUTO:
        return Choice(config.backend, "as set")
    if is_remote(config.model):
        return Choice(Backend.REMOTE, "the model is an address")
    if config.model.endswith(".onnx"):
        return Choice(Backend.ONNX, "the model is an ONNX file")
    if config.precision in BY_PRECISION:
        backend = BY_PRECISION[config.precision]
        return Choice(backend, f"nothing else computes in {config.precision}")
    if config.device == "mps":
        return Choice(Backend.TORCH, "nothing else runs on mps")
    return None


def choose_weights(
    model: str,
    names: Collection[str],
    *,
    choosers: Mapping[Backend, ChooseFiles],
    installed: Collection[Backend],
) -> Sequence[str]:
    """Return the weights of the first of *choosers* that is *installed* and has any among *names*.

    Raises:
        MissingExtraError: only a backend that is not installed could run what is there.
        ModelLoadError: none could.
    """
    there = [backend for backend in choosers if backend in installed]
    missing = [backend for backend in choosers if backend not in installed]
    for backend in there:
        if found := _try(choosers[backend], model, names):
            return found
    # onnxruntime is a fraction of the size of torch.
    for backend in reversed(missing):
        if _try(choosers[backend], model, names):
            packages = PACKAGES[backend]
            package = next((p for p in packages if not _is_installed(p)), packages[0])
            raise MissingExtraError(
                package=package, extra=backend, needed_for=f"the {FILES[backend]} of {model!r}"
            )
    return _refuse(model, names, choosers)


def _try(choose: ChooseFiles, model: str, names: Collection[str]) -> Sequence[str]:
    try:
        return choose(model, names)
    except ModelLoadError:
        return ()


def _refuse(
    model: str, names: Collection[str], choosers: Mapping[Backend, ChooseFiles]
) -> Sequence[str]:
    """Let the backend speak whose kind of file is there, though none of them fits."""
    endings = {Backend.ONNX: (".onnx",), Backend.TORCH: PYTORCH}
    for backend, ending in endings.items():
        if any(name.endswith(ending) for name in names):
            return choosers[backend](model, names)
    raise ModelLoadError(
        model,
        "there are no weights: looked for model.safetensors and for an ONNX file, such as "
        "model.onnx or onnx/model.onnx",
    )


def backend_choice(
    config: RerankConfig, backend: Backend, installed: Collection[Backend]
) -> Choice:
    """Return why *backend* runs the model of *config*; its files are known to be there."""
    settled = settled_backend(config)
    if settled is not None:
        return settled
    if config.precision is Precision.INT8:
        there = "an int8 ONNX file" if backend is Backend.ONNX else "no int8 ONNX file to take here"
        return Choice(backend, f"the model has {there}")
    if backend is Backend.TORCH:
        return Choice(backend, "the model has PyTorch weights, and torch is installed")
    if Backend.TORCH in installed:
        return Choice(backend, "the model has an ONNX file, and no PyTorch weights to take here")
    return Choice(backend, "the model has an ONNX file, and torch is not installed")


def as_set(config: RerankConfig, name: str) -> Choice | None:
    """Return the setting *name* as it was made, or None where it was left open."""
    value = getattr(config, name)
    return None if value in (None, "auto") else Choice(str(value), "as set")


def unread(config: RerankConfig, name: str, why: str) -> str:
    """Add to *why* that a setting is not looked at, where one was made that says otherwise."""
    made = as_set(config, name)
    if made is None or (name, made.value) == ("device", "cpu"):
        return why
    return f"{why}; {name} {made.value} is not read"
