"""Train a network: ``python training/train.py --config training/recipes/paper_x4.toml --output runs/gmin_x4``."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from runtime.command_line import run
from runtime.errors import UserError

if TYPE_CHECKING:
    from training.loop import Process, TrainingResult
    from training.options import TrainingOptions

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Text = Optional[str]  # noqa: UP045 -- typer evaluates these on Python 3.10
Whole = Optional[int]  # noqa: UP045
Number = Optional[float]  # noqa: UP045
File = Optional[Path]  # noqa: UP045


@app.command()
def main(
    output: Annotated[File, typer.Option(help="Folder of the run. One that was begun is resumed.")] = None,
    config: Annotated[File, typer.Option(help="TOML file of training options; what is named here wins.")] = None,
    model: Annotated[Text, typer.Option(help="Registered network to train [gmin_x4].")] = None,
    data: Annotated[File, typer.Option(help="Folder of training images [training under GMIN_DATA].")] = None,
    cache: Annotated[File, typer.Option(help="Folder for LR images and teacher targets.")] = None,
    initial: Annotated[File, typer.Option(help="Checkpoint to start from; layers that do not fit start fresh.")] = None,
    steps: Annotated[Whole, typer.Option(help="Length of the whole run.")] = None,
    max_steps: Annotated[Whole, typer.Option(help="Stop after this many steps, without changing the plan.")] = None,
    finish_in: Annotated[
        Whole, typer.Option(help="Resume, let the learning rate fall over this many steps, and end.")
    ] = None,
    batch: Annotated[Whole, typer.Option(help="Crops a step, over all processes together.")] = None,
    patch: Annotated[Whole, typer.Option(help="Side of an LR crop in pixels.")] = None,
    optimizer: Annotated[Text, typer.Option(help="adan or adamw.")] = None,
    learning_rate: Annotated[Number, typer.Option(help="Highest learning rate.")] = None,
    schedule: Annotated[Text, typer.Option(help="cosine, linear or constant.")] = None,
    warmup_steps: Annotated[Whole, typer.Option(help="Steps until the highest learning rate.")] = None,
    decay_steps: Annotated[Whole, typer.Option(help="Length of the fall at the end [all after the warm-up].")] = None,
    ema: Annotated[Number, typer.Option(help="Decay of the moving average of the weights.")] = None,
    teacher: Annotated[Text, typer.Option(help="Registered network to learn from as well.")] = None,
    teacher_share: Annotated[Number, typer.Option(help="Its share of the loss.")] = None,
    seed: Annotated[Whole, typer.Option(help="Of the crops and of fresh weights.")] = None,
    precision: Annotated[Text, typer.Option(help="fp32 or bf16.")] = None,
    compile_: Annotated[Optional[bool], typer.Option("--compile/--no-compile", help="torch.compile.")] = None,  # noqa: UP045
    fast_depthwise: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--fast-depthwise/--no-fast-depthwise", help="Compiled depth-wise kernels, for CPUs."),
    ] = None,
    threads: Annotated[Whole, typer.Option(help="CPU threads of each process.")] = None,
    log_every: Annotated[Whole, typer.Option(help="Steps between log lines.")] = None,
    validate_every: Annotated[Whole, typer.Option(help="Steps between scores on held-out images.")] = None,
    save_every: Annotated[Whole, typer.Option(help="Steps between checkpoints.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a super-resolution network, alone or under torchrun."""
    named = {
        name: value
        for name, value in locals().items()
        if name not in {"config", "max_steps", "finish_in", "compile_", "json", "quiet"}
    }
    options = resolve(config, compile=compile_, **named)
    result = train_from(options, max_steps=max_steps, finish_in=finish_in, quiet=quiet or json)
    if result is not None and json:
        import dataclasses
        import json as json_module

        print(json_module.dumps({"version": 1, **dataclasses.asdict(result)}))  # noqa: T201


def resolve(config: Path | None, **named: Any) -> TrainingOptions:
    """Options by rising priority: those of a run begun in the output folder, the TOML file, the command line."""
    import json

    from training.options import options_from, read_toml

    table: dict[str, Any] = {}
    chosen = read_toml(config) if config is not None else {}
    output = named.get("output") or chosen.get("output")
    begun = Path(output) / "options.json" if output is not None else None
    if begun is not None and begun.is_file():
        table = json.loads(begun.read_text("utf-8"))
    return options_from({**table, **chosen}, **named)


def train_from(
    options: TrainingOptions, *, max_steps: int | None = None, finish_in: int | None = None, quiet: bool = False
) -> TrainingResult | None:
    """Gather images, network and teacher as ``options`` say, and train.

    Args:
        options: the run.
        max_steps: stop after so many steps of this call; the schedule stays as it is.
        finish_in: take up the checkpoint, let the rate fall over so many steps and end there.
        quiet: print nothing.

    Returns:
        How it ended; None on processes other than the first.
    """
    import dataclasses

    import torch

    from model.registry import create, describe
    from runtime.files import atomic_write
    from training.leaks import refuse_benchmarks
    from training.loop import load_fitting, train
    from training.samples import find_images, load_image

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    process = join()
    network = describe(options.model)
    folder = options.data_folder()
    held_out = find_images(folder, only=options.validation, exclude=options.exclude) if options.validation else []
    left = set(held_out)
    paths = [path for path in find_images(folder, exclude=options.exclude) if path not in left]
    refuse_benchmarks(paths)
    options.output.mkdir(parents=True, exist_ok=True)
    checkpoint = options.output / "checkpoint.pt"
    if finish_in is not None:
        if not checkpoint.is_file():
            raise UserError(f"--finish-in takes up a run, but there is no checkpoint in {options.output}.")
        step = int(torch.load(checkpoint, map_location="cpu", weights_only=True)["step"])
        options = dataclasses.replace(options, steps=step + finish_in, decay_steps=finish_in, warmup_steps=0)
        if options.schedule == "constant":
            options = dataclasses.replace(options, schedule="cosine")
    torch.manual_seed(options.seed)
    module = create(options.model)
    if options.initial is not None and not checkpoint.is_file():
        fresh = load_fitting(module, options.initial)
        if fresh and not quiet and process.first:
            typer.echo(f"Starting fresh: {', '.join(fresh)}.")
    if process.first:
        with atomic_write(options.output / "options.json") as stream:
            stream.write(options.to_json().encode())
    images = [load_image(path, scale=network.scale, cache=options.cache) for path in paths]
    validation = [load_image(path, scale=network.scale, cache=options.cache) for path in held_out]
    if options.teacher is not None:
        from training.teacher import with_targets

        if options.cache is None:
            raise UserError("A teacher's outputs are made once and kept: name a folder with --cache.")
        images = list(with_targets(images, options.teacher, cache=options.cache))
    if process.first and not quiet:
        pixels = sum(image.hr.shape[0] * image.hr.shape[1] for image in images)
        typer.echo(f"{len(images)} images, {pixels / 1e6:.0f} Mpx; {len(validation)} held out.")
    if options.fast_depthwise:
        from training.depthwise import with_fast_depthwise

        with_fast_depthwise(module)
    result = train(
        module,
        options,
        images,
        validation,
        scale=network.scale,
        process=process,
        max_steps=max_steps,
        report=None if quiet else typer.echo,
    )
    return result if process.first else None


def join() -> Process:
    """Join the processes that torchrun started, or be alone."""
    import torch

    from training.loop import Process

    world = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    if world == 1:
        return Process(device="cuda" if cuda else "cpu")
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local)
    return Process(torch.distributed.get_rank(), world, f"cuda:{local}" if cuda else "cpu")


if __name__ == "__main__":
    run(app)
