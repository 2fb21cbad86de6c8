"""Bounds for a GMIN's modules from what photographs need, so that no module hands on more than that.

python training/bounds.py model/weights/gmin_x4.safetensors -o bounded.safetensors --cache runs/cache

GMIN multiplies activations and has neither norms nor skips. Where a picture that training did not show (flat pink,
checks of one pixel) makes a channel three times larger than any photograph does, the next module makes it ten times
larger, and the last one gives noise. A limit on each channel keeps the excess from growing. One number for a whole
module is too loose: what its channels reach differs by up to eighteen times. So channels are scaled until all need the
same, which changes nothing else (the layers before and after are linear in them; the idea is that of cross-layer
equalization, Nagel et al. 2019), and ``model.gmin.Bounded`` limits them at that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, table, write_json
from runtime.errors import UserError

if TYPE_CHECKING:
    from model.gmin import Gmin
    from training.samples import TrainingImage

GELU_IS_ZERO = 3.0
"""Below the negative of this GELU gives -0.004 and less: a limit there is not heard."""
LARGEST_GAIN = 16.0
"""By which a channel is scaled at most: one that photographs never use has no size to go by."""

app = new_app("Bound GMIN's modules by what photographs need.")


@app.command()
def main(
    weights: Annotated[Path, typer.Argument(help="Checkpoint of a GMIN.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The same weights with bounds.")],
    model: Annotated[str | None, typer.Option(help="Its registered name [as recorded, or gmin_x4].")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of HR images [training in the data folder].")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for decoded images.")] = None,
    validation: Annotated[list[str] | None, typer.Option(help="Glob of the images to score; repeatable.")] = None,
    margin: Annotated[float, typer.Option(min=0.1, help="Times what the photographs reach.")] = 1.0,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Set the bounds of every module to what the training photographs reach, and score both on held-out images."""
    from model.checkpoint import load_checkpoint, recorded, save_checkpoint
    from model.registry import create, describe
    from runtime.files import check_writable
    from training.loop import score
    from training.options import options_from
    from training.processes import Process
    from training.train import gather

    check_writable(output)
    name = model or recorded(weights).get("model", "gmin_x4")
    descriptor = describe(name)
    if descriptor.builder != "model.gmin:Gmin" or set(descriptor.options) != {"modules"}:
        raise UserError(f"{name} is not GMIN or GMIN-L, whose modules have these bounds.")
    network: Any = create(name)
    load_checkpoint(network, weights)
    options = options_from({"output": ".", "model": name}, data=data, cache=cache, validation=validation or None)
    images, held_out = gather(options, descriptor.scale, Process(), quiet=quiet)
    if not held_out:
        raise UserError("Name images to score with --validation.")
    before = score(network, held_out)
    rows = bound(network, [*images, *held_out], margin=margin)
    after = score(network, held_out)
    metadata = recorded(weights) | {"model": name, "bounds": f"{margin:g} times what photographs reach"}
    save_checkpoint(network.state_dict(), output, metadata=metadata)
    report = {"schema": 1, "model": name, "margin": margin, "psnr_y_db": [before, after], "modules": rows}
    say(
        f"{before:.4f} dB before, {after:.4f} dB with bounds\n{table(rows)}\n{output}",
        quiet=quiet,
        json_target=json_target,
    )
    write_json(report, json_target)


def bound(network: Gmin, images: Sequence[TrainingImage], *, margin: float = 1.0) -> list[dict[str, float]]:
    """Scale the channels between the modules' layers, and set both bounds of each module, in place.

    On ``images`` the output stays the same but for rounding, if ``margin`` is at least 1.

    Args:
        network: in evaluation mode afterwards.
        images: whose LR pictures are looked at, each as a whole.
        margin: the bounds, relative to the largest value on ``images``.

    Returns:
        A row for each module: the bounds, and by how much what channels reach differs (largest over smallest).
    """
    import torch

    network.eval()
    body: Any = network.body
    factors, products = _reached(network, images)
    rows = []
    with torch.no_grad():
        for k, module in enumerate(body):
            layer, width = module.egsfn, products[k].numel()
            gated, factor = factors[k].split(width)
            layer.bound = max(GELU_IS_ZERO, margin * float(gated.max()))
            gain = (layer.bound / (margin * factor)).clamp(max=LARGEST_GAIN)
            layer.local.weight[width:] *= gain.view(-1, 1, 1, 1)
            layer.local.bias[width:] *= gain
            layer.spatial.weight /= gain.view(-1, 1, 1, 1)

            layer.product_bound = margin * float(products[k].mean())
            gain = (layer.product_bound / (margin * products[k])).clamp(max=LARGEST_GAIN)
            layer.spatial.weight *= gain.view(-1, 1, 1, 1)
            layer.spatial.bias *= gain
            layer.project.weight /= gain.view(1, -1, 1, 1)
            rows.append(
                {
                    "module": k,
                    "bound": round(layer.bound, 3),
                    "factors_differ": round(float(factor.max() / factor.min()), 1),
                    "product_bound": round(layer.product_bound, 3),
                    "products_differ": round(float(products[k].max() / products[k].min()), 1),
                }
            )
    return rows


def _reached(network: Gmin, images: Sequence[TrainingImage]) -> tuple[list[Any], list[Any]]:
    """Of each module the largest factors (2C,), what is gated counted where it is positive, and products (C,)."""
    import torch

    body: Any = network.body
    factors, products = ([torch.zeros(1)] * len(body) for _ in range(2))
    handles = []
    for k, module in enumerate(body):

        def factor(_module: Any, _inputs: Any, y: Any, k: int = k, bound: float = module.egsfn.bound) -> None:
            gated, spatial = y.amax(dim=(0, 2, 3)).clamp(min=0).chunk(2)[0], y.chunk(2, dim=1)[1]
            largest = torch.cat((gated, spatial.abs().amax(dim=(0, 2, 3)))).clamp(max=bound)
            factors[k] = torch.maximum(factors[k], largest)

        def product(_module: Any, inputs: Any, k: int = k) -> None:
            products[k] = torch.maximum(products[k], inputs[0].abs().amax(dim=(0, 2, 3)))

        handles.append(module.egsfn.local.register_forward_hook(factor))
        handles.append(module.egsfn.project.register_forward_pre_hook(product))
    with torch.no_grad():
        for image in images:
            network(torch.from_numpy(image.lr.copy()).permute(2, 0, 1)[None].float() / 255)
    for handle in handles:
        handle.remove()
    return factors, products


if __name__ == "__main__":
    run(app)
