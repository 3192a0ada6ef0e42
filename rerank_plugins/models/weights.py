"""Which ONNX file of a model is taken. Pure functions over file names."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from rerank_plugins.config import Precision
from rerank_plugins.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

USUAL_NAMES: dict[Precision, tuple[str, ...]] = {
    # O3 comes last, for its approximate GELU.
    Precision.FP32: (
        "model.onnx",
        "model_optimized.onnx",
        "model_O2.onnx",
        "model_O1.onnx",
        "model_O3.onnx",
    ),
    Precision.FP16: ("model_fp16.onnx", "model_O4.onnx"),
    Precision.INT8: (
        "model_quantized.onnx",
        "model_int8.onnx",
        "model_qint8_avx512_vnni.onnx",
        "model_qint8_avx512.onnx",
        "model_quint8_avx2.onnx",
        "model_qint8_arm64.onnx",
        "model_uint8.onnx",
    ),
}
"""File names by the number format of their weights, best first, as transformers.js, optimum and
sentence-transformers export them. Each is looked for beside config.json and in ``onnx/``.
"""

FOLDERS = ("", "onnx/")

PYTORCH = (".bin", ".safetensors", ".pt", ".pth", ".ckpt")
"""Endings of PyTorch weights, which have to be exported first."""


def wanted_precisions(precision: Precision, *, cuda: bool) -> tuple[Precision, ...]:
    """Return the precisions to take, best first.

    ``auto`` is fp32 on CPU, whose cores mostly convert half precision back and forth, and fp16 on
    CUDA; each stands in for the other where only one is there. int8 is taken only when asked for:
    dynamic int8 takes the scale of its activations from the whole batch, so that the logit of a
    pair depends on the pairs beside it.
    """
    if precision is not Precision.AUTO:
        return (precision,)
    return (Precision.FP16, Precision.FP32) if cuda else (Precision.FP32, Precision.FP16)


def choose_onnx(model: str, names: Collection[str], wanted: Sequence[Precision]) -> str:
    """Return the ONNX file to take among *names*, paths relative to the model's folder.

    A single ONNX file of an unusual name is taken where no precision was asked for.

    Raises:
        ModelLoadError: none fits; the message lists what was looked for and what is there.
    """
    looked_for = [
        folder + name for kind in wanted for name in USUAL_NAMES[kind] for folder in FOLDERS
    ]
    for name in looked_for:
        if name in names:
            return name
    there = sorted(name for name in names if name.endswith(".onnx"))
    int8 = [name for name in there if PurePosixPath(name).name in USUAL_NAMES[Precision.INT8]]
    if len(wanted) > 1 and len(there) == 1 and not int8:
        return there[0]
    raise ModelLoadError(model, _missing(looked_for, there, int8, names, wanted))


def external_data(onnx: str, names: Collection[str]) -> list[str]:
    """Return those of *names* that hold weights of the file *onnx*, kept outside of it.

    Exporters write ``model.onnx_data`` or ``model.onnx.data`` (numbered where split) for graphs
    beyond protobuf's limit of 2 GB.
    """
    return sorted(name for name in names if name.startswith((f"{onnx}_data", f"{onnx}.data")))


def _missing(
    looked_for: Sequence[str],
    there: Sequence[str],
    int8: Sequence[str],
    names: Collection[str],
    wanted: Sequence[Precision],
) -> str:
    if len(wanted) > 1 and int8:
        return (
            f"it has int8 ONNX files alone ({', '.join(int8)}), whose logits may depend on the "
            'batch; ask for them with precision="int8"'
        )
    looked = f"looked for {', '.join(looked_for)}"
    if there:
        return (
            f"no ONNX file fits ({looked}); there are {', '.join(there)}. Set precision to one "
            "that is there, or pass the path of a file as model"
        )
    if any(name.endswith(PYTORCH) for name in names):
        return (
            f"it has PyTorch weights but no ONNX file ({looked}); export it to ONNX first: "
            f"optimum-cli export onnx --task text-classification --model MODEL FOLDER"
        )
    return f"there is no ONNX file ({looked})"
