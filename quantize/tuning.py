"""Tuning of an INT8 graph against its own FP32 network: ranges, rounding and biases by gradient, no labels.

The graph is run in PyTorch with simulated quantizers. What is learnt is what a Q/DQ file can say and no more: one scale
for each activation (clipping bounds tuned by distillation, Liu et al., "2DQuant", NeurIPS 2024; gradient of the scale
as in Esser et al., "LSQ", ICLR 2020), how each weight is rounded (Nagel et al., "AdaRound", ICML 2020, here by a
straight-through shift in units of the weight's own step), and the biases, which take up what rounding left over. The
target is the FP32 network's output on the calibration pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from quantize.placement import Affine
from quantize.plan import Plan
from quantize.search import open_session
from runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from quantize.patches import Patches

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, loss)."""

_SCALE_RATE, _ROUND_RATE, _BIAS_RATE = 2e-3, 2e-2, 2e-2
_BIAS_UNIT = 32
"""Steps of the accumulator in one unit of a learnt bias."""


def tune(
    plan: Plan,
    floats: Collection[str],
    patches: Patches,
    *,
    steps: int = 200,
    batch: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """A plan with tuned ranges, weights and biases, for the layers that are quantized when ``floats`` stay float.

    Args:
        plan: as calibrated; left unchanged.
        floats: units that stay float.
        patches: the pictures to learn from, with their mirror images and quarter turns.
        steps: of Adam; the rates fall linearly to zero.
        batch: pictures a step.
        seed: of the order of the pictures.
        progress: told after each step.

    Raises:
        UserError: PyTorch is missing, or the graph has an operation that cannot be simulated.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError("Tuning needs PyTorch: pip install 'gmin-edge[torch]', or use --effort fast.") from error
    graph = _SimulatedGraph(plan, floats)
    teacher = open_session(plan.model)
    (graph_input,) = teacher.get_inputs()
    draw = np.random.default_rng(seed)
    pictures = [picture[0] for picture in patches.batches()]
    groups = [
        {"params": graph.log_scales, "lr": _SCALE_RATE},
        {"params": graph.shifts, "lr": _ROUND_RATE},
        {"params": graph.bias_shifts, "lr": _BIAS_RATE},
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]], betas=(0.9, 0.99))
    fall = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        chosen = [_turned(pictures[int(draw.integers(len(pictures)))], int(draw.integers(8))) for _ in range(batch)]
        side = min(min(picture.shape[1:]) for picture in chosen)
        lr = np.ascontiguousarray(np.stack([picture[:, :side, :side] for picture in chosen]))
        answers = [teacher.run(None, {graph_input.name: one[None]})[0] for one in lr]  # files take one picture
        expected = torch.from_numpy(np.concatenate(answers))
        loss = torch.nn.functional.mse_loss(graph(torch.from_numpy(lr)), expected)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        fall.step()
        if progress is not None:
            progress(step + 1, steps, float(loss.detach()))
    return graph.tuned(plan)


def _turned(picture: NDArray[np.float32], symmetry: int) -> NDArray[np.float32]:
    """One of the eight symmetries of the square; (C, H, W)."""
    picture = np.rot90(picture, symmetry % 4, axes=(1, 2))
    return picture[..., ::-1] if symmetry >= 4 else picture


class _SimulatedGraph:
    """A plan's graph in PyTorch, with quantizers whose parameters can be learnt."""

    def __init__(self, plan: Plan, floats: Collection[str]) -> None:
        import torch

        self._model, self._affine = plan.model, plan.activations
        self._left = set(plan.units) - set(floats)
        self._quantized = plan.convolutions & self._left
        self._constants = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
            for tensor in plan.model.graph.initializer
        }
        unknown = sorted({node.op_type for node in plan.model.graph.node} - set(_OPERATIONS))
        if unknown:
            raise UserError(f"Tuning cannot simulate {', '.join(unknown)} of this network; use --effort fast.")
        read = {name for node in plan.model.graph.node if node.name in self._left for name in node.input}
        self._shared = plan.shared
        learnt = sorted(read & set(plan.statistics) - set(plan.shared))
        self._log_scale = {name: torch.zeros((), requires_grad=True) for name in learnt}
        self._shift: dict[str, Tensor] = {}
        self._bias_shift: dict[str, Tensor] = {}
        self._bias_unit: dict[str, Tensor] = {}
        for node in plan.model.graph.node:
            if node.name not in self._quantized:
                continue
            weight = self._constants[node.input[1]]
            self._shift[node.input[1]] = torch.zeros_like(weight, requires_grad=True)
            if len(node.input) > 2:
                step = _steps(weight).flatten() * float(plan.activations[node.input[0]].scale)
                self._bias_unit[node.input[2]] = step * _BIAS_UNIT
                self._bias_shift[node.input[2]] = torch.zeros_like(step, requires_grad=True)

    @property
    def log_scales(self) -> list[Tensor]:
        return list(self._log_scale.values())

    @property
    def shifts(self) -> list[Tensor]:
        return list(self._shift.values())

    @property
    def bias_shifts(self) -> list[Tensor]:
        return list(self._bias_shift.values())

    def __call__(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 3, s·H, s·W), float32."""
        import torch

        values: dict[str, Tensor] = {self._model.graph.input[0].name: x.contiguous(memory_format=torch.channels_last)}
        rounded: dict[str, Tensor] = {}

        def value(name: str, node: NodeProto) -> Tensor | None:
            if not name:
                return None
            if name in self._constants:
                return self._constants[name]
            if node.name in self._left and name in self._affine:
                if name not in rounded:
                    rounded[name] = self._quantize(name, values[name])
                return rounded[name]
            return values[name]

        for node in self._model.graph.node:
            inputs = [value(name, node) for name in node.input]
            if node.name in self._quantized:
                inputs[1] = self._weight(node.input[1])
                if len(inputs) > 2:
                    inputs[2] = self._bias(node.input[2])
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            results = _OPERATIONS[node.op_type](attributes, *inputs)
            values |= zip(node.output, results if isinstance(results, tuple) else (results,), strict=True)
        name = self._model.graph.output[0].name
        return self._quantize(name, values[name]) if name in self._affine else values[name]

    def _quantize(self, name: str, x: Tensor) -> Tensor:
        affine = self._affine[name]
        low, high = (-127, 127) if affine.dtype == "int8" else (-affine.zero_point, 255 - affine.zero_point)
        log = self._log_scale.get(self._shared.get(name, name))
        scale = float(affine.scale) if log is None else float(affine.scale) * log.exp()
        return _straight(x / scale, low, high) * scale

    def _moved(self, name: str) -> Tensor:
        weight = self._constants[name]
        return weight + self._shift[name] * _steps(weight)

    def _weight(self, name: str) -> Tensor:
        moved = self._moved(name)
        step = _steps(moved.detach())
        return _straight(moved / step, -127, 127) * step

    def _bias(self, name: str) -> Tensor:
        return self._constants[name] + self._bias_shift[name] * self._bias_unit[name]

    def tuned(self, plan: Plan) -> Plan:
        """``plan`` with what was learnt."""
        model = ModelProto()
        model.CopyFrom(plan.model)
        for tensor in model.graph.initializer:
            learnt = None
            if tensor.name in self._shift:
                learnt = self._moved(tensor.name)
            elif tensor.name in self._bias_shift:
                learnt = self._bias(tensor.name)
            if learnt is not None:
                tensor.CopyFrom(numpy_helper.from_array(learnt.detach().numpy().astype(np.float32), tensor.name))
        activations = dict(plan.activations)
        for name, affine in plan.activations.items():
            log = self._log_scale.get(self._shared.get(name, name))
            if log is not None:
                scale = np.float32(float(affine.scale) * float(log.detach().exp()))
                activations[name] = Affine(scale, affine.zero_point, affine.dtype)
        return dataclasses.replace(plan, model=model, activations=activations)


def _steps(weight: Tensor) -> Tensor:
    """Distance of two 8-bit levels of each output channel, (O, 1, 1, 1)."""
    reach: Tensor = weight.abs().amax(dim=(1, 2, 3), keepdim=True)
    return (reach / 127).clamp_min(1e-30)


def _straight(x: Tensor, low: float, high: float) -> Tensor:
    """Rounded and clipped; the gradient is that of the clipping alone."""
    clipped = x.clamp(low, high)
    return clipped + (clipped.round() - clipped).detach()


def _conv(attributes: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    import torch

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
    import torch

    axis = attributes.get("axis", 0)
    if sizes is not None:
        return torch.split(x, [int(size) for size in sizes], dim=axis)
    return torch.chunk(x, attributes["num_outputs"], dim=axis)


def _max_pool(attributes: dict[str, Any], x: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.max_pool2d(x, tuple(attributes["kernel_shape"]), stride=tuple(attributes["strides"]))


def _resize(attributes: dict[str, Any], x: Tensor, _roi: Any, _scales: Any, sizes: Tensor) -> Tensor:
    import torch

    if attributes["mode"] != b"linear":
        raise UserError("Tuning simulates bilinear resizing only; use --effort fast.")
    return torch.nn.functional.interpolate(x, [int(s) for s in sizes[-2:]], mode="bilinear", align_corners=False)


def _shuffle(attributes: dict[str, Any], x: Tensor) -> Tensor:
    import torch

    if attributes.get("mode", b"DCR") != b"CRD":
        raise UserError("Tuning simulates the pixel shuffle of PyTorch (CRD) only; use --effort fast.")
    return torch.nn.functional.pixel_shuffle(x, attributes["blocksize"])


def _shape(attributes: dict[str, Any], x: Tensor) -> Tensor:
    import torch

    return torch.tensor(x.shape[attributes.get("start", 0) : attributes.get("end", x.ndim)])


def _concat(attributes: dict[str, Any], *parts: Tensor) -> Tensor:
    import torch

    return torch.cat(parts, dim=attributes["axis"])


def _gelu(_attributes: dict[str, Any], x: Tensor) -> Tensor:
    import torch

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
