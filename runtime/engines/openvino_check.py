"""Whether OpenVINO computes 8-bit convolutions rightly on this processor: asked of the library itself, not of a table.

Two faults are known (OpenVINO 2026.4.1, x86; each can be seen on any newer processor by ``ONEDNN_MAX_CPU_ISA``):

* Without VNNI, products of unsigned activations and weights are summed in pairs of 16 bits, which overflow: pictures of
  the shipped INT8 files fall to 28 dB against FP32.
* Without AMX, signed activations that come out of a concatenation are computed wrongly, as the library moves the
  quantizers in front of it: 36 dB instead of 56 for the file for TensorRT.

So a small network with a known answer is run before the first 8-bit file, whole numbers all along.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import UserError

_CHANNELS, _KERNELS, _SIDE = 32, 16, 6
_STEP = 0.5
"""Distance of two levels; exact, and not 1, which the library would leave out."""


def check_eight_bits(path: Path, model: Any) -> None:
    """Refuse a network whose 8-bit layers this library computes wrongly on this processor.

    Args:
        path: where the network was read from, for the message.
        model: an ``openvino.Model`` as read, not yet compiled. One without quantizers always passes.

    Raises:
        UserError: an answer would be wrong.
    """
    quantizers = [node for node in model.get_ops() if node.get_type_name() == "FakeQuantize"]
    if not quantizers:
        return
    if not computes_rightly(signed=False):
        reason = "OpenVINO's 8-bit sums overflow on this processor, which has no VNNI"
        raise UserError(f"{path} is quantized, and {reason}: use ONNX Runtime (ort:), or the FP32 file.", reason=reason)
    stored = {
        reader.get_node().get_output_element_type(0).get_type_name()
        for node in quantizers
        for reader in node.output(0).get_target_inputs()
    }
    if "i8" in stored and not computes_rightly(signed=True):
        raise UserError(
            f"{path} is quantized with signed activations, as for TensorRT, and OpenVINO computes some of them wrongly "
            "on this processor: use ONNX Runtime (ort:), or quantize with --target openvino."
        )


@functools.cache
def computes_rightly(*, signed: bool) -> bool:
    """Whether a 1×1 convolution of 8-bit values behind a concatenation gives the sums that integers give.

    Args:
        signed: int8 activations around 0; else uint8 ones. Weights are int8 either way. About 50 ms, once a process.
    """
    import openvino
    from openvino import opset13 as op

    low, high = (-128, 127) if signed else (0, 255)
    draw = np.random.default_rng(0)
    x = draw.integers(low, high + 1, (1, _CHANNELS, _SIDE, _SIDE))
    weight = draw.integers(-127, 128, (_KERNELS, _CHANNELS, 1, 1)).astype(np.int8)

    def constant(value: float) -> Any:
        return op.constant(np.float32(value))

    # the form in which the ONNX reader writes Q/DQ; one computed and one untouched part, as signed values go wrong then
    source = op.parameter([1, _CHANNELS, _SIDE, _SIDE], np.float32)
    halves = op.split(source, 1, 2)
    joined = op.concat([op.relu(halves.output(0)), halves.output(1)], 1)
    ends = constant(low * _STEP), constant(high * _STEP)
    levels = op.fake_quantize(joined, *ends, constant(low), constant(high), 256)
    stored = op.convert(op.convert(levels, "i8" if signed else "u8"), "f32")
    activations = op.multiply(stored, constant(_STEP))
    weights = op.multiply(op.convert(op.constant(weight), "f32"), op.constant(np.ones((_KERNELS, 1, 1, 1), np.float32)))
    result = op.convolution(activations, weights, [1, 1], [0, 0], [0, 0], [1, 1])
    model = openvino.Model([result], [source], "known_answer")
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    expected_input = np.concatenate([x[:, : _CHANNELS // 2].clip(0), x[:, _CHANNELS // 2 :]], axis=1)
    expected = np.einsum("oc,nchw->nohw", weight[:, :, 0, 0].astype(int), expected_input)
    found = compiled(x.astype(np.float32) * np.float32(_STEP))[0] / _STEP
    return bool(np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max())
