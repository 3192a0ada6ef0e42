"""The files that an export can write, as rows."""

from __future__ import annotations

from dataclasses import dataclass

from rerank_plugins.errors import InputError
from rerank_plugins.models.manifest import (
    FP16_FILE,
    FP32_FILE,
    INT8_DYNAMIC_FILE,
    INT8_FILE,
    OPTIMIZED_FILE,
)


@dataclass(frozen=True, slots=True)
class Format:
    """A file that can be written: ``exact`` ones must give the logits of torch.

    ``static_scales`` is None where activations are not rounded to integers. ``check_device`` is the
    setting ``device`` that the file is checked with; ``on_cpu`` adds what a check on the CPU means.
    """

    name: str
    file: str
    made_by: str
    exact: bool = False
    static_scales: bool | None = None
    check_device: str = "cpu"
    on_cpu: str = ""


FP32 = Format(
    "fp32",
    FP32_FILE,
    "torch.onnx.export from the model's own code, attention written out (eager)",
    exact=True,
)
OPTIMIZED = Format(
    "optimized",
    OPTIMIZED_FILE,
    "onnxruntime's extended graph optimisations, exact GELU",
    exact=True,
)
INT8 = Format(
    "int8",
    INT8_FILE,
    "products with weights in integers: int8 weights with a scale per channel, uint8 activations "
    "smoothed (alpha 0.7), with scales from the smallest and largest value in calibration; "
    "products with outliers, embeddings, attention, normalisation and head in float32",
    static_scales=True,
)
INT8_DYNAMIC = Format(
    "int8-dynamic",
    INT8_DYNAMIC_FILE,
    "onnxruntime dynamic quantisation: activation scales from the whole batch, so that a logit "
    "depends on its batch",
    static_scales=False,
)
FP16 = Format(
    "fp16",
    FP16_FILE,
    "onnxruntime float16 conversion; head, logits and what depends on positions alone in float32",
    check_device="auto",
    on_cpu="which computes float16 in float32: weights were checked, arithmetic was not",
)

FORMATS = (FP32, OPTIMIZED, INT8, FP16, INT8_DYNAMIC)
"""In the order in which they are made; the others are made of the first."""

DEFAULT_FORMATS = (FP32, OPTIMIZED, INT8, FP16)


def parse_formats(text: str) -> tuple[Format, ...]:
    """Return the formats of a list such as ``fp32,int8``, in the order in which they are made.

    Raises:
        InputError: one of them is unknown, or none is named.
    """
    names = {name.strip() for name in text.split(",")} - {""}
    known = {row.name for row in FORMATS}
    if not names or names - known:
        wrong = ", ".join(sorted(names - known)) or "none"
        raise InputError(
            f"--formats: known are {', '.join(row.name for row in FORMATS)}; got {wrong}"
        )
    return tuple(row for row in FORMATS if row.name in names)
