"""Modules of a GMIN that pass nothing on: found by what they are worth, and started anew.

python training/restart.py model/weights/gmin_x4.safetensors -o restarted.safetensors --cache runs/cache
python training/train.py --config training/recipes/cpu_x4.toml --initial restarted.safetensors --output runs/gmin_x4

GMIN multiplies activations and has neither norms nor skips, so in fresh weights a picture fades from module to module
(to a hundredth in the first), and where training is short the last modules never learn to pass anything on. A module
that is started anew hands on what it gets, slightly mixed; nothing listens to it at first, so the network's output
stays what it was, and training goes on with more of the network (after Net2Net, Chen et al. 2016).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, table, write_json
from runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from model.gmin import Gmin
    from training.samples import TrainingImage

MIXING = 0.25
"""Random weights around the identity of a new module, as a share of those that PyTorch begins with."""
LOUDNESS = 0.5
"""Deviation of what a new module takes in, in a place where its GELU is almost a straight line."""
WORTHLESS_DB = 0.002

app = new_app("Start modules anew that pass nothing on.")


@app.command()
def main(
    weights: Annotated[Path, typer.Argument(help="Checkpoint of a GMIN.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Weights with the last modules new.")] = None,
    model: Annotated[str | None, typer.Option(help="Its registered name [as recorded, or gmin_x4].")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of HR images [training in the data folder].")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for decoded images.")] = None,
    validation: Annotated[
        list[str] | None, typer.Option(help="Glob of the images that decide what a module is worth; repeatable.")
    ] = None,
    below: Annotated[
        float, typer.Option(min=0, help="Worth in dB under which a module counts as dead.")
    ] = WORTHLESS_DB,
    seed: Annotated[int, typer.Option(min=0, help="Of the new weights.")] = 0,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Say what each module is worth in dB on held-out images, and start the dead ones at the end anew."""
    from model.checkpoint import load_checkpoint, recorded_name, save_checkpoint
    from model.registry import create, describe
    from runtime.files import check_writable
    from training.loop import score
    from training.options import options_from
    from training.processes import Process
    from training.samples import Crops
    from training.train import gather

    if output is not None:
        check_writable(output)
    name = model or recorded_name(weights) or "gmin_x4"
    descriptor = describe(name)
    if descriptor.builder != "model.gmin:Gmin" or set(descriptor.options) != {"modules"}:
        raise UserError(f"{name} is not GMIN or GMIN-L, whose modules these are.")
    network: Any = create(name)
    load_checkpoint(network, weights)
    options = options_from({"output": ".", "model": name}, data=data, cache=cache, validation=validation or None)
    images, held_out = gather(options, descriptor.scale, Process(), quiet=quiet)
    if not held_out:
        raise UserError("What a module is worth is seen on held-out images: name some with --validation.")
    whole, worths = worth(network, held_out)
    rows = [{"module": k, "worth_db": round(value, 4)} for k, value in enumerate(worths)]
    dead = 0
    while dead < len(worths) - 1 and worths[-1 - dead] < below:
        dead += 1
    report = {"schema": 1, "model": name, "psnr_y_db": round(whole, 4), "modules": rows, "dead_at_the_end": dead}
    say(f"{whole:.4f} dB\n{table(rows)}", quiet=quiet, json_target=json_target)
    if output is not None:
        if not dead:
            raise UserError(f"No module at the end is worth less than {below} dB, so there is nothing to start anew.")
        crops, _, _ = Crops(images, scale=descriptor.scale, patch=32, batch=16, seed=seed).batch(0)
        restart(network, dead, crops, seed=seed)
        again = score(network, held_out)
        report["restarted_psnr_y_db"] = round(again, 4)
        save_checkpoint(network.state_dict(), output, metadata={"model": name, "restarted": str(dead)})
        say(f"{dead} modules are new, {again:.4f} dB: {output}", quiet=quiet, json_target=json_target)
    write_json(report, json_target)


def worth(network: Gmin, images: Sequence[TrainingImage]) -> tuple[float, list[float]]:
    """PSNR on luma of ``images`` in dB, and by how much it falls where a module gives the mean of each channel alone.

    Args:
        network: in evaluation mode afterwards.
        images: scored as a whole by the protocol of ``data/metrics.py``.
    """
    from model.blocks import global_mean
    from training.loop import score

    network.eval()

    def flat(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return global_mean(output).expand_as(output)

    whole, worths = score(network, images), []
    for module in network.body:
        handle = module.register_forward_hook(flat)
        worths.append(whole - score(network, images))
        handle.remove()
    return whole, worths


def restart(network: Gmin, count: int, crops: Tensor, *, seed: int = 0) -> None:
    """Give the last ``count`` modules weights that hand on their input, unheard until training listens to them.

    Args:
        network: changed in place. Its output stays the same as far as those modules gave constants.
        count: 1 to one less than there are.
        crops: (N, 3, h, w) LR, for the mean and the deviation of what a module gets.
        seed: of the random part of the weights.
    """
    import torch

    body: Any = network.body
    msff: Any = network.msff
    first, width = len(body) - count, msff.out_channels
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for k in range(first, len(body)):
            columns = msff.weight[:, k * width : (k + 1) * width]
            msff.bias += columns.flatten(1) @ _output(network, k, crops).mean(dim=(0, 2, 3))
            columns.zero_()
        for k in range(first, len(body)):
            _hand_on(body[k], _output(network, k - 1, crops), generator)
            body[k].egsfn.project.bias -= _output(network, k, crops).mean(dim=(0, 2, 3))


def _output(network: Gmin, k: int, crops: Tensor) -> Tensor:
    found: list[Tensor] = []
    handle = network.body[k].register_forward_hook(lambda _module, _inputs, output: found.append(output))
    network(crops)
    handle.remove()
    return found[0]


def _hand_on(module: Any, inputs: Tensor, generator: Generator) -> None:
    """Weights around the identity: gates stand at one, GELU and SiLU where they are almost straight."""
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812

    for conv in module.modules():  # the random part
        if isinstance(conv, nn.Conv2d):
            bound = MIXING / conv.weight[0].numel() ** 0.5
            conv.weight.uniform_(-bound, bound, generator=generator)
            assert conv.bias is not None
            conv.bias.zero_()

    def line(function: Callable[[Tensor], Tensor], at: float) -> tuple[float, float]:
        """Value and slope."""
        x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(function(x), x)
        return float(function(x)), float(slope)

    def centre(conv: nn.Conv2d) -> None:
        k = conv.weight.shape[-1] // 2
        conv.weight[:, 0, k, k] += 1

    def straight(conv: nn.Conv2d, gain: float, first: int = 0) -> None:
        rows = torch.arange(conv.in_channels)
        conv.weight[first + rows, rows, 0, 0] += gain

    sau, gmib, egsfn = module.sml.sau, module.sml.gmib, module.egsfn
    width = sau.proj.out_channels
    sau_value, sau_slope = line(F.gelu, 2.0)
    fuse_value, fuse_slope = line(F.silu, 2.0)
    mean = inputs.mean(dim=(0, 2, 3))
    deviation = (inputs - inputs.mean(dim=(2, 3), keepdim=True)).var(dim=(0, 2, 3)).sqrt()

    straight(sau.proj, 1 / sau_slope)
    sau.proj.weight.mul_(LOUDNESS / deviation.clamp(min=LOUDNESS / 50).view(1, -1, 1, 1))
    sau.proj.bias.copy_(2 - sau.proj.weight.flatten(1) @ mean)
    sau.gamma.fill_(1e-5)
    gmib.gate.bias.fill_(1.2785)  # where SiLU is 1
    for conv in (gmib.dw, gmib.dw_mid, gmib.dw_far, egsfn.local, egsfn.spatial):
        centre(conv)
    gmib.dw.bias -= sau_value
    straight(gmib.fuse, 1 / fuse_slope)
    gmib.fuse.bias.fill_(2.0)
    egsfn.expand.bias[:width] = 1.146  # where GELU is 1
    straight(egsfn.expand, 1, first=width)
    egsfn.expand.bias[width:] -= fuse_value
    straight(egsfn.project, 1)
    egsfn.project.weight.mul_(0.1)  # as quiet as trained modules are: a loud one disturbs more than it helps


if __name__ == "__main__":
    run(app)
