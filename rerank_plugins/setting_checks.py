"""What settings may be: values that a type does not say all of, and values that go together.

Each function raises `ValueError`, as pydantic wants it of a validator.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from rerank_plugins.options import (
    EMBEDDED,
    LEXICAL,
    RETRIEVAL_ORDER,
    SCORES_ALONE,
    WEIGHT_ONLY,
    Activation,
    Backend,
    Dialect,
    Precision,
)
from rerank_plugins.server_addresses import is_remote

MOST_REPLICAS: Final = 256
"""Most copies of a model: more than a machine has devices, and few enough to be opened."""

_DEVICE: Final = re.compile(r"auto|cpu|mps|cuda(:[0-9]+)?")

_NOT_TOGETHER: Final[dict[tuple[Backend, Precision], str]] = {
    (Backend.ONNX, Precision.BF16): 'take "fp32" or "fp16", or leave backend out',
    (Backend.ONNX, Precision.INT4): 'take "int8", or leave backend out',
}
"""Backends with precisions that they cannot compute in, and what to do."""


def checked_device(value: str) -> str:
    """Return *value* if it names a device."""
    if not _DEVICE.fullmatch(value):
        raise ValueError('expected "auto", "cpu", "cuda", "cuda:N" or "mps"')
    return value


def checked_replicas(value: object) -> int | tuple[str, ...]:
    """Return a number of replicas, or the device of each; either may be written out in a text."""
    if isinstance(value, str):
        value = int(value) if value.strip().isdecimal() else _words(value)
    devices: tuple[str, ...] = ()
    if not isinstance(value, int):
        devices = listed(value, str, "a whole number, or a list of devices")
    number = value if isinstance(value, int) else len(devices)
    if not 1 <= number <= MOST_REPLICAS:
        raise ValueError(f"expected a number from 1 to {MOST_REPLICAS}, or a list of devices")
    for device in devices:
        if device == "auto" or not _DEVICE.fullmatch(device):
            raise ValueError('a device of a replica is "cpu", "cuda", "cuda:N" or "mps"')
    return devices or number


def checked_fallback(value: object) -> tuple[str, ...]:
    """Return the names of a fallback chain, which may be written out in a text."""
    given = _words(value) if isinstance(value, str) else value
    names = tuple(name.strip() for name in listed(given, str, "a list of names"))
    if not all(names):
        raise ValueError("a name is blank")
    if RETRIEVAL_ORDER in names[:-1]:
        raise ValueError(f"{RETRIEVAL_ORDER!r} always answers, so nothing may stand behind it")
    if len(set(names)) < len(names):
        raise ValueError("a name stands twice")
    for name in names:
        # A slip would be found only when the model fails, and then looked for on the hub.
        meant = name.casefold().replace("-", "_")
        if meant in (EMBEDDED, LEXICAL, RETRIEVAL_ORDER) and meant != name:
            raise ValueError(f"{name!r} is no model; it is written {meant!r}")
    return names


def check_backend(model: str, backend: Backend) -> None:
    """See that *backend* runs what *model* names."""
    if not model.strip():
        raise ValueError('model is blank; leave it out for the embedded model, or use "lexical"')
    if backend is Backend.LEXICAL and model not in (EMBEDDED, LEXICAL):
        raise ValueError(f'backend="lexical" loads no model, but model is {model!r}')
    if backend is Backend.ONNX and model == LEXICAL:
        raise ValueError('model="lexical" has no ONNX file; leave backend out')
    if backend is Backend.TORCH and model in (EMBEDDED, LEXICAL):
        raise ValueError(f'model="{model}" has no PyTorch weights; leave backend out')
    if backend is Backend.TORCH and model.endswith(".onnx"):
        raise ValueError(f'backend="torch" runs no ONNX file, but model is {model!r}')


def check_remote(
    model: str,
    backend: Backend,
    dialect: Dialect,
    activation: Activation,
    *,
    remote_model: str | None,
) -> None:
    """See that a server can be asked as is said, where *model* is its address."""
    if not is_remote(model):
        if backend is Backend.REMOTE:
            raise ValueError(
                'backend="remote" asks a server: model must be its address, such as '
                f'"http://localhost:8000", and is {model!r}'
            )
        return
    if backend not in (Backend.AUTO, Backend.REMOTE):
        raise ValueError(f'backend="{backend}" runs a model here, but model is an address')
    if dialect in SCORES_ALONE and activation is Activation.SIGMOID:
        raise ValueError(
            f'dialect="{dialect}" gives scores and no logits: activation="sigmoid" would '
            "squash them twice; leave it out"
        )
    if dialect in SCORES_ALONE and remote_model is None:
        raise ValueError(f'dialect="{dialect}" needs remote_model, the model to ask for')


def check_precision(model: str, backend: Backend, precision: Precision, device: str) -> None:
    """See that *backend* computes in *precision*, on *device*."""
    is_file = backend is Backend.AUTO and model.endswith(".onnx")
    runs = Backend.ONNX if is_file else backend
    if (runs, precision) in _NOT_TOGETHER:
        other = _NOT_TOGETHER[runs, precision]
        what = f"the ONNX file {model!r}" if is_file else f'backend="{runs}"'
        if is_file:
            other = "leave it out, or name a folder with PyTorch weights"
        raise ValueError(f'{what} does not take precision="{precision}"; {other}')
    if backend is Backend.ONNX and device == "mps":
        raise ValueError('backend="onnx" does not take device="mps"; leave backend out')
    if precision in WEIGHT_ONLY and device == "mps":
        raise ValueError(f'precision="{precision}" does not take device="mps"; leave precision out')


def listed(value: object, kind: type, expected: str) -> tuple[Any, ...]:
    """Return the members of a list of *kind*; a set is none, for it has no order."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ValueError(f"expected {expected}")  # noqa: TRY004  pydantic wants it
    if not all(isinstance(member, kind) for member in value):
        raise ValueError(f"expected {expected}")
    return tuple(value)


def _words(value: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in value.split(","))))
