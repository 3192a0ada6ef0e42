"""Write the embedded model's encoder and tokenizer from a sentence encoder's checkpoint.

    python training/embedded_encoder.py ENCODER_FOLDER OUT_FOLDER

The encoder is an ONNX graph written by hand: int8 weights at rest, float32 arithmetic. A matrix is
stored as int8 with one float32 scale per output channel (per row for the token table), and turned
back by DequantizeLinear: activations are never rounded, and a batch's company cannot change a
result. The same checkpoint gives the same bytes.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

LAYERS = 6
HEADS = 12
HIDDEN = 384
EPSILON = 1e-12
OPSET = 20
MASKED = -1e9
"""Added to the attention of padding; exp() makes it exactly 0."""

Weights = Mapping[str, NDArray[np.float32]]


def quantize(
    matrix: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one scale per index of *axis*; returns (values, scales)."""
    reduced = tuple(i for i in range(matrix.ndim) if i != axis)
    scales = np.maximum(np.abs(matrix).max(axis=reduced), 1e-12).astype(np.float32) / np.float32(
        127.0
    )
    shape = [1] * matrix.ndim
    shape[axis] = -1
    return np.rint(matrix / scales.reshape(shape)).clip(-127, 127).astype(np.int8), scales


class EncoderGraph:
    """Collects the nodes of one BERT encoder; `build` returns the checked model."""

    def __init__(self, weights: Weights, *, int8: bool = True) -> None:
        self._weights = weights
        self._int8 = int8
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []
        self._count = 0

    def build(self) -> onnx.ModelProto:
        """Return the model: ids int64 and mask float32 (n, tokens) → hidden (n, tokens, 384)."""
        states = self._embed()
        mask = self._op(
            "Mul", self._op("Sub", "mask", self._constant(1.0)), self._constant(-MASKED)
        )
        mask = self._op("Unsqueeze", mask, self._integers([1, 2]))  # (n, 1, 1, tokens)
        for layer in range(LAYERS):
            states = self._layer(f"encoder.layer.{layer}.", states, mask)
        self._nodes.append(helper.make_node("Identity", [states], ["hidden"]))
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            [
                helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "tokens"]),
                helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", "tokens"]),
            ],
            [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["n", "tokens", HIDDEN])],
            self._tensors,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def _embed(self) -> str:
        table = self._weights["embeddings.word_embeddings.weight"]
        if self._int8:
            values, scales = quantize(table, axis=0)
            # Gather first: the table stays int8 in memory (12 MB, not 47).
            rows = self._op(
                "Cast", self._op("Gather", self._tensor(values), "ids"), to=TensorProto.FLOAT
            )
            words = self._op("Mul", rows, self._op("Gather", self._tensor(scales[:, None]), "ids"))
        else:
            words = self._op("Gather", self._tensor(table), "ids")
        positions = self._weights["embeddings.position_embeddings.weight"]
        constant = (
            positions + self._weights["embeddings.token_type_embeddings.weight"][0]
        )  # one segment only
        length = self._op(
            "Slice", self._op("Shape", "ids"), self._integers([1]), self._integers([2])
        )
        places = self._op(
            "Slice",
            self._matrix(constant, axis=0),
            self._integers([0]),
            length,
            self._integers([0]),
        )
        return self._norm("embeddings.LayerNorm", self._op("Add", words, places))

    def _layer(self, name: str, states: str, mask: str) -> str:
        attention = name + "attention."
        query, key, value = (
            self._heads(f"{attention}self.{part}", states) for part in ("query", "key", "value")
        )
        scale = self._constant(1.0 / np.sqrt(HIDDEN // HEADS))
        scores = self._op(
            "MatMul", self._op("Mul", query, scale), self._op("Transpose", key, perm=[0, 1, 3, 2])
        )
        shares = self._op("Softmax", self._op("Add", scores, mask), axis=-1)
        context = self._op("Transpose", self._op("MatMul", shares, value), perm=[0, 2, 1, 3])
        context = self._op("Reshape", context, self._integers([0, 0, HIDDEN]))
        context = self._linear(attention + "output.dense", context)
        states = self._norm(attention + "output.LayerNorm", self._op("Add", context, states))
        wide = self._op("Gelu", self._linear(name + "intermediate.dense", states))
        return self._norm(
            name + "output.LayerNorm",
            self._op("Add", self._linear(name + "output.dense", wide), states),
        )

    def _heads(self, name: str, states: str) -> str:
        split = self._op(
            "Reshape", self._linear(name, states), self._integers([0, 0, HEADS, HIDDEN // HEADS])
        )
        return self._op("Transpose", split, perm=[0, 2, 1, 3])  # (n, heads, tokens, width)

    def _linear(self, name: str, states: str) -> str:
        weight = np.ascontiguousarray(self._weights[name + ".weight"].T)  # (in, out)
        product = self._op("MatMul", states, self._matrix(weight, axis=1))
        return self._op("Add", product, self._tensor(self._weights[name + ".bias"]))

    def _norm(self, name: str, states: str) -> str:
        weight, bias = (
            self._tensor(self._weights[f"{name}.{part}"]) for part in ("weight", "bias")
        )
        return self._op("LayerNormalization", states, weight, bias, axis=-1, epsilon=EPSILON)

    def _matrix(self, matrix: NDArray[np.float32], axis: int) -> str:
        if not self._int8:
            return self._tensor(matrix)
        values, scales = quantize(matrix, axis)
        return self._op("DequantizeLinear", self._tensor(values), self._tensor(scales), axis=axis)

    def _constant(self, value: float) -> str:
        return self._tensor(np.array(value, dtype=np.float32))

    def _integers(self, values: list[int]) -> str:
        return self._tensor(np.array(values, dtype=np.int64))

    def _tensor(self, array: NDArray[np.generic]) -> str:
        name = self._fresh()
        self._tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = self._fresh()
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def _fresh(self) -> str:
        self._count += 1
        return f"t{self._count}"


def write_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer without its truncation and padding: the scorer cuts and pads by itself."""
    settings = json.loads(source.read_text(encoding="utf-8"))
    settings["truncation"] = settings["padding"] = None
    target.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    """Read the checkpoint, write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder_folder", type=Path)
    parser.add_argument("out_folder", type=Path)
    arguments = parser.parse_args()
    arguments.out_folder.mkdir(parents=True, exist_ok=True)
    weights = load_file(arguments.encoder_folder / "model.safetensors")
    model = EncoderGraph(weights).build()
    (arguments.out_folder / "encoder.onnx").write_bytes(model.SerializeToString())
    write_tokenizer(
        arguments.encoder_folder / "tokenizer.json", arguments.out_folder / "tokenizer.json"
    )


if __name__ == "__main__":
    main()
