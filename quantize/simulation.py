"""An INT8 graph in PyTorch, with quantizers whose parameters can be learnt.

What is learnt is what a Q/DQ file can say and no more: one scale for each activation (clipping bounds tuned by
distillation, Liu et al., "2DQuant", NeurIPS 2024; gradient of the scale as in Esser et al., "LSQ", ICLR 2020), the
weights, by a straight-through shift in units of their own step (over a few steps this chooses how each is rounded, as
Nagel et al., "AdaRound", ICML 2020, over many it is quantization-aware training), and the biases, which take up what
rounding left over.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn

from quantize.passes import clip_bounds
from quantize.plan import Plan
from runtime.errors import UserError
from training.depthwise import can_do, depthwise

_WEIGHT_UNIT = 10
"""Steps of a weight in one unit of its learnt shift, so that all parameters of a graph learn at one rate."""
_BIAS_UNIT = 320
"""Steps of the accumulator in one unit of a learnt shift of a bias."""


class SimulatedGraph(nn.Module):
    """A plan's graph with simulated quantizers: (N, 3, H, W) to (N, 3, s·H, s·W), float32, any N.

    All parameters begin at 0, where the graph is the plan's own file, and are in units that suit one learning rate
    of about 2e-3. What they are relative to is kept in buffers, so a state dict is complete.
    """

    def __init__(self, plan: Plan, floats: Collection[str], *, cpu_kernels: bool = False) -> None:
        """Take up a plan, of which the units named in ``floats`` stay float; their weights are not learnt.

        Args:
            plan: as calibrated; left unchanged.
            floats: units that stay float.
            cpu_kernels: depth-wise convolutions by ``training/depthwise.c``, which needs a C compiler.

        Raises:
            UserError: the graph has an operation that cannot be simulated.
        """
        super().__init__()
        self._plan, self._cpu_kernels = plan, cpu_kernels
        self._left = set(plan.units) - set(floats)
        self._quantized = plan.convolutions & self._left
        self._constants: dict[str, str] = {}
        for tensor in plan.model.graph.initializer:
            self._constants[tensor.name] = self._keep(torch.from_numpy(numpy_helper.to_array(tensor).copy()))
        unknown = sorted({node.op_type for node in plan.model.graph.node} - set(_OPERATIONS))
        if unknown:
            raise UserError(
                f"Training cannot simulate {', '.join(unknown)} of this network; use quantize/ptq.py --effort fast."
            )
        read = {name for node in plan.model.graph.node if node.name in self._left for name in node.input}
        self._scale = {
            name: self._keep(torch.tensor(float(affine.scale), dtype=torch.float64))
            for name, affine in plan.activations.items()
        }
        self._largest = {
            name: float(largest)
            for name, bounds in clip_bounds(plan.model).items()
            if (affine := plan.activations.get(name)) and affine.scale <= (largest := affine.largest_scale(*bounds))
        }
        self._moves: dict[str, int] = {}
        self.scale_moves, self.weight_moves, self.bias_moves = (nn.ParameterList() for _ in range(3))
        for name in sorted(read & set(plan.statistics) - set(plan.shared)):
            self._add(self.scale_moves, name, torch.zeros(()))
        for node in plan.model.graph.node:
            if node.name in self._quantized:
                self._add(self.weight_moves, node.input[1], torch.zeros_like(self._constant(node.input[1])))
                if len(node.input) > 2:
                    self._add(self.bias_moves, node.input[2], torch.zeros_like(self._constant(node.input[2])))

    def _keep(self, value: Tensor) -> str:
        name = f"kept{len(self._buffers)}"  # names of tensors have characters that those of buffers may not have
        self.register_buffer(name, value)
        return name

    def _add(self, moves: nn.ParameterList, name: str, zeros: Tensor) -> None:
        if name not in self._moves:  # two convolutions may read one weight
            self._moves[name] = len(moves)
            moves.append(nn.Parameter(zeros))

    def _constant(self, name: str) -> Tensor:
        return self.get_buffer(self._constants[name])

    def forward(self, x: Tensor) -> Tensor:
        """Run the graph."""
        graph = self._plan.model.graph
        values: dict[str, Tensor] = {graph.input[0].name: x.contiguous(memory_format=torch.channels_last)}
        rounded: dict[str, Tensor] = {}

        def value(name: str, node: NodeProto) -> Tensor | None:
            if not name:
                return None
            if name in self._constants:
                return self._constant(name)
            if node.name in self._left and name in self._scale:
                if name not in rounded:
                    rounded[name] = self._round(name, values[name])
                return rounded[name]
            return values[name]

        for node in graph.node:
            inputs = [value(name, node) for name in node.input]
            if node.name in self._quantized:
                inputs[1] = self._weight(node.input[1])
                if len(inputs) > 2:
                    inputs[2] = self._bias(node.input[2], node)
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Split":
                attributes.setdefault("num_outputs", len(node.output))  # as up to opset 17
            fast = self._cpu_kernels and node.op_type == "Conv"
            operation: Callable[..., Any] = _fast_conv if fast else _OPERATIONS[node.op_type]
            results = operation(attributes, *inputs)
            values |= zip(node.output, results if isinstance(results, tuple) else (results,), strict=True)
        name = graph.output[0].name
        return self._round(name, values[name]) if name in self._scale else values[name]

    def _move(self, name: str) -> Tensor | None:
        """The learnt logarithm of a scale's change, shared by the parts of a whole; None where it is not learnt."""
        place = self._moves.get(self._plan.shared.get(name, name))
        return None if place is None else self.scale_moves[place]

    def _most(self, name: str) -> float:
        """The scale at which a tensor's levels reach the bounds of the ``Clip`` that gives it, if they do not yet.

        A level past them would do nothing but keep that ``Clip``, a step of its own, in the file. A scale that training
        drives there stays there: no gradient brings it back.
        """
        return self._largest.get(self._plan.shared.get(name, name), math.inf)

    def _round(self, name: str, x: Tensor) -> Tensor:
        affine = self._plan.activations[name]
        low, high = (-128, 127) if affine.dtype == "int8" else (-affine.zero_point, 255 - affine.zero_point)
        scale, move = self.get_buffer(self._scale[name]).float(), self._move(name)
        if move is not None:
            scale = (scale * move.exp()).clamp(max=self._most(name))
        result: Tensor = _Round.apply(x, scale, low, high)  # type: ignore[no-untyped-call]
        return result

    def _moved(self, name: str) -> Tensor:
        weight, move = self._constant(name), self.weight_moves[self._moves[name]]
        result: Tensor = weight + move * (_WEIGHT_UNIT * _steps(weight))
        return result

    def _weight(self, name: str) -> Tensor:
        moved = self._moved(name)
        step = _steps(moved.detach())
        return _straight(moved / step, -127, 127) * step

    def _bias(self, name: str, node: NodeProto) -> Tensor:
        step = _steps(self._constant(node.input[1])).flatten() * self.get_buffer(self._scale[node.input[0]]).float()
        result: Tensor = self._constant(name) + self.bias_moves[self._moves[name]] * (_BIAS_UNIT * step)
        return result

    def learnt(self) -> Plan:
        """The plan, with what was learnt."""
        model = ModelProto()
        model.CopyFrom(self._plan.model)
        found: dict[str, Tensor] = {}
        for node in model.graph.node:
            if node.name in self._quantized:
                found[node.input[1]] = self._moved(node.input[1])
                if len(node.input) > 2:
                    found[node.input[2]] = self._bias(node.input[2], node)
        for tensor in model.graph.initializer:
            if tensor.name in found:
                array = found[tensor.name].detach().numpy().astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
        activations = dict(self._plan.activations)
        for name, affine in self._plan.activations.items():
            if (move := self._move(name)) is not None:
                scale = float(self.get_buffer(self._scale[name])) * float(move.detach().exp())
                activations[name] = dataclasses.replace(affine, scale=np.float32(min(scale, self._most(name))))
        return dataclasses.replace(self._plan, model=model, activations=activations)


class _Round(torch.autograd.Function):
    """Values on the levels of a scale, and the gradients of the value and of the scale, in few passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        levels = x / scale
        clipped = levels.clamp(low, high)
        rounded = clipped.round()
        inside = clipped == levels
        ctx.save_for_backward(inside, torch.where(inside, rounded - levels, rounded))
        return rounded.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        inside, slope = ctx.saved_tensors
        return torch.where(inside, gradient, 0), (gradient * slope).sum(), None, None


def _fast_conv(attributes: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    pads, dilations = attributes.get("pads", [0, 0, 0, 0]), attributes.get("dilations", [1, 1])
    same = bias is not None and len(set(pads)) == 1
    strides = attributes.get("strides", [1, 1])
    if same and can_do(weight.shape, attributes.get("group", 1), strides, dilations, pads[0]):
        return depthwise(x, weight, bias, dilations[0])
    return _conv(attributes, x, weight, bias)


def _steps(weight: Tensor) -> Tensor:
    """Distance of two 8-bit levels of each output channel, (O, 1, 1, 1)."""
    reach: Tensor = weight.abs().amax(dim=(1, 2, 3), keepdim=True)
    return (reach / 127).clamp_min(1e-30)


def _straight(x: Tensor, low: float, high: float) -> Tensor:
    """Rounded and clipped; the gradient is that of the clipping alone."""
    clipped = x.clamp(low, high)
    return clipped + (clipped.round() - clipped).detach()


def _conv(attributes: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    pads = attributes.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:
        x, pads = torch.nn.functional.pad(x, (pads[1], pads[3], pads[0], pads[2])), [0, 0, 0, 0]
    return torch.nn.functional.conv2d(
        x,
        weight,
        bias,
        stride=tuple(attributes.get("strides", [1, 1])),
        padding=tuple(pads[:2]),
        dilation=tuple(attributes.get("dilations", [1, 1])),
        groups=attributes.get("group", 1),
    )


def _mean(attributes: dict[str, Any], x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = [int(axis) for axis in (attributes["axes"] if axes is None else axes)]
    return x.mean(dim=dims, keepdim=bool(attributes.get("keepdims", 1)))


def _split(attributes: dict[str, Any], x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return torch.split(x, [int(size) for size in sizes], dim=axis)
    return torch.chunk(x, attributes["num_outputs"], dim=axis)


def _max_pool(attributes: dict[str, Any], x: Tensor) -> Tensor:
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    if top or left or bottom or right:
        x = torch.nn.functional.pad(x, (left, right, top, bottom), value=-torch.inf)
    return torch.nn.functional.max_pool2d(
        x,
        tuple(attributes["kernel_shape"]),
        stride=tuple(attributes.get("strides", [1, 1])),
        dilation=tuple(attributes.get("dilations", [1, 1])),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )


def _resize(
    attributes: dict[str, Any], x: Tensor, _roi: Any = None, _scales: Any = None, sizes: Tensor | None = None
) -> Tensor:
    if attributes.get("mode", b"nearest") != b"linear" or sizes is None:
        raise UserError("Training simulates bilinear resizing to a given size only; use quantize/ptq.py --effort fast.")
    return torch.nn.functional.interpolate(x, [int(s) for s in sizes[-2:]], mode="bilinear", align_corners=False)


def _shuffle(attributes: dict[str, Any], x: Tensor) -> Tensor:
    if attributes.get("mode", b"DCR") != b"CRD":
        raise UserError("Training simulates PyTorch's pixel shuffle (CRD) only; use quantize/ptq.py --effort fast.")
    return torch.nn.functional.pixel_shuffle(x, attributes["blocksize"])


def _shape(attributes: dict[str, Any], x: Tensor) -> Tensor:
    return torch.tensor(x.shape[attributes.get("start", 0) : attributes.get("end", x.ndim)])


def _concat(attributes: dict[str, Any], *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=attributes["axis"])


def _gelu(_attributes: dict[str, Any], x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "Conv": _conv,
    "Gelu": _gelu,
    "Sigmoid": lambda _, x: x.sigmoid(),
    "Relu": lambda _, x: x.relu(),
    "LeakyRelu": lambda attributes, x: x.clamp_min(0) + attributes.get("alpha", 0.01) * x.clamp_max(0),
    "Clip": lambda _, x, low=None, high=None: x.clamp(low, high),
    "Add": lambda _, a, b: a + b,
    "Sub": lambda _, a, b: a - b,
    "Mul": lambda _, a, b: a * b,
    "Div": lambda _, a, b: a / b,
    "Pow": lambda _, a, b: a**b,
    "Sqrt": lambda _, x: x.sqrt(),
    "ReduceMean": _mean,
    "GlobalAveragePool": lambda _, x: x.mean(dim=(2, 3), keepdim=True),
    "Concat": _concat,
    "Split": _split,
    "MaxPool": _max_pool,
    "Resize": _resize,
    "Shape": _shape,
    "DepthToSpace": _shuffle,
}
