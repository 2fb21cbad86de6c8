"""Quantization-aware fine-tuning: an INT8 graph learns to answer as its own FP32 network does, and is written as Q/DQ.

python quantize/qat.py gmin_x4.onnx -o gmin_x4_int8_qat.onnx --target cpu --run runs/qat
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from quantize.ptq import (
    KeepFloatOption,
    MethodOption,
    Target,
    check_outputs,
    give_back,
    named_floats,
    search_judge,
    tell,
    write_quantized,
)
from runtime.command_line import JsonOption, QuietOption, new_app, run, say
from runtime.errors import UserError
from runtime.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Collection

    from onnx import ModelProto
    from torch import Tensor

    from quantize.plan import Plan
    from training.options import TrainingOptions

RECIPE = Path(__file__).resolve().parents[1] / "training/recipes/qat_x4.toml"


def fine_tune(
    plan: Plan,
    options: TrainingOptions,
    *,
    scale: int,
    reference: ModelProto,
    floats: Collection[str] = (),
    max_steps: int | None = None,
    quiet: bool = True,
    json_target: str | None = None,
) -> Plan | None:
    """Fine-tune everything that a plan's file can say, in the loop that trains networks, resuming ``options.output``.

    Args:
        plan: as calibrated; left unchanged.
        options: the run. A ``teacher`` that they name answers instead of ``reference``.
        scale: of the network.
        reference: the FP32 network, which answers each crop.
        floats: units that stay float, and are not trained.
        max_steps: stop after so many steps of this call, as if interrupted.
        quiet: print nothing.
        json_target: where the caller writes JSON; text goes to stderr where that is stdout.

    Returns:
        The plan with the averaged weights, scales and biases, on every process; None where the run is not over.

    Raises:
        UserError: there are no images, one of them is a benchmark's, the graph cannot be simulated, or the run was
            begun with another graph.
    """
    import numpy as np

    try:
        import torch
    except ImportError as error:
        raise UserError("Training needs PyTorch: pip install 'gmin-edge[torch]'.") from error
    from tqdm import tqdm

    from model.checkpoint import read_state
    from quantize.search import open_session
    from quantize.simulation import SimulatedGraph
    from training.log import shown
    from training.loop import train
    from training.processes import joined
    from training.train import gather

    if options.cpu_kernels == "bf16":
        raise UserError("An INT8 graph is not trained in bfloat16: cpu_kernels is torch, fp32 or auto here.")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    session = open_session(reference, threads=options.threads)  # idle ones spin, which costs runs beside this one
    (graph_input,) = session.get_inputs()

    def teach(lr: Tensor) -> Tensor:
        pictures = lr.contiguous().numpy()
        answers = [session.run(None, {graph_input.name: one[None]})[0] for one in pictures]  # files take one picture
        return torch.from_numpy(np.concatenate(answers))

    begun, graph = options.output / "graph.sha256", _identity(plan, floats)
    if begun.is_file() and begun.read_text("utf-8").strip() != graph:
        raise UserError(
            f"The run in {options.output} was begun with another network, calibration or choice of float layers; "
            "name another --run."
        )
    with joined() as process:
        quiet = quiet or not process.first
        images, validation = gather(options, scale, process, quiet=quiet)
        fast = options.cpu_kernels != "torch" and process.device == "cpu"
        module = SimulatedGraph(plan, floats, cpu_kernels=fast)
        process.wait()  # nobody writes before all have read
        if process.first:
            options.output.mkdir(parents=True, exist_ok=True)
            with atomic_write(begun) as stream:
                stream.write(f"{graph}\n".encode())
        with tqdm(total=options.steps, desc="fine-tuning", unit="step", disable=True if quiet else None) as bar:
            result = train(
                module,
                options,
                images,
                validation,
                scale=scale,
                process=process,
                max_steps=max_steps,
                teach=None if options.teacher is not None else teach,
                report=shown(bar, lambda text: say(text, quiet=quiet, json_target=json_target), options.steps),
            )
        process.wait()  # the first one has written the averaged weights
    if not result.finished:
        return None
    how = f"{options.steps} steps of training, {plan.properties['gmin.quantization']}"
    plan = replace(plan, properties={**plan.properties, "gmin.quantization": how})
    averaged = SimulatedGraph(plan, floats)
    averaged.load_state_dict(read_state(options.output / "ema.safetensors"))
    return averaged.learnt()


def _identity(plan: Plan, floats: Collection[str]) -> str:
    """What a checkpoint of the simulated graph fits to: weights, layers and zero points; scales it brings along."""
    import numpy as np
    from onnx import numpy_helper

    digest = hashlib.sha256()
    for tensor in plan.model.graph.initializer:
        digest.update(f"{tensor.name} ".encode() + np.ascontiguousarray(numpy_helper.to_array(tensor)).tobytes())
    for name, affine in sorted(plan.activations.items()):
        digest.update(f"{name} {affine.zero_point} {affine.dtype} ".encode())
    digest.update(" ".join(sorted(set(plan.units) - set(floats))).encode())
    return digest.hexdigest()


app = new_app("Fine-tune an INT8 graph by quantization-aware training.")


@app.command()
def main(
    model: Annotated[Path, typer.Argument(help="The FP32 .onnx file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The INT8 .onnx file to write.")],
    run_folder: Annotated[Path, typer.Option("--run", help="Folder of the run. One that was begun is resumed.")],
    config: Annotated[
        Path | None, typer.Option(help="TOML file of training options [training/recipes/qat_x4.toml].")
    ] = None,
    calib: Annotated[str, typer.Option(help="DIV2K, or a folder of HR pictures.")] = "DIV2K",
    target: Annotated[Target, typer.Option(help="As of quantize/ptq.py.")] = "tensorrt",
    method: Annotated[MethodOption, typer.Option(help="How the interval of a tensor is chosen at the start.")] = "mse",
    patches: Annotated[int, typer.Option(min=1, help="Pictures to calibrate on, at most.")] = 64,
    float_tail: Annotated[
        bool, typer.Option("--float-tail/--int8-tail", help="Precision of the last convolution and of what it reads.")
    ] = True,
    max_drop: Annotated[
        float | None,
        typer.Option(min=0, help="dB that may be lost before training; layers stay float for it."),
    ] = None,
    keep_float: KeepFloatOption = None,
    data: Annotated[Path | None, typer.Option(help="Folder of HR images [training in the data folder].")] = None,
    validation: Annotated[
        list[str] | None, typer.Option(help="Glob of images in the data folder to hold out and score; repeatable.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for decoded images and the teacher's answers [in the run's folder].")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Name or ENGINE to learn from [the FP32 file].")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Length of the whole run.")] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=0, help="Stop after this many steps, without changing the plan.")
    ] = None,
    page: Annotated[Path | None, typer.Option("--report", help="An HTML page to write: layers, ranges, loss.")] = None,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Fine-tune an INT8 graph by quantization-aware training, with its own FP32 network as teacher.

    Exit code 3: the run is not over (the same command goes on with it), or the file is written, but loses more on the
    held-out patches than --max-drop allows.
    """
    from quantize.graph import check_quantizable, read_onnx
    from quantize.patches import load_patches
    from quantize.plan import make_plan
    from runtime.engines.ort import OrtEngine
    from training.train import resolve

    check_outputs(output, page)
    begun = (run_folder / "options.json").is_file()
    options = resolve(
        config if config is not None or begun else RECIPE,
        output=run_folder,
        model=model.stem,
        data=data,
        validation=validation or None,
        cache=cache if cache is not None or begun else run_folder / "cache",
        teacher=teacher,
        steps=steps,
    )
    source = read_onnx(model)
    check_quantizable(source, model)
    info = OrtEngine(model, device="cpu").info
    chosen = load_patches(calib, info.scale, patches, least=info.minimum_size)
    plan = make_plan(source, chosen, target=target, method=method, float_tail=float_tail)
    floats = named_floats(plan, keep_float or (), max_drop)
    found = None
    if max_drop is not None:
        run_folder.mkdir(parents=True, exist_ok=True)
        state = run_folder / "search.json"  # kept: a run that is resumed must train the same layers
        found = give_back(plan, search_judge(source, chosen), max_drop=max_drop, state=state, quiet=quiet)
        floats = found.floats
    learnt = fine_tune(
        plan,
        options,
        scale=info.scale,
        reference=source,
        floats=floats,
        max_steps=max_steps,
        quiet=quiet,
        json_target=json_target,
    )
    first = int(os.environ.get("RANK", "0")) == 0  # of the processes that torchrun started
    if learnt is None:
        text = f"The run in {run_folder} is not over; the same command goes on."
        say(text, quiet=quiet or not first, json_target=json_target)
        raise typer.Exit(3)
    if not first:
        return
    report = write_quantized(
        learnt,
        found,
        model,
        output,
        chosen,
        method=method,
        calibration=calib,
        effort="qat",
        max_drop=max_drop,
        floats=floats,
        fitted=options.teacher is None,
    )
    tell(report, learnt, page, quiet=quiet, json_target=json_target)


if __name__ == "__main__":
    run(app)
