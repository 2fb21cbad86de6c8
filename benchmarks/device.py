"""The whole comparison on one device by one command: what it is, plans built, times in turns, and quality.

python benchmarks/device.py -o out/device
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, write_json
from runtime.errors import UserError
from runtime.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("gmin_x4.onnx", "gmin_x4_int8.onnx")
STEP_TIMEOUT_S = 3600


@dataclass(frozen=True)
class Step:
    """One command of ours, and what became of it."""

    name: str
    command: str
    exit_code: int
    error: str | None
    """Its last line on stderr where it failed."""
    result: Any
    """What it wrote as JSON; None where it failed."""


def perform(name: str, script: str, *arguments: str, output: Path) -> Step:
    """Run a script of ours in a process of its own, so that one that dies takes nothing with it."""
    target = output / f"{name}.json"
    command = [script, *arguments, "--json", str(target), "--quiet"]
    target.unlink(missing_ok=True)
    try:
        done = subprocess.run(  # noqa: S603 - our own scripts, arguments as a list
            [sys.executable, str(ROOT / script), *command[1:]],
            capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False,
        )  # fmt: skip
        code, said = done.returncode, done.stderr.strip().splitlines()
    except subprocess.TimeoutExpired:
        code, said = 124, [f"took longer than {STEP_TIMEOUT_S} s"]
    result = json.loads(target.read_text()) if target.is_file() else None
    reason = (said[-1].removeprefix("error: ") if said else f"ended with code {code}") if code else None
    return Step(name, shlex.join(["python", *command]), code, reason, result)


def compare(models: list[Path], output: Path, *, size: str, rounds: int, quality_set: str, say_step: Any) -> list[Step]:
    """All steps. Plans are built for ``size`` alone, which is fastest, and for a range, which the quality set needs.

    Args:
        models: ONNX files; each is timed in ONNX Runtime and, where a plan of it can be built and opened, in TensorRT.
        output: folder for the JSON of each step and the plans.
        size: WxH of the input that is timed.
        rounds: timed runs of each engine.
        quality_set: as ``benchmarks/accuracy.py --set`` takes it; "" for none.
        say_step: told what comes next.
    """
    steps: list[Step] = []

    def step(name: str, script: str, *arguments: str) -> Step:
        say_step(name)
        steps.append(perform(name, script, *arguments, output=output))
        return steps[-1]

    step("doctor", "runtime/doctor.py")
    timed: list[str] = []
    scored: list[str] = []
    for model in models:
        for kind, shapes, engines in (("fixed", size, timed), ("range", None, scored)):
            plan = output / f"{model.stem}_{kind}.plan"
            wanted = ["--shapes", shapes] if shapes else []
            if not step(
                f"build_{model.stem}_{kind}", "export/to_tensorrt.py", str(model), "-o", str(plan), *wanted
            ).error:
                engines.append(f"tensorrt:{plan}")
    on_cpu = [f"ort:{model}" for model in models]
    step("latency", "benchmarks/latency.py", *on_cpu, *timed, "--size", size, "--rounds", str(rounds))
    if quality_set:
        step("accuracy", "benchmarks/accuracy.py", "bicubic", *on_cpu, *scored, "--set", quality_set)
    return steps


def page(steps: list[Step]) -> str:
    """What was found, in Markdown: figures where there are any, and every failure with its reason."""
    found = {step.name: step.result for step in steps}
    lines = ["# Comparison on this device", ""]
    if doctor := found.get("doctor"):
        here = doctor["environment"]
        gpu = doctor["gpu"]["name"] if doctor["gpu"] else f"none usable ({doctor['gpu_problem']})"
        lines += [
            f"{here['date']}: {here['processor']}, {here['cores']} cores, {here['memory_gb']} GB; GPU: {gpu}; "
            f"JetPack: {doctor['jetpack'] or '-'}; power mode: {here['power_mode'] or '-'}",
            "",
        ]
    for name, columns in (
        ("latency", ("engine", "backend", "median_ms", "p90_ms", "p99_ms")),
        ("accuracy", ("engine", "backend", "psnr_y_db", "ssim_y", "images")),
    ):
        if result := found.get(name):
            lines += [f"## {name}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
            for row in result["results"]:
                cells = (row.get(column) for column in columns)
                lines.append(f"| {' | '.join(f'{c:.3f}' if isinstance(c, float) else str(c) for c in cells)} |")
            lines.append("")
    lines += ["## Steps", "", *(f"* `{step.command}`: {step.error or 'done'}" for step in steps), ""]
    return "\n".join(lines)


app = new_app("Compare everything on this device.")


@app.command()
def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for plans, JSON and the page.")],
    models: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE.onnx...]", help="Files. Default: the shipped FP32 and INT8.")
    ] = None,
    size: Annotated[str, typer.Option(help="WxH of the input that is timed.")] = "320x180",
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each engine.")] = 30,
    quality_set: Annotated[
        str, typer.Option("--set", help="BSD100, Set5, Set14, or a folder of HR pictures; '' for none.")
    ] = "",
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Diagnose, build plans, time them in turns, score them: one folder with everything; 3 where a step failed."""
    files = models or [ROOT / "runtime/models" / name for name in SHIPPED]
    for file in files:
        if not file.is_file():
            raise UserError(f"There is no model at {file}.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder {output}: {error.strerror}.") from error
    steps = compare(
        [file.resolve() for file in files],
        output.resolve(),
        size=size,
        rounds=rounds,
        quality_set=quality_set,
        say_step=lambda name: say(f"{name} …", quiet=quiet, json_target=json_target),
    )
    with atomic_write(output / "comparison.md") as stream:
        stream.write(page(steps).encode())
    failed = [step for step in steps if step.error]
    write_json({"schema": 1, "steps": [asdict(step) for step in steps]}, json_target)
    for step in failed:
        typer.echo(f"{step.name} failed: {step.error}", err=True)
    say(f"{output / 'comparison.md'}: {len(steps) - len(failed)} of {len(steps)} steps done", quiet=quiet,
        json_target=json_target)  # fmt: skip
    if failed:
        raise SystemExit(2 if len(failed) == len(steps) else 3)


if __name__ == "__main__":
    run(app)
