"""A loaded graph in onnxruntime: what it runs on, what it asks for, and how to run it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import numpy as np

from rerank_plugins.errors import ConfigError, ModelLoadError, first_line
from rerank_plugins.scorers.runtime import session_options

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

    from rerank_plugins.models.files import ModelFiles

logger = logging.getLogger(__name__)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class Session:
    """A loaded graph: what it runs on, what it asks for, and how to run it."""

    def __init__(
        self, ort: ModuleType, files: ModelFiles, device: int | None, *, must_start: bool
    ) -> None:
        providers: list[object] = [CPU]
        if device is not None:
            providers.insert(0, (CUDA, {"device_id": device}))
        try:
            self._session = ort.InferenceSession(
                os.fspath(files.weights[0]), sess_options=session_options(ort), providers=providers
            )
        # onnxruntime's exceptions share no base but Exception.
        except Exception as exc:
            raise ModelLoadError(
                files.name,
                f"onnxruntime cannot read {files.weights[0].name}; it may be broken, half "
                f"downloaded, or without its external data: {first_line(exc)}",
            ) from exc
        self.offers_cuda = device is not None
        self.provider: str = self._session.get_providers()[0]
        self.device = f"cuda:{device}" if self.provider == CUDA else "cpu"
        if device is not None and self.provider != CUDA:
            problem = (
                "onnxruntime offers CUDA but could not start it (see its message above; the "
                "driver, CUDA or cuDNN libraries may be missing)"
            )
            if must_start:
                raise ConfigError(f'device: {problem}; use device="cpu"')
            logger.warning("%s: running on CPU", problem)
        types = {node.name: node.type for node in self._session.get_inputs()}
        if unknown := sorted(types.keys() - set(INPUTS)):
            raise ModelLoadError(
                files.name,
                f"{files.weights[0].name} asks for the inputs {', '.join(unknown)}, which a "
                f"cross-encoder does not have; known are {', '.join(INPUTS)}",
            )
        self.inputs = {name: INTEGERS.get(kind, np.int64) for name, kind in types.items()}
        outputs = [node.name for node in self._session.get_outputs()]
        self._output = "logits" if "logits" in outputs else outputs[0]

    def run(self, batch: dict[str, NDArray[np.int64]]) -> NDArray[np.floating]:
        """Return the labels, (pairs, labels)."""
        feeds = {name: batch[name].astype(kind, copy=False) for name, kind in self.inputs.items()}
        labels: NDArray[np.floating] = self._session.run([self._output], feeds)[0]
        return labels
