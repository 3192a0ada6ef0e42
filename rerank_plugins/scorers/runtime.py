"""What the scorers that run on onnxruntime share: the import and the session's options."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from rerank_plugins.errors import MissingExtraError, ModelLoadError, first_line

if TYPE_CHECKING:
    from types import ModuleType


def import_onnxruntime(needed_for: str) -> ModuleType:
    """Return the module.

    Raises:
        MissingExtraError: it is not installed.
        ModelLoadError: it is installed, but cannot be imported.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ModuleNotFoundError:
        raise MissingExtraError(
            package="onnxruntime", extra="onnx", needed_for=needed_for
        ) from None
    except ImportError as exc:
        raise ModelLoadError(
            "onnxruntime",
            f"{needed_for} needs this package, which is installed but cannot be imported: "
            f"{first_line(exc)}. Install it anew: pip install --force-reinstall onnxruntime "
            "(or onnxruntime-gpu, never both)",
        ) from exc


def session_options(ort: ModuleType) -> Any:  # noqa: ANN401  onnxruntime has no types
    """Return the options of every session of this package."""
    options = ort.SessionOptions()
    # Batches differ in shape, and a memory plan per shape is never used again but kept.
    options.enable_mem_pattern = False
    # Idle workers would spin on the cores that encode the next batch and run the host program.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Where the process may use some of the cores only, onnxruntime would start a thread for each
    # core of the machine and fail to pin it.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if allowed is not None and allowed < (os.cpu_count() or 1):
        options.intra_op_num_threads = allowed
    # Warnings about how a graph was exported help nobody who did not export it; errors stay.
    options.log_severity_level = 3
    return options
