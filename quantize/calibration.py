"""What values each tensor of a graph takes, gathered in one streaming pass with memory that does not grow.

Each tensor keeps its extremes and a histogram over [-R, R], where R is a power of two. A value outside doubles R and
merges the bins in pairs, so nothing is stored per patch and the result does not depend on their number or order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

BINS = 4096


@dataclass
class TensorStatistics:
    """Extremes and a histogram of one tensor's values; ``counts`` has ``BINS`` equal bins over [-reach, reach]."""

    low: float = np.inf
    high: float = -np.inf
    reach: float = 2.0**-20
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: NDArray[np.floating], name: str = "a tensor") -> None:
        """Count values of any shape.

        Raises:
            ValueError: a value is infinite or no number; the message has ``name``.
        """
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise ValueError(f"{name} takes infinite or undefined values")
        self.low, self.high = min(self.low, low), max(self.high, high)
        while max(-low, high) > self.reach:
            self._double()
        bins = ((values.ravel() + self.reach) * (BINS / (2 * self.reach))).astype(np.int32)
        self.counts += np.bincount(bins.clip(0, BINS - 1), minlength=BINS)

    def centres(self) -> NDArray[np.float64]:
        """Middle of each bin, (BINS,)."""
        edges = np.linspace(-self.reach, self.reach, BINS + 1)
        return (edges[:-1] + edges[1:]) / 2

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros_like(self.counts)
        self.counts[BINS // 4 : BINS // 4 + BINS // 2] = pairs
        self.reach *= 2


def collect_statistics(
    model: ModelProto, tensors: Sequence[str], images: Iterable[NDArray[np.float32]]
) -> Mapping[str, TensorStatistics]:
    """Run ``images``, each (N, 3, H, W) float32 RGB in [0, 1], through the FP32 graph and watch ``tensors``.

    Raises:
        ValueError: no image was given, or a tensor took a value that is no finite number (named in the message).
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(
        with_outputs(model, tensors).SerializeToString(), quiet_options(), providers=["CPUExecutionProvider"]
    )
    statistics = {name: TensorStatistics() for name in tensors}
    (graph_input,) = session.get_inputs()
    computed = [name for name in tensors if name != graph_input.name]
    seen = 0
    for image in images:
        results = session.run(computed, {graph_input.name: image}) if computed else []  # [] would mean all outputs
        values = dict(zip(computed, results, strict=True))
        values[graph_input.name] = image
        for name, kept in statistics.items():
            kept.add(values[name], name)
        seen += 1
    if not seen:
        raise ValueError("calibration needs at least one image")
    return statistics


def with_outputs(model: ModelProto, tensors: Sequence[str]) -> ModelProto:
    """A copy of ``model`` that also gives ``tensors`` as outputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    present = {output.name for output in copy.graph.output} | {graph_input.name for graph_input in copy.graph.input}
    for name in tensors:
        if name not in present:
            copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return copy


def quiet_options() -> object:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # patches of one size: nothing to gain, and memory stays flat
    return options
