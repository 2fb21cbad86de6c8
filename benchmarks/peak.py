"""How far an engine is from what the machine can do: multiply-accumulates a second, of files and of the best case.

The best case is a network of nothing but wide 1×1 convolutions, in which every value that is read is multiplied
hundreds of times: matrix products at their fastest in that engine and precision. What a real network misses of it goes
into depth-wise convolutions, element-wise layers and memory.

python benchmarks/peak.py
python benchmarks/peak.py ort:gmin_x4.onnx openvino:gmin_x4_int8_openvino.onnx --threads 2
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from benchmarks.protocol import LATENCY_INPUT, Size, size_from_text
from runtime.command_line import JsonOption, QuietOption, new_app, run, say, table, write_json
from runtime.errors import UserError

if TYPE_CHECKING:
    from onnx import ModelProto

BACKENDS = {"ort": ("float", "int8"), "openvino": ("float", "int8"), "openvino-bf16": ("float",)}
"""Where the best case is run, and in which forms."""
_CHANNELS, _LAYERS, _SIZE = 256, 8, Size(64, 64)


@dataclass(frozen=True)
class Peak:
    """The best case of one engine and form."""

    backend: str
    """Prefix of the engine."""
    form: str
    """"float", in the engine's own float precision, or "int8"."""
    median_ms: float
    gmacs_per_s: float
    """10^9 multiply-accumulates a second."""


@dataclass(frozen=True)
class Reached:
    """One file: what it multiplies, how fast, and the share of the same engine's best case."""

    engine: str
    backend: str
    gmacs: float
    median_ms: float
    gmacs_per_s: float
    of_float_peak: float | None
    of_int8_peak: float | None
    """None where that best case was not run."""


def best_case(form: str) -> ModelProto:
    """×2: a 1×1 convolution to 256 channels, eight among them with ReLUs, and a pixel shuffle; random weights.

    Args:
        form: "float", or "int8": unsigned activations and weights per channel, as our ``cpu`` flavour.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    from quantize.placement import Affine, insert_qdq

    draw = np.random.default_rng(0)
    widths = [3, *[_CHANNELS] * (_LAYERS + 1), 12]
    nodes, weights, inner = [], [], []
    tensor = "input"
    for i, (read, made) in enumerate(itertools.pairwise(widths)):
        values = draw.normal(scale=(2 / read) ** 0.5, size=(made, read, 1, 1)).astype(np.float32)
        weights += [
            numpy_helper.from_array(values, f"w{i}"),
            numpy_helper.from_array(np.zeros(made, np.float32), f"b{i}"),
        ]
        nodes += [
            helper.make_node("Conv", [tensor, f"w{i}", f"b{i}"], [f"c{i}"], f"conv{i}"),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"),
        ]
        tensor = f"r{i}"
        if made == read:
            inner.append(i)
    nodes.append(helper.make_node("DepthToSpace", [tensor], ["output"], "shuffle", blocksize=2, mode="CRD"))
    graph = helper.make_graph(
        nodes,
        "best_case",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3, "sh", "sw"])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if form == "float":
        return model
    affine = Affine(np.float32(8 / 255), 0, "uint8")
    readers = [f"conv{i}" for i in inner]
    return insert_qdq(model, {f"r{i - 1}": affine for i in inner}, readers, bias="int32", readers=readers)


def measure_peaks(*, threads: int, rounds: int) -> list[Peak]:
    """Run the best case in every engine and form that there is here, in turns."""
    from benchmarks.engines import open_any
    from benchmarks.latency import Contestant, measure
    from benchmarks.onnx_cost import onnx_cost
    from runtime.engines.opening import BACKENDS as ALL
    from runtime.engines.opening import installed

    found: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        contestants = []
        for form in ("float", "int8"):
            path = Path(folder) / f"{form}.onnx"
            path.write_bytes(best_case(form).SerializeToString())
            for backend, forms in BACKENDS.items():
                if form not in forms or not installed(ALL[backend]):
                    continue
                try:
                    engine = stack.enter_context(closing(open_any(f"{backend}:{path}", threads=threads)))
                except UserError:  # an engine that computes 8 bits wrongly here refuses them
                    continue
                contestants.append(Contestant(engine, f"{backend} {form}"))
                found.append((backend, form))
        macs = onnx_cost(Path(folder) / "float.onnx", _SIZE).macs
        times = measure(contestants, _SIZE, threads=threads, rounds=rounds)
    return [
        Peak(backend, form, time.median_ms, macs / 1e6 / time.median_ms)
        for (backend, form), time in zip(found, times, strict=True)
    ]


def measure_reached(specs: list[str], size: Size, peaks: list[Peak], *, threads: int, rounds: int) -> list[Reached]:
    """Time files in turns and compare them with the best cases.

    Raises:
        UserError: an engine cannot be opened, or is no ONNX file.
    """
    from benchmarks.engines import is_torch, onnx_path, open_any
    from benchmarks.latency import Contestant, measure
    from benchmarks.onnx_cost import onnx_cost
    from runtime.engines.opening import split_prefix

    for spec in specs:
        if is_torch(spec):
            raise UserError(f"{spec} would run in PyTorch; name a file with its engine, as ort:{spec}.")
    with ExitStack() as stack:
        contestants = [
            Contestant(stack.enter_context(closing(open_any(spec, threads=threads))), spec) for spec in specs
        ]
        macs = [onnx_cost(onnx_path(spec), size).macs for spec in specs]
        times = measure(contestants, size, threads=threads, rounds=rounds)
    best = {(peak.backend, peak.form): peak.gmacs_per_s for peak in peaks}
    results = []
    for spec, own, time in zip(specs, macs, times, strict=True):
        backend = split_prefix(spec)[0] or "ort"
        speed = own / 1e6 / time.median_ms
        shares = [speed / best[backend, form] if (backend, form) in best else None for form in ("float", "int8")]
        if backend == "openvino-bf16":  # the 8-bit layers of a file are the same there
            shares[1] = speed / best["openvino", "int8"] if ("openvino", "int8") in best else None
        results.append(Reached(spec, time.backend, own / 1e9, time.median_ms, speed, *shares))
    return results


app = new_app("What engines reach of the machine's best.")


@app.command()
def main(
    engines: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ENGINE]...", help="ONNX files with their back ends. Default: the shipped ones."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Size of the input. Default: 320x180.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of one inference. Default: all cores of this process.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 20,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Say how many multiply-accumulates a second files reach, and what the same engine reaches at best here."""
    from runtime.engines.opening import BACKENDS as ALL
    from runtime.engines.opening import MODELS, installed, open_engine
    from runtime.environment import available_cores, environment

    threads = threads or available_cores()
    specs = engines or [
        f"{backend}:{MODELS / file}"
        for backend, file in (
            ("ort", "gmin_x4.onnx"),
            ("ort", "gmin_x4_int8_cpu.onnx"),
            ("openvino", "gmin_x4.onnx"),
            ("openvino-bf16", "gmin_x4.onnx"),
            ("openvino", "gmin_x4_int8_openvino.onnx"),
            ("openvino-bf16", "gmin_x4_int8_openvino.onnx"),
        )
        if installed(ALL[backend])
    ]
    left_out: list[str] = []
    for spec in [] if engines else list(specs):
        try:
            open_engine(spec, threads=threads).close()
        except UserError as refusal:  # an engine that computes 8 bits wrongly here
            specs.remove(spec)
            if str(refusal) not in left_out:  # two back ends of one library say the same
                left_out.append(str(refusal))
    peaks = measure_peaks(threads=threads, rounds=rounds)
    results = measure_reached(
        specs, size_from_text(size) if size else LATENCY_INPUT, peaks, threads=threads, rounds=rounds
    )
    around = environment(threads)
    payload = {
        "schema": 1,
        "peaks": [asdict(peak) for peak in peaks],
        "results": [asdict(result) for result in results],
        "left_out": left_out,
        "environment": asdict(around),
    }
    write_json(payload, json_target)

    def share(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.0f} %"

    best = [
        {"best case": f"{p.backend} {p.form}", "ms": f"{p.median_ms:.1f}", "GMAC/s": f"{p.gmacs_per_s:.0f}"}
        for p in peaks
    ]
    rows = [
        {
            "engine": f"{r.engine.split(':')[0]}:{Path(r.engine.split(':')[-1]).name}",
            "ms": f"{r.median_ms:.1f}",
            "GMAC": f"{r.gmacs:.2f}",
            "GMAC/s": f"{r.gmacs_per_s:.0f}",
            "of float": share(r.of_float_peak),
            "of int8": share(r.of_int8_peak),
        }
        for r in results
    ]
    say(
        "\n".join(
            [
                f"{table(best)}\n\n{table(rows)}",
                f"{around.processor} ({', '.join(around.features)}), {threads} threads",
                *(f"left out: {reason}" for reason in left_out),
            ]
        ),
        quiet=quiet,
        json_target=json_target,
    )


if __name__ == "__main__":
    run(app)
