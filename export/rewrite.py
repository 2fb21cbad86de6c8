"""Exact rewrites of an exported graph that every engine gains from. One function a rewrite."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper


def split_by_weights(model: ModelProto) -> int:
    """Compute the parts of a channel split apart instead of splitting their sum of channels, in place.

    A 1×1 convolution, optionally followed by a depth-wise one, whose result is only split along the channels becomes
    one such chain for each part, with its share of the weights. The arithmetic of every output value is unchanged;
    the copy that ``Split`` makes, strided in the channels-last layouts of fast convolutions, is gone.

    Returns:
        The number of splits removed.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, int] = {output.name: 1 for output in graph.output}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    replaced: dict[str, list[NodeProto]] = {}
    count = 0
    for split in [node for node in graph.node if node.op_type == "Split"]:
        chain = _chain_before(split, producers, constants, readers)
        if chain is None:
            continue
        first = 0
        built: list[NodeProto] = []
        for part, size in zip(split.output, _sizes(split, constants, chain[-1]), strict=True):
            source = chain[0].input[0]
            for depth, node in enumerate(chain):
                target = part if node is chain[-1] else f"{part}_before_{depth}"
                built.append(_slice(model, node, constants, source, target, slice(first, first + size)))
                source = target
            first += size
        replaced |= {node.output[0]: [] for node in (*chain, split)}
        replaced[chain[0].output[0]] = built
        count += 1
    nodes = [new for node in graph.node for new in replaced.get(node.output[0], [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return count


def _chain_before(
    split: NodeProto, producers: dict[str, NodeProto], constants: dict[str, np.ndarray], readers: dict[str, int]
) -> list[NodeProto] | None:
    """The convolutions, in order, that compute only what ``split`` splits; None where there is no such chain."""
    if _attribute(split, "axis", 0) != 1:
        return None
    chain: list[NodeProto] = []
    name = split.input[0]
    while len(chain) < 2:
        node = producers.get(name)
        if node is None or node.op_type != "Conv" or readers[name] != 1 or node.input[1] not in constants:
            return None
        chain.insert(0, node)
        weight, group = constants[node.input[1]], _attribute(node, "group", 1)
        if group == 1 and weight.shape[2:] == (1, 1):
            return chain
        if group != weight.shape[0] or weight.shape[1] != 1:
            return None
        name = node.input[0]
    return None


def _sizes(split: NodeProto, constants: dict[str, np.ndarray], last: NodeProto) -> list[int]:
    if len(split.input) > 1:
        return [int(size) for size in constants[split.input[1]]]
    return [len(constants[last.input[1]]) // len(split.output)] * len(split.output)


def _slice(
    model: ModelProto, node: NodeProto, constants: dict[str, np.ndarray], source: str, target: str, part: slice
) -> NodeProto:
    """``node`` for the output channels ``part`` only."""
    names = [source]
    for label, name in zip(("weight", "bias"), node.input[1:], strict=False):
        names.append(f"{target}.{label}")
        model.graph.initializer.append(numpy_helper.from_array(constants[name][part].copy(), names[-1]))
    sliced = helper.make_node("Conv", names, [target], name=f"{node.name}_{target}")
    grouped = _attribute(node, "group", 1) != 1
    sliced.attribute.extend(attribute for attribute in node.attribute if attribute.name != "group")
    if grouped:
        sliced.attribute.append(helper.make_attribute("group", part.stop - part.start))
    return sliced


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)
