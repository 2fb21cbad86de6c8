"""What a flavour quantizes in a given graph, and with which ranges; the file is then built for any choice of layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import onnx
from onnx import ModelProto

from quantize.calibration import TensorStatistics, collect_statistics
from quantize.equalization import equalize
from quantize.graph import (
    after,
    before_channel_norms,
    convolutions,
    dense,
    float_tensors,
    shared_levels,
    statistics_nodes,
    sums_before,
    tail,
)
from quantize.passes import (
    LEVEL,
    centre_input_on_levels,
    clip_bounds,
    drop_idle_clips,
    insert_centred_input,
    means_by_pooling,
)
from quantize.placement import Affine, insert_qdq
from quantize.ranges import Method, choose_range, scale_and_zero_point
from runtime.errors import UserError

if TYPE_CHECKING:
    from quantize.patches import Patches
    from quantize.ptq import Target

_CUT = 0.1
"""Share of a tensor's range that is given up to bring its levels within the ``Clip`` before it, which then goes."""


@dataclass(frozen=True)
class Plan:
    """A prepared FP32 graph and everything that could be quantized in it."""

    target: Target
    model: ModelProto
    """FP32, rewritten for quantization; its pixels are those of the source."""
    units: tuple[str, ...]
    """Names of the nodes that read 8-bit values, in the order of the graph: what a search may give back to float."""
    convolutions: frozenset[str]
    """Those of them that are convolutions: their weights become int8."""
    activations: Mapping[str, Affine]
    """Scale and zero point of each tensor that a unit reads (and, in ``cpu``, of the output)."""
    statistics: Mapping[str, TensorStatistics]
    """What the calibration pictures showed of these tensors, but for those whose levels are known."""
    properties: Mapping[str, str]
    """Metadata of the file."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """Tensors whose scale and zero point must stay those of another one: part to whole (``graph.shared_levels``)."""

    def build(self, floats: Collection[str] = ()) -> ModelProto:
        """The INT8 graph in which the units named in ``floats`` stay float."""
        left = set(self.units) - set(floats)
        read = {name for node in self.model.graph.node if node.name in left for name in node.input}
        outputs = {output.name for output in self.model.graph.output}
        result = insert_qdq(
            self.model,
            {name: affine for name, affine in self.activations.items() if name in read or name in outputs},
            self.convolutions & left,
            bias="float32" if self.target == "tensorrt" else "int32",
            readers=left,
        )
        drop_idle_clips(result)
        del result.graph.value_info[:]
        properties = dict(self.properties)
        if floats:
            properties["gmin.float_layers"] = " ".join(sorted(floats))
        del result.metadata_props[:]
        for key in sorted(properties):
            result.metadata_props.add(key=key, value=properties[key])
        return result


def make_plan(
    model: ModelProto,
    patches: Patches,
    *,
    target: Target,
    method: Method = "mse",
    float_tail: bool = True,
    equalized: bool = True,
) -> Plan:
    """Calibrate an FP32 graph for a flavour.

    Args:
        model: as exported; left unchanged.
        patches: what calibrates.
        target: "tensorrt" is the portable flavour: signed, symmetric, at the inputs of all convolutions, float biases.
            "cpu" is for ONNX Runtime: unsigned activations everywhere, int32 biases, an output on the 256 levels of a
            picture. "openvino" is unsigned too, but only at the inputs of dense convolutions: in that engine 8-bit
            depth-wise convolutions are slower than float ones (docs/decisions/0002-flavours.md has the profile).
        method: how a tensor's interval is chosen. Pictures are never clipped, whatever the method: the input and the
            output keep the levels k/255.
        float_tail: leave the convolution that gives the output, the sum that it reads, and what follows it, in float.
        equalized: bring the channels of a tensor to one range first (quantize/equalization.py).

    Raises:
        UserError: an operation that ONNX does not know hides the type of what a convolution reads.
    """
    prepared = onnx.shape_inference.infer_shapes(model, data_prop=True)  # TorchScript's exporter names no types
    insert_centred_input(prepared)
    centred = centre_input_on_levels(prepared)
    if target == "cpu":
        means_by_pooling(prepared)
    if equalized:
        equalize(prepared, patches.batches())
    last = tail(prepared) if float_tail else []
    ends = (*sums_before(prepared, last), *after(prepared, last))
    apart = (*ends, *statistics_nodes(prepared), *before_channel_norms(prepared))
    kept_float = {node.name for node in (*last, *apart)}
    eligible = dense(prepared) if target == "openvino" else convolutions(prepared)
    quantized = {node.name for node in eligible} - kept_float
    everywhere = target == "cpu"
    if everywhere:  # a clip would be a step of its own; before a quantizer it mostly does nothing (see build)
        readers = [n for n in prepared.graph.node if n.name not in kept_float and n.op_type != "Clip"]
    else:
        readers = [n for n in prepared.graph.node if n.name in quantized]
    floats = float_tensors(prepared)
    if untyped := [node.name for node in eligible if node.name in quantized and node.input[0] not in floats]:
        raise UserError(f"The type of what {untyped[0]} reads is unknown: an operation before it is not of ONNX.")
    watched = floats & {name for node in readers for name in node.input}
    if everywhere and not float_tail:
        watched |= {output.name for output in prepared.graph.output}
    if not everywhere:
        watched &= {node.input[0] for node in readers}
    exact = {name: affine for name, affine in _picture_levels(prepared, centred, target).items() if name in watched}
    statistics = collect_statistics(prepared, sorted(watched - set(exact)), patches.batches())
    dtype: Literal["int8", "uint8"] = "int8" if target == "tensorrt" else "uint8"
    activations = dict(exact)
    bounds = clip_bounds(prepared)
    for name, kept in statistics.items():
        low, high = choose_range(kept, method, symmetric=dtype == "int8")
        affine = Affine(*scale_and_zero_point(low, high, dtype), dtype)
        if name in bounds and (1 - _CUT) * affine.scale < (largest := affine.largest_scale(*bounds[name])):
            affine = replace(affine, scale=min(affine.scale, largest))
        activations[name] = affine
    shared = {
        part: whole
        for part, whole in (shared_levels(prepared).items() if everywhere else ())
        if part in statistics and whole in statistics
    }
    activations |= {part: activations[whole] for part, whole in shared.items()}
    return Plan(
        target=target,
        model=prepared,
        units=tuple(node.name for node in readers if any(name in activations for name in node.input)),
        convolutions=frozenset(quantized),
        activations=activations,
        statistics=statistics,
        properties={entry.key: entry.value for entry in model.metadata_props}
        | {"gmin.precision": f"int8-{target}", "gmin.quantization": f"{method}, {patches.name}"},
        shared=shared,
    )


def _picture_levels(model: ModelProto, centred: str | None, target: Target) -> dict[str, Affine]:
    """Tensors that are pictures, on the levels k/255 that 8 bits hold without error."""
    levels: dict[str, Affine] = {}
    if centred is not None:
        levels[centred] = Affine(LEVEL, 0, "int8") if target == "tensorrt" else Affine(LEVEL, 128, "uint8")
    if target != "tensorrt":
        for value in (model.graph.input[0], model.graph.output[0]):
            levels[value.name] = Affine(LEVEL, 0, "uint8")
    return levels
