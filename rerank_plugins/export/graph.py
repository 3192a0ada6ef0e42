"""The reference model in torch, and its graph as ONNX in float32."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rerank_plugins.errors import ModelLoadError, first_line
from rerank_plugins.models.encoding import pad
from rerank_plugins.scorers.onnx.session import INPUTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from rerank_plugins.models.encoding import TokenPair
    from rerank_plugins.models.files import ModelFiles

Feeds = dict[str, "NDArray[np.int64]"]
"""What a graph is run on: each input, (pairs, tokens)."""

OPSET = 20
"""The first with GELU as one exact operator; onnxruntime 1.18 and later read it."""

EXTERNAL_BYTES = 1_800_000_000
"""Larger weights lie beside the graph: protobuf ends at 2 GB."""

TRACED_SHAPE = (3, 16)
"""Pairs and tokens of the example; neither is 1, which would be taken for a constant."""


def load_reference(files: ModelFiles, *, trust_remote_code: bool = False) -> Any:  # noqa: ANN401  imported late
    """Return the model in float32, its attention written out so that it can be traced.

    Raises:
        ModelLoadError: it is no cross-encoder, or transformers cannot load it.
    """
    import torch

    from rerank_plugins.scorers.torch.loading import load_model

    model = load_model(files, torch.float32, trust_remote_code=trust_remote_code)
    # Its graph is simpler than that of the fused attention, which tests for NaN in each layer.
    model.set_attn_implementation("eager")
    if model.config.num_labels not in {1, 2}:
        raise ModelLoadError(
            files.name,
            f"a reranker has one or two labels, this model has {model.config.num_labels}",
        )
    return model.eval()


def input_names(model: Any, files: ModelFiles) -> tuple[str, ...]:  # noqa: ANN401  imported late
    """Return the inputs of the graph; segments only where the model tells two texts apart."""
    from rerank_plugins.scorers.torch.preparing import reads_segments

    return INPUTS if reads_segments(model, files) else INPUTS[:2]


def reference_logits(
    model: Any,  # noqa: ANN401  imported late
    pairs: Sequence[TokenPair],
    names: Sequence[str],
    *,
    pad_id: int,
) -> NDArray[np.float32]:
    """Return torch's own logits of one padded batch, (pairs,); two labels give their difference."""
    import torch

    batch = pad(pairs, pad_id)
    with torch.inference_mode():
        labels = model(**{name: torch.from_numpy(batch[name]) for name in names}).logits
    logits = labels[:, 0] if labels.shape[1] == 1 else labels[:, 1] - labels[:, 0]
    found: NDArray[np.float32] = logits.float().numpy()
    return found


def write_graph(
    model: Any,  # noqa: ANN401  imported late
    names: Sequence[str],
    path: Path,
    *,
    name: str,
) -> None:
    """Write *model* as ONNX in float32: inputs (pairs, tokens), output ``logits`` (pairs, labels).

    The graph is traced by ``torch.export``, which keeps both sizes open. The older tracer of
    ``torch.onnx`` writes the traced size into the attention mask without a word.

    Raises:
        ModelLoadError: the model's code cannot be traced.
    """
    import torch

    ids = torch.arange(2, 2 + TRACED_SHAPE[0] * TRACED_SHAPE[1]).reshape(TRACED_SHAPE)
    ids %= model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, TRACED_SHAPE[1] // 2 :] = 0
    example = dict(zip(INPUTS, (ids, mask, torch.zeros_like(ids)), strict=True))
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with _quiet(), torch.inference_mode():
            program = torch.onnx.export(
                _logits_module(model, names),
                tuple(example[name] for name in names),
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes=(tuple(dict(sizes) for _ in names),),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    # torch.export raises whatever the model's code raises on the way.
    except Exception as exc:
        raise ModelLoadError(
            name,
            f"torch.export cannot trace it ({type(exc).__name__}: {first_line(exc)}); run its "
            'PyTorch weights instead: backend="torch"',
        ) from exc
    assert program is not None  # noqa: S101  None comes of dynamo=False alone
    proto = program.model_proto
    _forget_source(proto)
    save_graph(proto, path)


def _logits_module(model: Any, names: Sequence[str]) -> Any:  # noqa: ANN401  imported late
    """Return a module that takes the inputs by position and returns the logits alone."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(**dict(zip(names, inputs, strict=True))).logits
            return logits

    return Logits().eval()


def _forget_source(proto: Any) -> None:  # noqa: ANN401  onnx is imported late
    """Drop where each node came from: paths of this machine, and most of a small file's bytes."""
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info):
        del part.metadata_props[:]
    for node in proto.graph.node:
        node.doc_string = ""
    first = proto.graph.input[0].type.tensor_type.shape.dim
    axes = dict(zip((size.dim_param for size in first), ("pairs", "tokens"), strict=True))
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in axes:
                size.dim_param = axes[size.dim_param]


def weight_products(proto: Any) -> list[Any]:  # noqa: ANN401  onnx is imported late
    """Return the products with a weight, over every token: not those of attention, not the head.

    Products of two activations have outliers on both sides, and little to gain. torch.export makes
    MatMul of a linear layer over tokens, and Gemm of one over a single row, which is the head.
    """
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [n for n in proto.graph.node if n.op_type == "MatMul" and n.input[1] in weights]


def save_graph(proto: Any, path: Path) -> None:  # noqa: ANN401  onnx is imported late
    """Save a graph, its weights beside it where they are larger than `EXTERNAL_BYTES`."""
    import onnx

    large = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > EXTERNAL_BYTES
    onnx.save(
        proto,
        str(path),
        save_as_external_data=large,
        location=f"{path.name}_data" if large else None,
        size_threshold=1024,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from telling what its exporter could not find; errors are still raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
