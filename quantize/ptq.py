"""Post-training quantization: an FP32 ONNX file and pictures to one INT8 file with explicit Q/DQ.

python quantize/ptq.py gmin_x4.onnx -o gmin_x4_int8.onnx --calib DIV2K --target tensorrt
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, write_json
from runtime.errors import UserError
from runtime.files import atomic_write, check_writable

if TYPE_CHECKING:
    from onnx import ModelProto

    from quantize.patches import Patches
    from quantize.placement import Affine
    from quantize.ranges import Method

Target = Literal["tensorrt", "cpu", "openvino"]
MethodOption = Literal["minmax", "percentile", "entropy", "mse"]


@dataclass(frozen=True)
class Quantized:
    """What quantization gave. PSNR in dB on the held-out patches; ``drop_db`` is FP32 minus INT8, against HR luma."""

    path: str
    source: str
    target: Target
    method: str
    calibration: str
    calibration_patches: int
    held_out_patches: int
    convolutions_int8: int
    convolutions_float: int
    float_convolutions: list[str]
    size_bytes: int
    source_bytes: int
    psnr_against_fp32_db: float
    fp32_psnr_y_db: float
    int8_psnr_y_db: float
    drop_db: float
    schema: int = 1


def quantize_model(
    model: ModelProto,
    patches: Patches,
    *,
    target: Target,
    method: Method = "mse",
    float_tail: bool = True,
) -> ModelProto:
    """Quantize an FP32 graph.

    Args:
        model: as exported; left unchanged.
        patches: what calibrates.
        target: "tensorrt" is the portable flavour: signed, symmetric, at the inputs of all convolutions, float biases.
            "cpu" is for ONNX Runtime: unsigned activations everywhere, int32 biases, an output on the 256 levels of a
            picture. "openvino" is unsigned too, but only at the inputs of dense convolutions: in that engine 8-bit
            depth-wise convolutions are slower than float ones (docs/decisions/0002-flavours.md has the profile).
        method: how a tensor's interval is chosen. Pictures are never clipped, whatever the method: the input and the
            output keep the levels k/255.
        float_tail: leave the convolution that gives the output, and the sum that it reads, in float.
    """
    from quantize.calibration import collect_statistics
    from quantize.graph import convolutions, dense, float_tensors, statistics_nodes, sums_before, tail
    from quantize.passes import centre_input_on_levels, insert_centred_input
    from quantize.placement import Affine, insert_qdq
    from quantize.ranges import choose_range, scale_and_zero_point

    prepared = type(model)()
    prepared.CopyFrom(model)
    insert_centred_input(prepared)
    centred = centre_input_on_levels(prepared)
    last = tail(prepared) if float_tail else []
    kept_float = {node.name for node in (*last, *sums_before(prepared, last), *statistics_nodes(prepared))}
    eligible = dense(prepared) if target == "openvino" else convolutions(prepared)
    quantized = {node.name for node in eligible} - kept_float
    everywhere = target == "cpu"
    readers = [n for n in prepared.graph.node if (n.name not in kept_float if everywhere else n.name in quantized)]
    watched = float_tensors(prepared) & {name for node in readers for name in node.input}
    if everywhere and not float_tail:
        watched |= {output.name for output in prepared.graph.output}
    if not everywhere:
        watched &= {node.input[0] for node in readers}
    exact = {name: affine for name, affine in _picture_levels(prepared, centred, target).items() if name in watched}
    statistics = collect_statistics(prepared, sorted(watched - set(exact)), patches.batches())
    dtype: Literal["int8", "uint8"] = "int8" if target == "tensorrt" else "uint8"
    activations = dict(exact)
    for name, kept in statistics.items():
        low, high = choose_range(kept, method, symmetric=dtype == "int8")
        activations[name] = Affine(*scale_and_zero_point(low, high, dtype), dtype)
    result = insert_qdq(
        prepared,
        activations,
        quantized,
        bias="float32" if target == "tensorrt" else "int32",
        readers={node.name for node in readers},
    )
    del result.graph.value_info[:]
    properties = {entry.key: entry.value for entry in model.metadata_props}
    properties |= {"gmin.precision": f"int8-{target}", "gmin.quantization": f"{method}, {patches.name}"}
    del result.metadata_props[:]
    for key in sorted(properties):
        result.metadata_props.add(key=key, value=properties[key])
    return result


def judge(reference: bytes, candidate: bytes, patches: Patches) -> tuple[float, float, float]:
    """(PSNR of candidate against reference, luma PSNR of reference, of candidate against HR), means in dB."""
    import numpy as np
    import onnxruntime

    from data.metrics import psnr, psnr_y
    from data.sets import from_batch, to_batch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = [
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for content in (reference, candidate)
    ]
    rows = []
    for pair in patches.judges():
        batch = to_batch(pair.lr)
        float_result, int8_result = (
            session.run(None, {session.get_inputs()[0].name: batch})[0].clip(0, 1) for session in sessions
        )
        rows.append(
            (
                psnr(float_result, int8_result, peak=1.0),
                psnr_y(from_batch(float_result), pair.hr, crop=patches.scale),
                psnr_y(from_batch(int8_result), pair.hr, crop=patches.scale),
            )
        )
    against, before, after = np.mean(rows, axis=0)
    return float(against), float(before), float(after)


def _picture_levels(model: ModelProto, centred: str | None, target: Target) -> dict[str, Affine]:
    """Tensors that are pictures, on the levels k/255 that 8 bits hold without error."""
    from quantize.passes import LEVEL
    from quantize.placement import Affine

    levels: dict[str, Affine] = {}
    if centred is not None:
        levels[centred] = Affine(LEVEL, 0, "int8") if target == "tensorrt" else Affine(LEVEL, 128, "uint8")
    if target != "tensorrt":
        for value in (model.graph.input[0], model.graph.output[0]):
            levels[value.name] = Affine(LEVEL, 0, "uint8")
    return levels


app = new_app("Quantize an FP32 ONNX file to INT8.")


@app.command()
def main(
    model: Annotated[Path, typer.Argument(help="The FP32 .onnx file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The INT8 .onnx file to write.")],
    calib: Annotated[str, typer.Option(help="DIV2K, or a folder of HR pictures.")] = "DIV2K",
    target: Annotated[
        Target,
        typer.Option(help="tensorrt: portable, signed; cpu: for ONNX Runtime on CPUs; openvino: for OpenVINO on CPUs."),
    ] = "tensorrt",
    method: Annotated[MethodOption, typer.Option(help="How the interval of a tensor is chosen.")] = "mse",
    patches: Annotated[int, typer.Option(min=1, help="Pictures to calibrate on, at most.")] = 64,
    float_tail: Annotated[
        bool, typer.Option("--float-tail/--int8-tail", help="Precision of the last convolution and of what it reads.")
    ] = True,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Quantize an FP32 ONNX file to INT8 with explicit Q/DQ, and say what it cost."""
    if output.suffix.lower() != ".onnx":
        raise UserError(f"{output} must end in .onnx.")
    check_writable(output)
    from quantize.graph import check_quantizable, convolutions, read_onnx
    from quantize.lint import lint_for_tensorrt
    from quantize.patches import load_patches
    from runtime.engines.ort import OrtEngine

    source = read_onnx(model)
    check_quantizable(source, model)
    scale = OrtEngine(model, device="cpu").info.scale
    chosen = load_patches(calib, scale, patches)
    result = quantize_model(source, chosen, target=target, method=method, float_tail=float_tail)
    if target == "tensorrt" and (faults := lint_for_tensorrt(result)):
        raise RuntimeError(f"the quantized graph would not pass TensorRT: {faults}")
    content = result.SerializeToString(deterministic=True)
    against, before, after = judge(model.read_bytes(), content, chosen)
    made = {node.name for node in result.graph.node}
    int8 = [node for node in convolutions(source) if f"{node.name}_weight_dequantize" in made]
    floats = [n.name for n in convolutions(source) if n not in int8]
    with atomic_write(output) as stream:
        stream.write(content)
    report = Quantized(
        path=str(output),
        source=str(model),
        target=target,
        method=method,
        calibration=calib,
        calibration_patches=len(chosen.calibration),
        held_out_patches=len(chosen.held_out),
        convolutions_int8=len(int8),
        convolutions_float=len(floats),
        float_convolutions=floats,
        size_bytes=len(content),
        source_bytes=model.stat().st_size,
        psnr_against_fp32_db=against,
        fp32_psnr_y_db=before,
        int8_psnr_y_db=after,
        drop_db=before - after,
    )
    write_json(asdict(report), json_target)
    say(
        f"{output}: {len(content) / 1e6:.2f} MB (FP32 {report.source_bytes / 1e6:.2f} MB), "
        f"{len(int8)} INT8 and {len(floats)} float convolutions\n"
        f"on {len(chosen.held_out)} held-out patches: PSNR {against:.2f} dB against FP32; "
        f"{before:.3f} -> {after:.3f} dB on luma against HR, a drop of {before - after:.3f} dB",
        quiet=quiet,
        json_target=json_target,
    )


if __name__ == "__main__":
    run(app)
