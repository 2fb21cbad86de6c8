"""A network with global means, taken apart so that tiles can give exactly the pixels of the whole picture.

GMIN adds to each channel a multiple of its mean over the whole picture, once in each of its modules. The mean of module
k depends on those before it, so there is one graph for each: its inputs are the picture, the means before k and a
window; its output is the mean over that window of what module k averages. Means over windows that partition the
picture add up to the mean over the picture. A last graph takes all means as inputs and gives the picture. Every graph
holds only the nodes that it needs, so that the first is cheap and the last is the network.

The graphs are cut from the bytes of the file itself (``runtime.onnx_file``): no second file is shipped, and a quantized
file is cut the same way, since its means are float operations.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.errors import UserError
from runtime.onnx_file import Node, OnnxFile, field, graph_tensors, with_graph

STARTS, ENDS = "gmin.window_starts", "gmin.window_ends"
"""Names of the two inputs, each (2,) int64, that bound a window: (top, left) and (bottom, right)."""

_LOCAL = {
    "Abs", "Add", "Cast", "Clip", "Concat", "Constant", "Conv", "DepthToSpace", "DequantizeLinear", "Div", "Elu", "Erf",
    "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Max", "Min", "Mish", "Mul", "Neg", "PRelu",
    "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Sigmoid", "Softplus", "Split", "Sqrt", "Sub", "Sum", "Tanh",
}  # fmt: skip
"""Operations that compute a pixel from its neighbourhood, wherever it lies in the picture."""


@dataclass(frozen=True)
class MeanGraphs:
    """The graphs as ONNX files. ``means`` are the names of the global means, in the order in which to collect them."""

    means: tuple[str, ...]
    stages: tuple[bytes, ...]
    """One for each mean: picture, the means before it, STARTS and ENDS to its mean over the window, (1, C, 1, 1)."""
    radii: tuple[int, ...]
    """LR pixels around a pixel that decide what each stage averages there; computed from the convolutions."""
    network: bytes
    """Picture and all means to the upscaled picture."""
    radius: int
    """LR pixels around a pixel that decide its upscaled pixels, the means given."""


def take_apart(file: OnnxFile) -> MeanGraphs:
    """Cut a network at its global means.

    Raises:
        UserError: the network looks at the whole picture in another way too, so tiles cannot be exact.
    """
    constants = {name: tensor.values() for name, tensor in file.constants.items()}
    means = []
    for node in file.nodes:
        if _is_global_mean(node, constants):
            means.append(node)
        elif not _is_local(node):
            raise UserError(
                f"Exact tiles need a network that is local but for global means, and this one has a {node.op} as well: "
                "use --tiling fast, or --tile 0 for the picture in one piece."
            )
    stages = tuple(_stage(file, means[:k], mean) for k, mean in enumerate(means))
    radii = _radii(file, {mean.outputs[0] for mean in means})
    output = file.outputs[0]
    return MeanGraphs(
        means=tuple(mean.outputs[0] for mean in means),
        stages=stages,
        radii=tuple(radii.get(mean.inputs[0], 0) for mean in means),
        network=_graph(file, file.nodes, means, output.name, output.raw),
        radius=radii.get(output.name, 0),
    )


def _radii(file: OnnxFile, means: set[str]) -> dict[str, int]:
    """How far each computed value sees around its pixel, in pixels of the input."""
    radii: dict[str, int] = {}
    enlarged: set[str] = set()  # values after a pixel shuffle, where a convolution would see less of the input
    for node in file.nodes:
        reach = max((radii.get(name, 0) for name in node.inputs), default=0)
        if node.op == "Conv":
            weight = _constant_behind(file, node.inputs[1]) if len(node.inputs) > 1 else ()
            pads, dilations = _integers(node, "pads"), _integers(node, "dilations") or (1, 1)
            wanted = [d * (k - 1) // 2 for k, d in zip(weight[2:], dilations, strict=False)]
            if enlarged & set(node.inputs) or len(weight) != 4 or list(pads or (0,) * 4) != wanted * 2:
                raise UserError(
                    "Exact tiles need convolutions that keep height and width, before the picture is enlarged: "
                    "use --tiling fast, or --tile 0 for the picture in one piece."
                )
            reach += max(wanted)
        if node.op == "DepthToSpace" or enlarged & set(node.inputs):
            enlarged |= set(node.outputs)
        radii |= dict.fromkeys(node.outputs, 0 if node.outputs[0] in means else reach)
    return radii


def _constant_behind(file: OnnxFile, name: str) -> tuple[int, ...]:
    """Shape of a convolution's weight, which may be a dequantized constant."""
    while name not in file.constants:
        source = next((node for node in file.nodes if name in node.outputs), None)
        if (
            source is None
            or not source.inputs
            or source.op not in ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity")
        ):
            return ()
        name = source.inputs[0]
    return file.constants[name].shape


def _stage(file: OnnxFile, known: list[Node], mean: Node) -> bytes:
    """The graph from the picture and the ``known`` means to ``mean`` over a window."""
    source, target = mean.inputs[0], mean.outputs[0]
    window, axes = f"{source}.window", "gmin.window_axes"
    slicing = b"".join(field(1, name) for name in (source, STARTS, ENDS, axes)) + field(2, window) + field(4, "Slice")
    averaging = b"".join(field(1, name) for name in (window, *mean.inputs[1:])) + field(2, target)
    averaging += field(4, mean.op) + b"".join(field(5, attribute.raw) for attribute in mean.attributes.values())
    nodes = [
        *(node for node in file.nodes if node is not mean),
        Node("Slice", "", (source,), (window,), {}, memoryview(slicing)),
        Node(mean.op, "", (window, *mean.inputs[1:]), (target,), {}, memoryview(averaging)),
    ]
    extra = field(5, field(1, 2) + field(2, 7) + field(8, axes) + field(9, struct.pack("<2q", 2, 3)))
    extra += b"".join(field(11, _declaration(name, 7, (2,))) for name in (STARTS, ENDS))
    return _graph(file, nodes, known, target, _declaration(target, 1, (None, None, 1, 1)), extra)


def _graph(
    file: OnnxFile,
    nodes: Sequence[Node],
    known: list[Node],
    target: str,
    output: bytes | memoryview,
    extra: bytes = b"",
) -> bytes:
    """A model of the ``nodes`` that ``target`` depends on, with the results of the ``known`` ones as inputs."""
    given = {node.outputs[0] for node in known}
    needed, kept = {target}, []
    for node in reversed(nodes):
        if needed & set(node.outputs) - given:
            kept.append(node)
            needed |= set(node.inputs)
    parts = [field(1, node.raw) for node in reversed(kept)]
    parts.append(field(2, "gmin"))
    parts += graph_tensors(file, needed)
    parts.append(field(11, file.inputs[0].raw))
    for name in (node.outputs[0] for node in known):
        declared = file.inner[name].shape if name in file.inner else None
        parts.append(field(11, _declaration(name, 1, (None, *(declared or (None, None, 1, 1))[1:]))))
    parts.append(field(12, output))
    return with_graph(file, b"".join([*parts, extra]))


def _declaration(name: str, kind: int, shape: tuple[int | None, ...]) -> bytes:
    """A serialised ValueInfoProto."""
    dimensions = b"".join(field(1, b"" if size is None else field(1, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, dimensions)))


def _is_global_mean(node: Node, constants: dict[str, tuple[int, ...]]) -> bool:
    """Whether a node averages over height and width and keeps both as 1, nothing more and nothing less."""
    if node.op == "GlobalAveragePool":
        return True
    if node.op != "ReduceMean":
        return False
    keeps = node.attributes["keepdims"].integer if "keepdims" in node.attributes else 1
    if len(node.inputs) > 1:
        axes = constants.get(node.inputs[1], ())
    else:
        axes = node.attributes["axes"].integers if "axes" in node.attributes else ()
    return keeps == 1 and {axis % 4 for axis in axes} == {2, 3}


def _is_local(node: Node) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op not in _LOCAL:
        return False
    if node.op == "Conv":
        return all(stride == 1 for stride in _integers(node, "strides"))
    if node.op in ("Concat", "Split"):  # along the channels
        return (node.attributes["axis"].integer if "axis" in node.attributes else 0) == 1
    return True


def _integers(node: Node, name: str) -> tuple[int, ...]:
    return node.attributes[name].integers if name in node.attributes else ()
