"""The last convolution, fitted anew to what 8 bits leave of its inputs.

Where the last convolution stays float, everything that it reads was rounded, and part of that error is the same for
each pixel (white came out as 253.7 in a file of ours). The weights with the least squared distance to FP32's answer
have a closed form (linear least squares, as He et al., "Channel Pruning", ICCV 2017, reconstruct a layer's output;
correcting the bias alone, Nagel et al., ICCV 2019, is its first term). A file stays what it was, in size and in time.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from quantize.graph import tail
from quantize.search import open_session

if TYPE_CHECKING:
    from quantize.patches import Patches
    from quantize.plan import Plan

FLAT_SHARE = 0.1
"""Of flat colours, relative to pictures: these hardly hold any, and there an error of a level is seen."""
_FLAT_SIDE = 24
PICTURES = 64
"""Calibration pictures that are fitted to, at most: 262,144 pixels for the 577 inputs of each of GMIN's outputs."""
_HOLD = 1e-4
"""By which the old weights hold, relative to the mean square of what they multiply."""


def refit_tail(plan: Plan, reference: ModelProto, patches: Patches, floats: Collection[str] = ()) -> Plan:
    """The plan with the weights and bias of its last convolution for the least squared distance to FP32.

    Args:
        plan: as calibrated, tuned or trained; left unchanged.
        reference: the FP32 graph that the plan was made of.
        patches: the first of their calibration pictures are fitted to, and 64 flat colours.
        floats: units that stay float in the file that will be built.

    Returns:
        The plan itself where there is no one float convolution at the end, dense and with a bias.
    """
    ends = tail(plan.model)
    if len(ends) != 1 or not _fits(plan, ends[0], floats):
        return plan
    (last,) = ends
    tensors = {tensor.name: tensor for tensor in plan.model.graph.initializer}
    weight, bias = (numpy_helper.to_array(tensors[name]).astype(np.float64) for name in last.input[1:3])
    outputs, size = len(weight), weight[0].size
    features, answers = _reading(plan.build(floats), last.input[0]), _reading(reference, last.output[0])
    old = np.concatenate([weight.reshape(outputs, size), bias[:, None]], axis=1).T

    sums = []
    for pictures in (itertools.islice(patches.batches(), PICTURES), _flat_colours()):
        squares, missed, pixels = np.zeros((size + 1, size + 1)), np.zeros((size + 1, outputs)), 0
        for picture in pictures:
            read = _neighbourhoods(features(picture), weight.shape[2:], _padding(last))
            wanted = np.moveaxis(answers(picture), 1, -1).reshape(-1, outputs)
            squares += read.T @ read
            missed += read.T @ (wanted - read @ old.astype(np.float32))
            pixels += len(read)
        sums.append((squares / pixels, missed / pixels))
    new = (old + change(*sums)).T.astype(np.float32)

    model = ModelProto()
    model.CopyFrom(plan.model)
    fitted = {last.input[1]: new[:, :-1].reshape(weight.shape), last.input[2]: new[:, -1]}
    for tensor in model.graph.initializer:
        if tensor.name in fitted:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(fitted[tensor.name]), tensor.name))
    return dataclasses.replace(plan, model=model)


def change(
    pictures: tuple[NDArray[np.float64], NDArray[np.float64]], flat: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """What to add to the weights, (inputs, outputs), from mean products of inputs with themselves and with errors.

    Where flat colours, which may be clipped, would cost pictures more than these gain, less is given to them.
    """
    for share in (FLAT_SHARE, FLAT_SHARE / 10, 0.0):
        squares, missed = (a + share * b for a, b in zip(pictures, flat, strict=True))
        hold = _HOLD * np.trace(squares) / len(squares) * np.eye(len(squares))
        added = np.linalg.solve(squares + hold, missed)
        gained = 2 * (added * pictures[1]).sum() - (added * (pictures[0] @ added)).sum()
        if gained > 0:
            break
    return added


def _fits(plan: Plan, last: NodeProto, floats: Collection[str]) -> bool:
    """Whether the convolution is float, dense, of stride and dilation 1, and reads its weights alone."""
    tensors = {tensor.name for tensor in plan.model.graph.initializer}
    attributes = {a.name: helper.get_attribute_value(a) for a in last.attribute}
    readers = [name for node in plan.model.graph.node for name in node.input]
    return (
        (last.name not in plan.convolutions or last.name in floats)
        and len(last.input) == 3
        and all(name in tensors and readers.count(name) == 1 for name in last.input[1:])
        and attributes.get("group", 1) == 1
        and set(attributes.get("strides", [1])) == {1}
        and set(attributes.get("dilations", [1])) == {1}
        and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
    )


def _padding(node: NodeProto) -> list[tuple[int, int]]:
    """Zeros before and after, of rows and of columns."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    return [(top, bottom), (left, right)]


def _reading(model: ModelProto, name: str) -> Any:
    """A function from a batch to the tensor ``name`` of a graph, in ONNX Runtime."""
    shown = ModelProto()
    shown.CopyFrom(model)
    if name not in {output.name for output in shown.graph.output}:
        shown.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = open_session(shown)
    (graph_input,) = session.get_inputs()
    return lambda batch: session.run([name], {graph_input.name: batch})[0]


def _flat_colours() -> Iterator[NDArray[np.float32]]:
    side = np.linspace(0, 1, 4, dtype=np.float32)
    for colour in itertools.product(side, repeat=3):
        yield np.tile(np.array(colour, np.float32)[None, :, None, None], (1, 1, _FLAT_SIDE, _FLAT_SIDE))


def _neighbourhoods(
    features: NDArray[np.float32], kernel: tuple[int, ...], padding: list[tuple[int, int]]
) -> NDArray[np.float32]:
    """What each output pixel reads, and a one for the bias: (N, C, H, W) to (N·H·W, C·kh·kw + 1)."""
    padded = np.pad(features, ((0, 0), (0, 0), *padding))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))  # (N, C, H, W, kh, kw)
    read = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, features.shape[1] * kernel[0] * kernel[1])
    return np.concatenate([read, np.ones((len(read), 1), np.float32)], axis=1)
