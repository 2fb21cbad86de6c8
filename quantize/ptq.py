"""Post-training quantization: an FP32 ONNX file and pictures to one INT8 file with explicit Q/DQ.

python quantize/ptq.py gmin_x4.onnx -o gmin_x4_int8.onnx --calib DIV2K --target tensorrt
python quantize/ptq.py lkdn_x4.onnx -o lkdn_x4_int8.onnx --effort best --max-drop 0.03
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
    from collections.abc import Collection, Sequence

    from onnx import ModelProto

    from quantize.patches import Patches
    from quantize.plan import Plan
    from quantize.ranges import Method
    from quantize.search import Judge, SearchResult
    from quantize.timing import EngineTime

Target = Literal["tensorrt", "cpu", "openvino"]
Effort = Literal["fast", "best"]
Made = Literal["fast", "best", "qat"]
MethodOption = Literal["minmax", "percentile", "entropy", "mse"]
KeepFloatOption = Annotated[
    list[str] | None, typer.Option(help="Layer of the graph that stays float, as of gmin.float_layers; repeatable.")
]


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
    effort: Made = "fast"
    max_drop_db: float | None = None
    within: bool = True
    """Whether the drop on the held-out patches is at most the one allowed."""
    float_layers: tuple[str, ...] = ()
    """Of those that could be quantized, the ones that a search or the user left in float, in the order of the graph."""
    search: SearchResult | None = None
    """What was measured layer by layer; None where no search was asked for or needed."""
    times: tuple[EngineTime, ...] = ()
    """FP32 and this file in every engine for CPUs that is here; empty where they were not timed."""
    schema: int = 3


_SEARCH_PICTURES = 12
_SEARCH_SHARE = 0.8
"""Of the drop that is allowed: the search aims below it, for the pictures that judge are others than its own."""


def improve(
    plan: Plan,
    patches: Patches,
    *,
    effort: Effort = "fast",
    max_drop: float | None = None,
    steps: int = 100,
    state: Path | None = None,
    timed: bool = False,
    quiet: bool = True,
) -> tuple[Plan, SearchResult | None]:
    """Tune a calibrated plan and find the layers that must stay float.

    Args:
        plan: as ``make_plan`` gives it.
        patches: what it was calibrated on.
        effort: "best" tunes ranges, rounding and biases by gradient first (needs PyTorch, minutes).
        max_drop: luma PSNR in dB that may be lost; None keeps every layer in 8 bits.
        steps: of the tuning.
        state: where an interrupted search goes on from.
        timed: time the candidates too, in the engine that the flavour is for.
        quiet: no progress bar.
    """
    from tqdm import tqdm

    judge = search_judge(plan.model, patches)
    if effort == "best":
        from quantize.tuning import tune

        with tqdm(total=steps, desc="tuning", unit="step", leave=False, disable=True if quiet else None) as bar:
            tuned = tune(plan, (), patches, steps=steps, progress=lambda *_: bar.update())
        if judge.mse(tuned.build()) < judge.mse(plan.build()):
            plan = tuned
    if max_drop is None:
        return plan, None
    return plan, give_back(plan, judge, max_drop=max_drop, state=state, timed=timed, quiet=quiet)


def search_judge(model: ModelProto, patches: Patches) -> Judge:
    """What a search measures against: an FP32 graph's answers to some of the pictures that calibrated."""
    from quantize.search import Judge

    return Judge(model, [patches.pair(path) for path in patches.calibration[:_SEARCH_PICTURES]], patches.scale)


def give_back(
    plan: Plan, judge: Judge, *, max_drop: float, state: Path | None = None, timed: bool = False, quiet: bool = True
) -> SearchResult:
    """Find the layers that must stay float for a drop of at most ``max_drop`` dB; arguments as of ``improve``."""
    from tqdm import tqdm

    from quantize.search import search

    timer = None
    if timed and plan.target != "tensorrt":
        from quantize.timing import time_in_turns

        def timer(models: Sequence[ModelProto]) -> list[tuple[float, float]]:
            return time_in_turns(models, "ort" if plan.target == "cpu" else "openvino-bf16")

    with tqdm(total=len(plan.units), desc="layers", unit="layer", leave=False, disable=True if quiet else None) as bar:
        return search(
            plan,
            judge,
            max_drop_db=_SEARCH_SHARE * max_drop,
            state=state,
            timer=timer,
            progress=lambda *_: bar.update(),
        )


def named_floats(plan: Plan, names: Sequence[str], max_drop: float | None) -> tuple[str, ...]:
    """The layers named to stay float.

    Raises:
        UserError: there is no such layer in the plan, or a search was asked for as well.
    """
    if names and max_drop is not None:
        raise UserError("--max-drop searches the float layers that --keep-float names: give one of them.")
    unknown = sorted(set(names) - set(plan.units))
    if unknown:
        there = f"there is {plan.units[0]}" if plan.units else "there is none at all"
        raise UserError(f"No layer that can be quantized is called {', '.join(unknown)}; {there}.")
    return tuple(names)


def quantize_model(
    model: ModelProto, patches: Patches, *, target: Target, method: Method = "mse", float_tail: bool = True
) -> ModelProto:
    """Quantize an FP32 graph in one go, without a search; the arguments are those of ``make_plan``."""
    from quantize.plan import make_plan

    return make_plan(model, patches, target=target, method=method, float_tail=float_tail).build()


def judge(reference: bytes, candidate: bytes, patches: Patches) -> tuple[float, float, float]:
    """(PSNR of candidate against reference, luma PSNR of reference, of candidate against HR), means in dB.

    No picture counts for more than 120 dB: a black one may come out exactly, which is infinitely many.
    """
    import numpy as np
    import onnx

    from data.metrics import psnr, psnr_y
    from data.sets import from_batch, to_batch
    from quantize.search import HIGHEST_DB, open_session

    sessions = [open_session(onnx.load_model_from_string(content)) for content in (reference, candidate)]
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
    against, before, after = np.minimum(rows, HIGHEST_DB).mean(axis=0)
    return float(against), float(before), float(after)


def check_outputs(output: Path, page: Path | None) -> None:
    """Refuse what could not be written at the end, before the work begins."""
    if output.suffix.lower() != ".onnx":
        raise UserError(f"{output} must end in .onnx.")
    check_writable(output)
    if page is not None:
        check_writable(page)


def write_quantized(
    plan: Plan,
    found: SearchResult | None,
    source: Path,
    output: Path,
    patches: Patches,
    *,
    method: str,
    calibration: str,
    effort: Made,
    max_drop: float | None,
    floats: Collection[str] = (),
    timed: bool = False,
    fitted: bool = True,
) -> Quantized:
    """Write the file of a plan with float layers, those ``found`` or ``floats``, and score it on held-out patches.

    Its last convolution, where float, is first ``fitted`` to FP32's answer: not where the plan learnt another one.
    """
    import onnx

    from quantize.graph import convolutions, read_onnx
    from quantize.lint import lint_for_tensorrt
    from quantize.refit import refit_tail
    from quantize.timing import time_everywhere

    kept = found.floats if found else tuple(floats)
    if fitted:
        plan = refit_tail(plan, read_onnx(source), patches, kept)
    result = plan.build(kept)
    if plan.target == "tensorrt" and (faults := lint_for_tensorrt(result)):
        raise RuntimeError(f"the quantized graph would not pass TensorRT: {faults}")
    content = result.SerializeToString(deterministic=True)
    against, before, after = judge(source.read_bytes(), content, patches)
    made = {node.name for node in result.graph.node}
    names = [node.name for node in convolutions(plan.model)]
    floats = [name for name in names if f"{name}_weight_dequantize" not in made]
    with atomic_write(output) as stream:
        stream.write(content)
    return Quantized(
        path=str(output),
        source=str(source),
        target=plan.target,
        method=method,
        calibration=calibration,
        calibration_patches=len(patches.calibration),
        held_out_patches=len(patches.held_out),
        convolutions_int8=len(names) - len(floats),
        convolutions_float=len(floats),
        float_convolutions=floats,
        float_layers=tuple(name for name in plan.units if name in kept),
        size_bytes=len(content),
        source_bytes=source.stat().st_size,
        psnr_against_fp32_db=against,
        fp32_psnr_y_db=before,
        int8_psnr_y_db=after,
        drop_db=before - after,
        effort=effort,
        max_drop_db=max_drop,
        within=max_drop is None or before - after <= max_drop,
        search=found,
        times=time_everywhere(onnx.load(source), result) if timed and plan.target != "tensorrt" else (),
    )


def tell(report: Quantized, plan: Plan, page: Path | None, *, quiet: bool, json_target: str | None) -> None:
    """Say what was written and what it lost, as a page, as JSON and in words; exit code 3 if it is too much."""
    if page is not None:
        from quantize.report import write_report

        write_report(report, plan, page)
    write_json(asdict(report), json_target)
    say(
        f"{report.path}: {report.size_bytes / 1e6:.2f} MB (FP32 {report.source_bytes / 1e6:.2f} MB), "
        f"{report.convolutions_int8} INT8 and {report.convolutions_float} float convolutions\n"
        f"on {report.held_out_patches} held-out patches: PSNR {report.psnr_against_fp32_db:.2f} dB against FP32; "
        f"{report.fp32_psnr_y_db:.3f} -> {report.int8_psnr_y_db:.3f} dB on luma against HR, "
        f"a drop of {report.drop_db:.3f} dB",
        quiet=quiet,
        json_target=json_target,
    )
    if not report.within:
        say(f"This is more than the {report.max_drop_db} dB allowed.", quiet=quiet, json_target=json_target)
        raise typer.Exit(3)


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
    effort: Annotated[
        Effort, typer.Option(help="best: tune ranges, rounding and biases by gradient too; PyTorch, minutes.")
    ] = "fast",
    max_drop: Annotated[
        float | None, typer.Option(min=0, help="dB that may be lost; layers are given back to float until it is kept.")
    ] = None,
    keep_float: KeepFloatOption = None,
    timed: Annotated[
        bool, typer.Option("--time/--no-time", help="Time the file, and the choices of --max-drop, on this machine.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option("--report", help="An HTML page to write: layers, ranges, loss against time.")
    ] = None,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Quantize an FP32 ONNX file to INT8 with explicit Q/DQ, and say what it cost.

    Exit code 3: the file is written, but loses more on the held-out patches than --max-drop allows.
    """
    check_outputs(output, page)
    if timed and target == "tensorrt":
        raise UserError("--time has no engine for tensorrt here: time the plan on its device, benchmarks/latency.py.")
    from quantize.graph import check_quantizable, read_onnx
    from quantize.patches import load_patches
    from quantize.plan import make_plan
    from runtime.engines.ort import OrtEngine

    source = read_onnx(model)
    check_quantizable(source, model)
    info = OrtEngine(model, device="cpu").info
    chosen = load_patches(calib, info.scale, patches, least=info.minimum_size)
    plan = make_plan(source, chosen, target=target, method=method, float_tail=float_tail)
    floats = named_floats(plan, keep_float or (), max_drop)
    state = output.with_suffix(".search.json")  # a search that is interrupted goes on from there
    plan, found = improve(plan, chosen, effort=effort, max_drop=max_drop, state=state, timed=timed, quiet=quiet)
    report = write_quantized(
        plan,
        found,
        model,
        output,
        chosen,
        method=method,
        calibration=calib,
        effort=effort,
        max_drop=max_drop,
        floats=floats,
        timed=timed,
    )
    if found is not None:
        state.unlink(missing_ok=True)
    tell(report, plan, page, quiet=quiet, json_target=json_target)


if __name__ == "__main__":
    run(app)
