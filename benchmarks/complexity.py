"""Parameters, multiply-accumulates and FLOPs of networks and ONNX files.

python benchmarks/complexity.py
python benchmarks/complexity.py gmin_x4 gmin_x4_int8.onnx --input 256x256
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from benchmarks.protocol import COMPARED, PAPER_OUTPUT, Size, size_from_text
from runtime.command_line import JsonOption, QuietOption, new_app, run, say, table, write_json
from runtime.errors import UserError

if TYPE_CHECKING:
    from torch import nn

PROTOCOL = (
    "convolutions and matrix products, attention products included; FLOPs = 2 x MACs (papers print MACs as FLOPs or "
    "Multi-Adds); additions, activations, normalisation and resizing are not counted"
)


@dataclass(frozen=True)
class Complexity:
    """What one network costs for one picture.

    ``macs_without_attention`` leaves out products of two computed tensors, as counters do that see modules only.
    """

    engine: str
    folded: bool
    parameters: int
    macs: int
    flops: int
    macs_without_attention: int
    input: str
    output: str
    counter: str


class Macs(NamedTuple):
    """Multiply-accumulates, and how many of them multiply two computed tensors."""

    all: int
    attention: int


def complexity(
    spec: str, *, output: Size = PAPER_OUTPUT, given: Size | None = None, folded: bool = False
) -> Complexity:
    """Count an ENGINE for one picture.

    Args:
        spec: a registered network, a checkpoint or an ONNX file; its weights are not read where only the name is given.
        output: size of the result, from which the input follows by the scale, rounded down.
        given: size of the input, in place of ``output``.
        folded: count the network as it is deployed; one that has nothing to fold is counted as it is.

    Raises:
        UserError: there is no such network or file, or it cannot be counted.
    """
    from benchmarks.engines import is_torch, onnx_path

    if not is_torch(spec):
        from benchmarks.onnx_cost import onnx_cost

        path = onnx_path(spec)
        scale = onnx_scale(path)
        size = given or _input(output, scale)
        cost = onnx_cost(path, size)
        return _result(spec, folded=False, parameters=cost.parameters, macs=Macs(cost.macs, cost.attention_macs),
                       size=size, scale=scale, counter="ONNX graph")  # fmt: skip
    import torch

    from benchmarks.engines import torch_network
    from model.folding import can_fold, fold

    model, network = torch_network(spec, weights=False)
    size = given or _input(output, network.scale)
    if min(size.width, size.height) < network.minimum_size:
        raise UserError(f"{spec} takes no input smaller than {network.minimum_size} pixels, and not {size}.")
    folding = folded and can_fold(model)
    if folding:
        model = fold(model)
    parameters = sum(p.numel() for p in model.parameters())
    return _result(spec, folded=folding, parameters=parameters, macs=count_macs(model, size), size=size,
                   scale=network.scale, counter=f"torch.utils.flop_counter {torch.__version__}")  # fmt: skip


def count_macs(model: nn.Module, size: Size) -> Macs:
    """Count a module for an input (1, 3, H, W), on the meta device: it moves there, and nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = model.to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, size.height, size.width, device="meta"))
    attention = 0
    for operation, flops in counter.get_flop_counts()["Global"].items():
        if any(word in str(operation) for word in ("bmm", "attention")):
            attention += flops // 2
    return Macs(counter.get_total_flops() // 2, attention)


def onnx_scale(path: Path) -> int:
    """The upscaling factor of a file: what it says of itself, else what it does to a small picture."""
    from contextlib import closing

    from runtime.engines.ort import OrtEngine

    with closing(OrtEngine(path, device="cpu")) as engine:
        return engine.info.scale


def _input(output: Size, scale: int) -> Size:
    return Size(max(1, output.width // scale), max(1, output.height // scale))


def _result(
    spec: str, *, folded: bool, parameters: int, macs: Macs, size: Size, scale: int, counter: str
) -> Complexity:
    return Complexity(
        engine=spec,
        folded=folded,
        parameters=parameters,
        macs=macs.all,
        flops=2 * macs.all,
        macs_without_attention=macs.all - macs.attention,
        input=str(size),
        output=str(Size(scale * size.width, scale * size.height)),
        counter=counter,
    )


app = new_app("Parameters, MACs and FLOPs.")


@app.command()
def main(
    engines: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ENGINE]...", help="Registered networks, checkpoints, ONNX files. Default: all compared."
        ),
    ] = None,
    output: Annotated[str, typer.Option(help="Size of the result, from which that of the input follows.")] = str(
        PAPER_OUTPUT
    ),
    given: Annotated[
        str | None, typer.Option("--input", help="Size of the input, in place of --output; NTIRE counts at 256x256.")
    ] = None,
    folded: Annotated[bool, typer.Option("--folded", help="Fold first what can be folded exactly.")] = False,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Count parameters, multiply-accumulates and FLOPs for one picture."""
    wanted, size = size_from_text(output), size_from_text(given) if given else None
    if size and wanted != PAPER_OUTPUT:
        raise UserError("--input and --output say the same in two ways; name one of them.")
    jobs = [(spec, folded) for spec in engines or COMPARED]
    if not engines and not folded:
        jobs.insert(1, (COMPARED[0], True))
    results = [complexity(spec, output=wanted, given=size, folded=fold) for spec, fold in jobs]
    write_json({"schema": 1, "protocol": PROTOCOL, "results": [asdict(r) for r in results]}, json_target)
    rows = [
        {
            "engine": f"{r.engine} (folded)" if r.folded else r.engine,
            "parameters": r.parameters,
            "MACs": f"{r.macs / 1e9:.3f} G",
            "without attention": f"{r.macs_without_attention / 1e9:.3f} G",
            "FLOPs": f"{r.flops / 1e9:.3f} G",
            "input": r.input,
            "output": r.output,
        }
        for r in results
    ]
    say(f"{table(rows)}\ncounted: {PROTOCOL}", quiet=quiet, json_target=json_target)


if __name__ == "__main__":
    run(app)
