"""From the float32 graph to faster ones: optimised, int8 and fp16."""

from __future__ import annotations

import importlib
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rerank_plugins.export.graph import EXTERNAL_BYTES, save_graph
from rerank_plugins.models.manifest import total_bytes
from rerank_plugins.scorers.runtime import import_onnxruntime, session_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

Feeds = dict[str, "NDArray[np.int64]"]

HEAD_OPERATOR = "Gemm"
"""What torch.export makes of a linear layer over one row per pair, which only a head has; layers
over every token become MatMul.
"""


def optimize(source: Path, target: Path) -> None:
    """Write the graph as onnxruntime optimises it on loading, for every CPU alike.

    The extended level fuses normalisation, bias and GELU, without approximating any. What the
    level above does depends on the CPU that it runs on.
    """
    ort = import_onnxruntime("export")
    options = session_options(ort)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = os.fspath(target)
    if total_bytes(source) > EXTERNAL_BYTES:
        beside = f"{target.name}_data"
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", beside
        )
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
    ort.InferenceSession(
        os.fspath(source), sess_options=options, providers=["CPUExecutionProvider"]
    )


def to_fp16(source: Path, target: Path) -> None:
    """Write the graph with weights and arithmetic in float16, the head and logits in float32."""
    import onnx

    float16 = importlib.import_module("onnxruntime.transformers.float16")
    graph = onnx.load(str(source))
    head = [node.name for node in graph.graph.node if node.op_type == HEAD_OPERATOR]
    half = float16.convert_float_to_float16(
        graph, keep_io_types=True, node_block_list=head, disable_shape_infer=True
    )
    save_graph(half, target)


def to_static_int8(source: Path, target: Path, feeds: Iterable[Feeds]) -> None:
    """Write the graph with int8 products of weights, activation scales fixed by *feeds*.

    Each of *feeds* should be one pair: padding would widen the ranges.
    """
    quantization = importlib.import_module("onnxruntime.quantization")
    products = _weight_products(source)
    # onnxruntime has no types, and takes readers of its own class alone.
    reader_base: Any = quantization.CalibrationDataReader

    class Reader(reader_base):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> Mapping[str, Any] | None:
            return next(self._feeds, None)

    with _quiet():
        quantization.quantize_static(
            os.fspath(source),
            os.fspath(target),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=products,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            use_external_data_format=total_bytes(source) > EXTERNAL_BYTES,
        )


def to_dynamic_int8(source: Path, target: Path) -> None:
    """Write the graph with int8 products of weights, activation scales taken from each batch."""
    quantization = importlib.import_module("onnxruntime.quantization")
    with _quiet():
        quantization.quantize_dynamic(
            os.fspath(source),
            os.fspath(target),
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=_weight_products(source),
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=total_bytes(source) > EXTERNAL_BYTES,
        )


def _weight_products(source: Path) -> list[str]:
    """Return the names of the matrix products with a weight: not those of attention, not the head.

    Products of two activations have outliers on both sides, and little to gain.
    """
    import onnx

    graph = onnx.load(str(source), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [n.name for n in graph.node if n.op_type == "MatMul" and n.input[1] in weights]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser from its advice on the root logger about steps left out on purpose."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)
