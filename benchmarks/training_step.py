"""Seconds of one training step of a network by kind of CPU kernels, interleaved.

python benchmarks/training_step.py --model gmin_x4 --batch 8 --patch 48 --threads 2
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, table, write_json


@dataclass(frozen=True)
class StepTime:
    """One kind of kernels: medians over the rounds. CPU seconds tell more than wall seconds on a shared machine."""

    cpu_kernels: str
    wall_s: float
    cpu_s: float


def time_steps(model: str, *, batch: int, patch: int, rounds: int) -> list[StepTime]:
    """Time forward and backward pass of ``batch`` random LR crops of ``patch`` × ``patch`` pixels."""
    import statistics
    import time

    import torch
    from torch.nn import functional as F  # noqa: N812

    from model.registry import describe
    from training.options import TrainingOptions
    from training.train import build

    kinds = ("torch", "fp32", "bf16")
    models = {
        kind: build(TrainingOptions(Path("unused"), model=model, cpu_kernels=kind))[0]  # type: ignore[arg-type]
        .to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        .train()
        for kind in kinds
    }
    lr = torch.rand(batch, 3, patch, patch).contiguous(memory_format=torch.channels_last)
    side = patch * describe(model).scale
    hr = torch.rand(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    wall: dict[str, list[float]] = {kind: [] for kind in kinds}
    cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
    for round_ in range(rounds + 1):
        for kind in kinds:
            models[kind].zero_grad(set_to_none=True)
            began, began_cpu = time.perf_counter(), time.process_time()
            torch.autograd.backward(F.l1_loss(models[kind](lr), hr))
            if round_:  # the first one warms up
                wall[kind].append(time.perf_counter() - began)
                cpu[kind].append(time.process_time() - began_cpu)
    return [StepTime(kind, statistics.median(wall[kind]), statistics.median(cpu[kind])) for kind in kinds]


app = new_app("Time training steps.")


@app.command()
def main(
    model: Annotated[str, typer.Option(help="Registered network.")] = "gmin_x4",
    batch: Annotated[int, typer.Option(min=1, help="Crops a step.")] = 8,
    patch: Annotated[int, typer.Option(min=1, help="Side of an LR crop in pixels.")] = 48,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each kind.")] = 10,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Time one training step by kind of CPU kernels, interleaved: PyTorch's, compiled depth-wise, and bfloat16 1×1."""
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    results = time_steps(model, batch=batch, patch=patch, rounds=rounds)
    rows = [asdict(result) for result in results]
    environment = {
        "torch": torch.__version__,
        "threads": threads,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    payload = {"schema": 1, "model": model, "batch": batch, "patch": patch, "environment": environment, "results": rows}
    write_json(payload, json_target)
    say(table(rows), quiet=quiet, json_target=json_target)


if __name__ == "__main__":
    run(app)
