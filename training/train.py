"""Train a network, from scratch or from another one's weights, alone or on many GPUs.

python training/train.py --config training/recipes/cpu_x4.toml --output runs/gmin_x4
torchrun --nproc-per-node 8 training/train.py --config training/recipes/paper_x4.toml --output runs/gmin_x4
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, write_json
from runtime.errors import UserError
from runtime.files import check_folder

if TYPE_CHECKING:
    from torch import nn

    from training.loop import TrainingResult
    from training.options import TrainingOptions
    from training.processes import Process
    from training.samples import TrainingImage

app = new_app("Train a super-resolution network.")


@app.command()
def main(
    output: Annotated[Path | None, typer.Option(help="Folder of the run. One that was begun is resumed.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of training options; what is named here wins.")] = None,
    model: Annotated[str | None, typer.Option(help="Registered network to train [gmin_x4].")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of HR images [training in the data folder].")] = None,
    lr_data: Annotated[Path | None, typer.Option(help="Folder of LR images [made from the HR images].")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for decoded images and teacher targets.")] = None,
    validation: Annotated[
        list[str] | None, typer.Option(help="Glob of images in the data folder to hold out and score; repeatable.")
    ] = None,
    initial: Annotated[Path | None, typer.Option(help="Weights to start from; what does not fit starts fresh.")] = None,
    steps: Annotated[int | None, typer.Option(help="Length of the whole run.")] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=0, help="Stop after this many steps, without changing the plan.")
    ] = None,
    finish_in: Annotated[
        int | None, typer.Option(min=1, help="Resume, let the learning rate fall over this many steps, and end.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Crops a step, over all processes together.")] = None,
    patch: Annotated[int | None, typer.Option(help="Side of an LR crop in pixels.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adan, adamw or muon.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Shape of the fall: cosine, linear or constant.")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps until the highest learning rate.")] = None,
    decay_steps: Annotated[
        int | None, typer.Option(help="Length of the fall at the end [all after the warm-up].")
    ] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of the moving average of the weights.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Registered name or ENGINE to learn from as well.")] = None,
    teacher_share: Annotated[float | None, typer.Option(help="Its share of the loss.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the crops and of fresh weights.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16 (autocast, for GPUs).")] = None,
    compile_: Annotated[bool | None, typer.Option("--compile/--no-compile", help="torch.compile.")] = None,
    cpu_kernels: Annotated[str | None, typer.Option(help="torch, fp32, bf16 or auto: faster steps on a CPU.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each process.")] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between log lines.")] = None,
    validate_every: Annotated[int | None, typer.Option(help="Steps between scores on held-out images.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    tensorboard: Annotated[bool | None, typer.Option("--tensorboard", help="TensorBoard events as well.")] = None,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train a super-resolution network, alone or under torchrun.

    Every option of training/options.py can stand in the TOML file; exclude, patterns, weight_decay, clip_norm,
    initialization, final_rate, loss, channels_last, bounds, gpu_kernels and gpu_graph only there.
    """
    apart = {"config", "max_steps", "finish_in", "compile_", "json_target", "quiet", "apart"}
    named = {name: value for name, value in locals().items() if name not in apart}
    named["validation"] = validation or None  # typer makes an empty list of an option that is not given
    options = resolve(config, compile=compile_, **named)
    result = train_from(options, max_steps=max_steps, finish_in=finish_in, quiet=quiet, json_target=json_target)
    if result is not None:
        write_json(asdict(result), json_target)


def resolve(config: Path | None, **named: Any) -> TrainingOptions:
    """Options by rising priority: those of a run begun in the output folder, the TOML file, the command line."""
    import json

    from training.options import options_from, read_toml

    chosen = read_toml(config) if config is not None else {}
    output = named.get("output") or chosen.get("output")
    begun = Path(output) / "options.json" if output is not None else None
    table = json.loads(begun.read_text("utf-8")) if begun is not None and begun.is_file() else {}
    return options_from({**table, **chosen}, **named)


def train_from(
    options: TrainingOptions,
    *,
    max_steps: int | None = None,
    finish_in: int | None = None,
    quiet: bool = False,
    json_target: str | None = None,
) -> TrainingResult | None:
    """Gather images, network and teacher as ``options`` say, and train.

    Args:
        options: the run.
        max_steps: stop after so many steps of this call; the schedule stays as it is.
        finish_in: take up the checkpoint, let the rate fall over so many steps and end there.
        quiet: print nothing.
        json_target: where the caller writes JSON; text goes to stderr where that is stdout.

    Returns:
        How it ended; None on processes other than the first.
    """
    import torch
    from tqdm import tqdm

    from model.registry import describe
    from training.log import shown
    from training.loop import train
    from training.processes import joined

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with joined() as process:
        quiet = quiet or not process.first

        def tell(text: str) -> None:
            say(text, quiet=quiet, json_target=json_target)

        network = describe(options.model)
        images, validation = gather(options, network.scale, process, quiet=quiet)
        pixels = sum(image.hr.shape[0] * image.hr.shape[1] for image in images)
        tell(f"{len(images)} images, {pixels / 1e6:.1f} megapixels; {len(validation)} held out.")
        if options.cpu_kernels not in ("torch", "auto") and process.device != "cpu":
            raise UserError(f"There is a GPU here, where cpu_kernels {options.cpu_kernels} do not run; use torch.")
        module, fresh = build(options, process.device, images)
        if fresh:
            tell(f"Starting fresh, because {options.initial} does not fit there: {', '.join(fresh)}.")
        with tqdm(total=options.steps, desc=options.model, unit="step", disable=True if quiet else None) as bar:
            result = train(
                module,
                options,
                images,
                validation,
                scale=network.scale,
                process=process,
                max_steps=max_steps,
                finish_in=finish_in,
                report=shown(bar, tell, options.steps),
            )
        return result if process.first else None


def gather(
    options: TrainingOptions, scale: int, process: Process, *, quiet: bool
) -> tuple[list[TrainingImage], list[TrainingImage]]:
    """The images to learn from, with their targets if there is a teacher, and those held out.

    Raises:
        UserError: there are none, or a benchmark image is among them.
    """
    from tqdm import tqdm

    from data.assets import data_folder
    from training.leaks import refuse_benchmarks, refuse_copies
    from training.patterns import write_patterns
    from training.samples import find_images, load_image, lr_counterpart
    from training.teacher import make_targets, with_target

    for written in (options.output, options.cache):
        if written is not None:
            check_folder(written)
    folder = options.data if options.data is not None else data_folder() / "training"
    if not folder.is_dir():
        raise UserError(f"There is no folder of training images at {folder}; name one with --data.")
    if options.teacher is not None and options.cache is None:
        raise UserError("A teacher's outputs are made once and kept: name a folder with --cache.")
    held_out = find_images(folder, only=options.validation, exclude=options.exclude) if options.validation else []
    left = set(held_out)
    paths = [path for path in find_images(folder, exclude=options.exclude) if path not in left]
    if not paths:
        raise UserError(f"{folder} holds no training images.")
    if options.validation and not held_out:
        raise UserError(f"No image under {folder} matches {' or '.join(options.validation)}; name some --validation.")
    refuse_benchmarks(paths)
    patterns: list[Path] = []
    if options.cache is not None:
        if process.first:
            write_patterns(options.cache / "patterns", options.patterns)
        process.wait()
        patterns = write_patterns(options.cache / "patterns", options.patterns)  # there by now
        paths += patterns

    def load(path: Path) -> TrainingImage:
        lr_path = None
        if options.lr_data is not None and path not in patterns:
            lr_path = lr_counterpart(path, data=folder, lr_data=options.lr_data, scale=scale)
        return load_image(path, scale=scale, cache=options.cache, lr_path=lr_path)

    if options.cache is not None:  # each process prepares its share; what is there already is only looked at
        share = [
            load(path)
            for path in tqdm(
                paths[process.rank :: process.world], desc="images", leave=False, disable=True if quiet else None
            )
        ]
        if options.teacher is not None:
            make_targets(share, options.teacher, cache=options.cache, quiet=quiet)
        process.wait()
    images = [load(path) for path in paths]
    refuse_copies(images)
    if options.teacher is not None and options.cache is not None:
        images = [with_target(image, options.teacher, cache=options.cache) for image in images]
    return images, [load(path) for path in held_out]


def build(
    options: TrainingOptions, device: str = "cpu", images: Sequence[TrainingImage] = ()
) -> tuple[nn.Module, list[str]]:
    """The network that ``options`` name, to be trained on ``device``, and which layers the initial weights do not fill.

    Initial weights are of no use to a run that has a checkpoint, and are not read. ``images`` are what the
    initialization "unit" looks at.
    """
    import torch

    from model.registry import create, describe
    from runtime.environment import multiplies_bfloat16
    from training.loop import load_fitting

    torch.manual_seed(options.seed)
    module = create(options.model)
    fresh: list[str] = []
    scale = describe(options.model).scale
    begun = (options.output / "checkpoint.pt").is_file()
    if options.initial is not None and not begun:
        fresh = load_fitting(module, options.initial, scale=scale)
    if options.bounds and not begun:
        set_bounds(module, options.bounds)
    if options.initialization == "unit" and not begun:
        from training.initialization import initialize
        from training.samples import Crops

        initialize(module, Crops(images, scale=scale, patch=options.patch, batch=16, seed=options.seed).batch(0)[0])
    if options.gpu_kernels == "triton" and device != "cpu":
        try:
            from training.depthwise_gpu import with_gpu_depthwise
        except ImportError as error:
            raise UserError("gpu_kernels triton needs Triton, which PyTorch's CUDA builds bring; use torch.") from error
        with_gpu_depthwise(module)
    kernels: str = options.cpu_kernels
    if kernels == "auto":
        kernels = "torch" if device != "cpu" else "bf16" if multiplies_bfloat16() else "fp32"
    if kernels != "torch":
        from training.depthwise import with_fast_depthwise
        from training.pointwise import with_bfloat16_pointwise

        with_fast_depthwise(module)
        if kernels == "bf16":
            with_bfloat16_pointwise(module)
    return module, fresh


def set_bounds(network: nn.Module, bounds: Sequence[float]) -> None:
    """Have the modules of a GMIN limit their factors to ``bounds``; the last one goes for all modules that follow.

    Raises:
        UserError: the network has none.
    """
    from model.gmin import Bounded

    layers = [layer for layer in network.modules() if isinstance(layer, Bounded)]
    if not layers:
        raise UserError("Only GMIN and its variants have bounds.")
    for i, layer in enumerate(layers):
        layer.bound = bounds[min(i, len(bounds) - 1)]


if __name__ == "__main__":
    run(app)
