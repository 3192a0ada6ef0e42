"""From the float32 graph to faster ones: optimised, fp16 and dynamic int8."""

from __future__ import annotations

import importlib
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rerank_plugins.export import graph
from rerank_plugins.export.graph import save_graph, weight_products
from rerank_plugins.export.positions import positions_of, restore
from rerank_plugins.models.manifest import total_bytes
from rerank_plugins.scorers.runtime import import_onnxruntime, session_options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
    if total_bytes(source) > graph.EXTERNAL_BYTES:
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
    """Write the graph in float16; the head, logits and angles of positions stay in float32."""
    import onnx

    float16 = importlib.import_module("onnxruntime.transformers.float16")
    proto = onnx.load(str(source))
    head = [node.name for node in proto.graph.node if node.op_type == HEAD_OPERATOR]
    positions = positions_of(proto, float16.DEFAULT_OP_BLOCK_LIST)
    half = float16.convert_float_to_float16(
        proto, keep_io_types=True, node_block_list=head, disable_shape_infer=True
    )
    restore(half, positions)
    save_graph(half, target)


def to_dynamic_int8(source: Path, target: Path) -> None:
    """Write the graph with int8 products of weights, activation scales taken from each batch."""
    import onnx

    quantization = importlib.import_module("onnxruntime.quantization")
    proto = onnx.load(str(source))
    # The quantiser infers them again, and stops where torch wrote another one.
    del proto.graph.value_info[:]
    with _quiet():
        quantization.quantize_dynamic(
            proto,
            os.fspath(target),
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=[node.name for node in weight_products(proto)],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=total_bytes(source) > graph.EXTERNAL_BYTES,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser from its advice on the root logger about steps left out on purpose."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)
