"""Static int8: products of weights in integers, with activation scales fixed by calibration.

Written as QuantizeLinear and DequantizeLinear around each product, which onnxruntime fuses into
integer ones. Its own quantiser also rounds what a product gives, and has no smoothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rerank_plugins.export.graph import save_graph, weight_products
from rerank_plugins.scorers.runtime import import_onnxruntime, session_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from rerank_plugins.export.graph import Feeds

SMOOTHING = 0.7
"""How much of a hot channel's range is moved from activations into weights: alpha of SmoothQuant
(Xiao et al. 2023, equation 4).
"""

NOISIEST = 1e-3
"""Products whose rounding would add more than this share of the activations' own power stay in
float32: there a few values are far larger than what the others amount to (outlier tokens).
"""

SMALLEST = 1e-9


@dataclass(slots=True)
class ChannelRange:
    """What calibration saw of one activation, by channel: (channels,) each."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    power: NDArray[np.float64]

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in the activations of one pair, (tokens, channels)."""
        self.low = np.minimum(self.low, values.min(axis=0))
        self.high = np.maximum(self.high, values.max(axis=0))
        self.power += np.square(values, dtype=np.float64).mean(axis=0)


def to_static_int8(source: Path, target: Path, feeds: Iterable[Feeds]) -> None:
    """Write the graph with int8 products of weights, activation scales fixed by *feeds*.

    Each of *feeds* should be one pair: padding would widen the ranges.
    """
    import onnx

    proto = onnx.load(str(source))
    groups: dict[str, list[Any]] = {}
    for node in weight_products(proto):
        groups.setdefault(node.input[0], []).append(node)
    ranges = _calibrate(source, list(groups), feeds)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    before: dict[str, list[Any]] = {}
    for name, nodes in groups.items():
        matrices = [onnx.numpy_helper.to_array(weights[node.input[1]]) for node in nodes]
        smoothing = smoothing_scales(ranges[name], matrices)
        if noise(ranges[name], smoothing) <= NOISIEST:
            before[nodes[0].name] = _quantize(proto, name, nodes, matrices, ranges[name], smoothing)
    _insert(proto, before)
    save_graph(proto, target)


def smoothing_scales(
    seen: ChannelRange, matrices: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Return what each channel is divided by, (channels,), and its row of *matrices* multiplied."""
    activation = np.maximum(np.maximum(-seen.low, seen.high), SMALLEST)
    weight = np.maximum(np.max([np.abs(m).max(axis=1) for m in matrices], axis=0), SMALLEST)
    scales = activation**SMOOTHING / weight ** (1 - SMOOTHING)
    # Around 1, so that no channel leaves the range of float32.
    centred: NDArray[np.float32] = (scales / np.exp(np.log(scales).mean())).astype(np.float32)
    return centred


def noise(seen: ChannelRange, smoothing: NDArray[np.float32]) -> float:
    """Return the power of the rounding error over that of the activations, both smoothed.

    An error is spread evenly over a step, so its power is step² / 12. Powers are means over all
    channels, so that a hot channel which dominates both hides what its step does to the others.
    """
    step, _ = _grid(seen, smoothing)
    return float(step**2 / 12 / max((seen.power / smoothing**2).mean(), SMALLEST))


def _grid(seen: ChannelRange, smoothing: NDArray[np.float32]) -> tuple[float, int]:
    """Return the step between two of 256 levels, and the level of zero."""
    low = min(float((seen.low / smoothing).min()), 0.0)
    high = max(float((seen.high / smoothing).max()), 0.0)
    step = max((high - low) / 255, SMALLEST)
    return step, int(np.clip(round(-low / step), 0, 255))


def _calibrate(
    source: Path, names: Sequence[str], feeds: Iterable[Feeds]
) -> dict[str, ChannelRange]:
    """Run the graph on *feeds* and return what each of the activations *names* was like."""
    import onnx

    # The weights of a large model are not read here, only named: the copy lies beside them.
    proto = onnx.load(str(source), load_external_data=False)
    for name in names:
        proto.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    copy = source.with_name("calibration.onnx")
    onnx.save(proto, str(copy))
    ranges: dict[str, ChannelRange] = {}
    pairs = 0
    try:
        ort = import_onnxruntime("export")
        session = ort.InferenceSession(
            os.fspath(copy), sess_options=session_options(ort), providers=["CPUExecutionProvider"]
        )
        for pairs, feed in enumerate(feeds, start=1):  # noqa: B007  counted for the mean
            for name, values in zip(names, session.run(list(names), feed), strict=True):
                flat = values.reshape(-1, values.shape[-1])  # (tokens, channels)
                if name not in ranges:
                    zeros = np.zeros(flat.shape[1])
                    ranges[name] = ChannelRange(flat.min(axis=0), flat.max(axis=0), zeros)
                ranges[name].add(flat)
    finally:
        copy.unlink()
    for seen in ranges.values():
        seen.power /= max(pairs, 1)
    return ranges


def _quantize(
    proto: Any,  # noqa: ANN401  onnx is imported late
    name: str,
    nodes: Sequence[Any],
    matrices: Sequence[NDArray[np.float32]],
    seen: ChannelRange,
    smoothing: NDArray[np.float32],
) -> list[Any]:
    """Rewire products that read the activation *name*; returns the nodes to put before them."""
    import onnx

    step, zero = _grid(seen, smoothing)
    constants: dict[str, NDArray[Any]] = {
        f"{name}_smoothing": (1 / smoothing).astype(np.float32),
        f"{name}_step": np.array(step, np.float32),
        f"{name}_zero": np.array(zero, np.uint8),
    }
    rounded = (f"{name}_step", f"{name}_zero")
    make = onnx.helper.make_node
    added = [
        make("Mul", [name, f"{name}_smoothing"], [f"{name}_smooth"]),
        make("QuantizeLinear", [f"{name}_smooth", *rounded], [f"{name}_uint8"]),
        make("DequantizeLinear", [f"{name}_uint8", *rounded], [f"{name}_rounded"]),
    ]
    for node, matrix in zip(nodes, matrices, strict=True):
        smooth = matrix * smoothing[:, None]  # (channels in, channels out)
        steps = (np.maximum(np.abs(smooth).max(axis=0), SMALLEST) / 127).astype(np.float32)
        own = f"{node.name}_weight"
        constants[f"{own}_int8"] = np.rint(smooth / steps).clip(-127, 127).astype(np.int8)
        constants[f"{own}_step"] = steps
        constants[f"{own}_zero"] = np.zeros(len(steps), np.int8)
        inputs = [f"{own}_{part}" for part in ("int8", "step", "zero")]
        added.append(make("DequantizeLinear", inputs, [f"{own}_rounded"], axis=1))
        node.input[0], node.input[1] = f"{name}_rounded", f"{own}_rounded"
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, constant) for constant, value in constants.items()
    )
    return added


def _insert(proto: Any, before: dict[str, list[Any]]) -> None:  # noqa: ANN401  onnx is imported late
    """Put nodes in front of those that they are for, and drop the weights that nobody reads now."""
    nodes = [new for node in proto.graph.node for new in (*before.get(node.name, ()), node)]
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(kept)
