"""What a graph computes of positions alone, kept in float32 where the rest becomes float16.

Above 2048 float16 skips integers: the rotary angle of a position would be that of its neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

SUFFIX = "_float32"


@dataclass(frozen=True, slots=True)
class Positions:
    """The nodes by their names, and the constants that they read, both in float32."""

    nodes: Mapping[str, Any]
    constants: Sequence[Any]


def positions_of(proto: Any, left_alone: Collection[str]) -> Positions:  # noqa: ANN401  onnx is imported late
    """Return what *proto* computes of positions; operators that are *left_alone* convert as ever.

    The values get names of their own, so that they can stand beside the converted ones.
    """
    import onnx

    real = onnx.TensorProto.FLOAT
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    floats = {v.name for v in proto.graph.value_info if v.type.tensor_type.elem_type == real}
    floats.update(name for name, tensor in weights.items() if tensor.data_type == real)
    own = {name for name, tensor in weights.items() if tensor.data_type == real}
    nodes: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for node in _nodes_of_positions(proto):
        read = floats.intersection(node.input)
        given = floats.intersection(node.output)
        if not read | given or node.op_type in left_alone or not read <= own:
            continue
        own |= given
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        for names in (copy.input, copy.output):
            for i, name in enumerate(names):
                names[i] = name + SUFFIX if name in floats else name
        for name in read & weights.keys():
            tensor = onnx.TensorProto.FromString(weights[name].SerializeToString())
            tensor.name = name + SUFFIX
            constants[name] = tensor
        nodes[node.name] = copy
    return Positions(nodes, list(constants.values()))


def restore(proto: Any, positions: Positions) -> None:  # noqa: ANN401  onnx is imported late
    """Put *positions* back into the converted graph; what others read of them becomes float16."""
    import onnx

    others = [node for node in proto.graph.node if node.name not in positions.nodes]
    read = {name for node in others for name in node.input}
    nodes: list[Any] = []
    for node in proto.graph.node:
        kept = positions.nodes.get(node.name)
        nodes.append(node if kept is None else kept)
        for name in () if kept is None else kept.output:
            half = name.removesuffix(SUFFIX)
            if half != name and half in read:
                to = onnx.TensorProto.FLOAT16
                cast = onnx.helper.make_node("Cast", [name], [half], f"{half}_to_float16", to=to)
                nodes.append(cast)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    weights = proto.graph.initializer
    for i in reversed(range(len(weights))):
        if weights[i].name not in used:
            del weights[i]
    weights.extend(positions.constants)


def _nodes_of_positions(proto: Any) -> list[Any]:  # noqa: ANN401  onnx is imported late
    """Return the nodes that follow from Range and from nothing that the tokens decide.

    What positions look up (the second input of Gather) has the format of its table.
    """
    tokens = {value.name for value in proto.graph.input}
    positions: set[str] = set()
    found = []
    for node in proto.graph.node:
        data = node.input[:1] if node.op_type == "Gather" else node.input
        if node.op_type == "Shape":
            continue
        if tokens.intersection(node.input):
            tokens.update(node.output)
        elif node.op_type == "Range" or positions.intersection(data):
            positions.update(node.output)
            found.append(node)
    return found
