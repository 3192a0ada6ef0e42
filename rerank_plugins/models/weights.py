"""Which of a model's weights are taken. Pure functions over file names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import PurePosixPath
from typing import TypeAlias

from rerank_plugins.errors import ModelLoadError
from rerank_plugins.options import Precision

ChooseFiles: TypeAlias = Callable[[str, Collection[str]], Sequence[str]]
"""From a model's name and its file names, relative to its folder, to the weights to take.

The first decides what runs them. Raises `ModelLoadError` where none fits.
"""

SETTINGS_FILE = "config.json"

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

ROUNDED = re.compile("int8|quant", re.IGNORECASE)
"""Names of files in integers, whose logits may depend on the batch: none is taken by itself."""

FOLDERS = ("", "onnx/")

PYTORCH = (".bin", ".safetensors", ".pt", ".pth", ".ckpt")
"""Endings of PyTorch weights."""

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
"""Names of a PyTorch checkpoint as transformers writes it. One too large for a file is cut into
shards (``model-00001-of-00002.safetensors``), listed by an index of the name with ``.index.json``.
"""

INDEX = ".index.json"


def wanted_precisions(precision: Precision, *, cuda: bool) -> tuple[Precision, ...]:
    """Return the precisions to take, best first.

    ``auto`` is fp32 on CPU, whose cores mostly convert half precision back and forth, and fp16 on
    CUDA; each stands in for the other where only one is there. int8 is taken when asked for, or
    where an export vouches for it (`manifest.preferred_files`): dynamic int8 takes the scale of its
    activations from the whole batch, so that the logit of a pair depends on the pairs beside it.
    """
    if precision is not Precision.AUTO:
        return (precision,)
    return (Precision.FP16, Precision.FP32) if cuda else (Precision.FP32, Precision.FP16)


def choose_onnx(
    model: str,
    names: Collection[str],
    wanted: Sequence[Precision],
    preferred: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return the ONNX file to take among *names*, and the files of its external data.

    Those *preferred* come before the usual names of what is *wanted*. A single ONNX file of an
    unusual name is taken where no precision was asked for, unless it speaks of integers.

    Raises:
        ModelLoadError: none fits; the message lists what was looked for and what is there.
    """
    looked_for = [
        folder + name for kind in wanted for name in USUAL_NAMES.get(kind, ()) for folder in FOLDERS
    ]
    for name in (*preferred, *looked_for):
        if name in names:
            return (name, *external_data(name, names))
    there = sorted(name for name in names if name.endswith(".onnx"))
    int8 = [name for name in there if ROUNDED.search(PurePosixPath(name).name)]
    if len(wanted) > 1 and len(there) == 1 and not int8:
        return (there[0], *external_data(there[0], names))
    raise ModelLoadError(model, _missing(looked_for, there, int8, names, wanted))


def external_data(onnx: str, names: Collection[str]) -> list[str]:
    """Return those of *names* that hold weights of the file *onnx*, kept outside of it.

    Exporters write ``model.onnx_data`` or ``model.onnx.data`` (numbered where split) for graphs
    beyond protobuf's limit of 2 GB.
    """
    return sorted(name for name in names if name.startswith((f"{onnx}_data", f"{onnx}.data")))


def choose_torch(model: str, names: Collection[str], *, allow_pickle: bool) -> tuple[str, ...]:
    """Return the safetensors file of a PyTorch checkpoint, or its index and shards.

    A pickled one is taken where there is no other and *allow_pickle* is set.

    Raises:
        ModelLoadError: there is none, or it is incomplete, or pickled and not allowed.
    """
    found = _checkpoint(names, SAFETENSORS)
    if not found:
        found = _checkpoint(names, PICKLED)
        if not found:
            raise ModelLoadError(model, _no_checkpoint(names))
        if not allow_pickle:
            raise ModelLoadError(model, PICKLED_ALONE)
    if SETTINGS_FILE not in names:
        raise ModelLoadError(
            model,
            f"there is no {SETTINGS_FILE}, which says how its PyTorch weights are put together; "
            "copy it from where the weights come from",
        )
    return found


PICKLED_ALONE = (
    "its weights are pickled (.bin), and opening a pickle can run code. Convert them with "
    "transformers: AutoModelForSequenceClassification.from_pretrained(MODEL)"
    ".save_pretrained(FOLDER), or, if you trust where they come from, set allow_pickle=True"
)


def _checkpoint(names: Collection[str], single: str) -> tuple[str, ...]:
    """Return the file *single* among *names*, or else the index and shards that stand for it."""
    if single in names:
        return (single,)
    stem, _, ending = single.rpartition(".")
    pattern = re.compile(rf"{stem}-\d+-of-\d+\.{ending}")
    shards = sorted(name for name in names if pattern.fullmatch(name))
    # Either may be missing where a download broke off; who reads the index sees it.
    return (single + INDEX, *shards) if shards or single + INDEX in names else ()


def _no_checkpoint(names: Collection[str]) -> str:
    looked = f"looked for {SAFETENSORS}, {SAFETENSORS}{INDEX}, {PICKLED}"
    if "adapter_config.json" in names:
        return (
            f"it is an adapter (LoRA) without the model it adapts ({looked}); merge the two with "
            "peft: merge_and_unload().save_pretrained(FOLDER)"
        )
    there = sorted(name for name in names if name.endswith(PYTORCH))
    if there:
        return f"no PyTorch weights have a known name ({looked}); there are {', '.join(there)}"
    onnx = sorted(name for name in names if name.endswith(".onnx"))
    if onnx:
        return (
            f"there are no PyTorch weights ({looked}), but {', '.join(onnx)}; "
            "leave backend, precision and device out to run it in onnxruntime"
        )
    return f"there are no PyTorch weights ({looked})"


def _missing(
    looked_for: Sequence[str],
    there: Sequence[str],
    int8: Sequence[str],
    names: Collection[str],
    wanted: Sequence[Precision],
) -> str:
    if len(wanted) > 1 and int8:
        usual = any(PurePosixPath(name).name in USUAL_NAMES[Precision.INT8] for name in int8)
        ask = 'ask for them with precision="int8"' if usual else "pass the path of one as model"
        return (
            f"it has int8 ONNX files alone ({', '.join(int8)}), whose logits may depend on the "
            f"batch; {ask}"
        )
    looked = f"looked for {', '.join(looked_for) or f'none, since ONNX files hold no {wanted[0]}'}"
    if there:
        return (
            f"no ONNX file fits ({looked}); there are {', '.join(there)}. Set precision to one "
            "that is there, or pass the path of a file as model"
        )
    if any(name.endswith(PYTORCH) for name in names):
        return (
            f"it has PyTorch weights but no ONNX file ({looked}); leave backend and precision out "
            "to run them in torch, or export them: rerank-plugins export MODEL FOLDER"
        )
    return f"there is no ONNX file ({looked})"
