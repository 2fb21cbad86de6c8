"""Which LR pixels a network uses to draw a patch: local attribution maps and the diffusion index.

python benchmarks/attribution.py gmin_x4 lkdn_x4 --image data/chelsea.png --patch 264,56,16 -o out/attribution

The method is that of Gu and Dong, "Interpreting Super-Resolution Networks with Local Attribution Maps", CVPR 2021.
A detector D sums the gradient magnitude of the SR picture over a patch: it asks how much structure was drawn there. Its
gradient is integrated along a path from the blurred to the sharp LR picture, not from black to the picture, because
what a super-resolution network adds is sharpness:

    LAM = sum over k = 1 … K of  (x_k − x_{k−1}) · ∂D(F(x_k))/∂x,    x_k = I blurred by a Gaussian of σ(1 − k/K)

with K = 50, σ = 1.2 and a 9×9 kernel, as in the paper. The map is the absolute value, summed over colours and divided
by its maximum. With the Gini coefficient g of the map, the diffusion index is DI = (1 − g)·100: large where many pixels
take part. It depends on the picture and its size (256×256 HR pixels in the paper, and here around the patch), so
compare it between networks on one picture only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, table, write_json
from runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from data.sets import Rgb

STEPS, SIGMA, KERNEL, CONTEXT = 50, 1.2, 9, 256
NETWORKS = ("gmin_x4", "lkdn_x4", "bsrn_x4", "hnct_x4")
NOT_PRESENT = "weights not present"
_PICTURE = Path(__file__).resolve().parents[1] / "data/chelsea.png"


@dataclass(frozen=True)
class Patch:
    """A square of the SR picture: left, top and side in pixels."""

    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Attribution:
    """What one network used. ``diffusion_index`` is (1 − ``gini``)·100; both are None without weights."""

    network: str
    status: str
    diffusion_index: float | None = None
    gini: float | None = None
    seconds: float | None = None
    picture: str | None = None


def gini(values: NDArray[np.floating]) -> float:
    """Gini coefficient of non-negative values: 0 where all are equal, (n − 1)/n where one holds everything.

    Raises:
        ValueError: a value is negative, or all are zero, where the coefficient says nothing.
    """
    import numpy as np

    ordered = np.sort(np.asarray(values, np.float64), axis=None)
    if ordered.size == 0 or ordered[0] < 0 or ordered[-1] == 0:
        raise ValueError("the Gini coefficient needs non-negative values, not all zero")
    n = ordered.size
    return float(((2 * np.arange(1, n + 1) - n - 1) * ordered).sum() / (n * ordered.sum()))


def blur_path(
    lr: NDArray[np.float32], *, steps: int = STEPS, sigma: float = SIGMA, kernel: int = KERNEL
) -> list[NDArray[np.float32]]:
    """The picture in ``steps`` + 1 degrees of sharpness, from a Gaussian of ``sigma`` pixels to the picture itself.

    Args:
        lr: (H, W, 3) float32 RGB in [0, 1].
        steps: number of intervals.
        sigma: standard deviation of the first Gaussian, in pixels.
        kernel: side of the truncated Gaussian, odd.
    """
    import cv2
    import numpy as np

    path = []
    for k in range(steps):
        window = cv2.getGaussianKernel(kernel, sigma * (1 - k / steps), cv2.CV_64F)
        path.append(np.asarray(cv2.sepFilter2D(lr, -1, window, window), np.float32))
    return [*path, lr]


def gradient_in_patch(sr: Tensor, patch: Patch) -> Tensor:
    """The paper's detector: gradient magnitude of ``sr`` (1, 3, H, W), summed over colours and over the patch."""
    down = (sr[..., :-1, :-1] - sr[..., 1:, :-1]) ** 2
    right = (sr[..., :-1, :-1] - sr[..., :-1, 1:]) ** 2
    magnitude = (down + right + 1e-12).sqrt()  # the root has no slope at 0, where flat areas lie
    return magnitude[..., patch.y : patch.y + patch.size, patch.x : patch.x + patch.size].sum()


def attribute(
    model: nn.Module,
    path: Sequence[NDArray[np.float32]],
    detector: Callable[[Tensor], Tensor],
    *,
    progress: Callable[[], object] = lambda: None,
) -> NDArray[np.float32]:
    """Integrate the detector's gradient along a path of pictures.

    Each interval is evaluated at its sharp end, so the attributions of a linear detector add up exactly to its
    difference between the path's ends.

    Args:
        model: (1, 3, H, W) to (1, 3, sH, sW).
        path: pictures, (H, W, 3) float32 RGB in [0, 1] each.
        detector: the SR picture to one number.
        progress: called after each interval.

    Returns:
        (H, W, 3) float32, signed.
    """
    import numpy as np
    import torch

    total = np.zeros_like(path[0])
    for blurred, sharper in pairwise(path):
        x = torch.from_numpy(sharper.transpose(2, 0, 1)[None]).requires_grad_()  # channels last, as it lies
        (slope,) = torch.autograd.grad(detector(model(x)), x)
        total += (sharper - blurred) * slope[0].permute(1, 2, 0).numpy()
        progress()
    return total


def importance(attribution: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W, 3) signed attributions to the (H, W) map that is shown and measured, in [0, 1]."""
    import numpy as np

    strength: NDArray[np.float32] = np.abs(attribution).sum(axis=2)
    peak = float(strength.max())
    return strength / peak if peak > 0 else strength


def overlay(lr: Rgb, shown: NDArray[np.float32], patch: Patch, scale: int) -> Rgb:
    """The LR picture in grey, what is important in red (root-scaled), the patch framed; twice the network's size.

    Args:
        lr: (H, W, 3) uint8 RGB.
        shown: (H, W) in [0, 1].
        patch: on the enlarged picture.
        scale: the network's.
    """
    import cv2
    import numpy as np

    zoom = 2 * scale
    size = (lr.shape[1] * zoom, lr.shape[0] * zoom)
    grey = cv2.resize(cv2.cvtColor(lr, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_CUBIC)[..., None]
    opacity = cv2.resize(np.sqrt(shown), size, interpolation=cv2.INTER_NEAREST)[..., None]
    base = 0.35 * 255 + 0.65 * grey  # pale, so that red stands out in dark pictures too
    mixed = (1 - opacity) * base + opacity * np.array([214, 26, 40])
    picture = np.ascontiguousarray(mixed.clip(0, 255).astype(np.uint8))
    first = (2 * patch.x, 2 * patch.y)
    last = (2 * (patch.x + patch.size) - 1, 2 * (patch.y + patch.size) - 1)
    return np.asarray(cv2.rectangle(picture, first, last, (0, 90, 200), 2), np.uint8)


def around(lr: Rgb, patch: Patch, scale: int, context: int) -> tuple[Rgb, Patch]:
    """The part of ``lr`` that gives ``context`` × ``context`` result pixels around ``patch``, and the patch in it.

    The part is shifted, and shrunk where it must be, to lie inside the picture; ``context`` 0 leaves the picture whole.

    Raises:
        UserError: the patch is not inside the picture.
    """
    # the detector looks one pixel further right and down
    if patch.x + patch.size >= lr.shape[1] * scale or patch.y + patch.size >= lr.shape[0] * scale:
        raise UserError(
            f"The patch {patch.x},{patch.y},{patch.size} does not lie inside the result, which has "
            f"{lr.shape[1] * scale}x{lr.shape[0] * scale} pixels."
        )
    if not context:
        return lr, patch
    side = max(context, patch.size + 2 * scale) // scale
    centre = patch.size // 2
    left, top = (
        max(0, min((start + centre) // scale - side // 2, length - side))
        for start, length in ((patch.x, lr.shape[1]), (patch.y, lr.shape[0]))
    )
    moved = Patch(patch.x - left * scale, patch.y - top * scale, patch.size)
    return lr[top : top + side, left : left + side].copy(), moved


def parse_patch(text: str) -> Patch:
    """Read ``X,Y,SIZE``.

    Raises:
        UserError: these are not three whole numbers, or not those of a square.
    """
    try:
        x, y, size = (int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--patch {text} is not X,Y,SIZE in whole pixels, such as 264,56,16.") from None
    if x < 0 or y < 0 or size < 1:
        raise UserError(f"--patch {text} must lie inside the picture and be at least one pixel wide.")
    return Patch(x, y, size)


def attribute_network(
    name: str, lr: Rgb, patch: Patch, target: Path, *, steps: int = STEPS, sigma: float = SIGMA, quiet: bool = True
) -> Attribution:
    """Attribute ``patch`` of a registered network's result to the pixels of ``lr``, and draw it to ``target``.

    Raises:
        UserError: the picture is too small, or no pixel takes part.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    from model.checkpoint import load_checkpoint
    from model.engine import weights_path
    from model.registry import create, describe
    from runtime.images import Picture, write_picture

    network = describe(name)
    height, width = lr.shape[:2]
    if min(height, width) < network.minimum_size:
        raise UserError(
            f"{name} needs at least {network.minimum_size} LR pixels a side; the picture has {width}x{height}."
        )
    try:
        weights = weights_path(name)
    except UserError as error:
        return Attribution(name, f"{NOT_PRESENT}: {error}")
    started = time.perf_counter()
    model = load_checkpoint(create(name), weights).requires_grad_(False)
    # half the time of the gradients on a CPU; nn.Module's stubs know only the tensor's form of this call
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    path = blur_path(lr.astype(np.float32) / np.float32(255), steps=steps, sigma=sigma)
    with tqdm(total=steps, desc=name, unit="step", leave=False, disable=True if quiet else None) as bar:
        signed = attribute(model, path, lambda sr: gradient_in_patch(sr, patch), progress=bar.update)
    shown = importance(signed)
    if not shown.any():
        raise UserError(f"No pixel takes part in the patch of {name}: the picture is flat there; name another --patch.")
    write_picture(target, Picture(overlay(lr, shown, patch, network.scale)))
    unequal = gini(shown)
    return Attribution(name, "done", (1 - unequal) * 100, unequal, time.perf_counter() - started, str(target))


app = new_app("Local attribution maps: which LR pixels a network uses to draw a patch.")


@app.command()
def main(
    networks: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NETWORK]...", help=f"Registered networks. Default: {' '.join(NETWORKS)}."),
    ] = None,
    image: Annotated[Path, typer.Option(help="An HR picture, which the protocol's bicubic makes small.")] = _PICTURE,
    patch: Annotated[str, typer.Option(metavar="X,Y,SIZE", help="Square of the result, in its pixels.")] = "264,56,16",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for one picture per network.")] = Path(
        "out/attribution"
    ),
    context: Annotated[
        int, typer.Option(min=0, help="Side of the part of the result around the patch that is looked at; 0 is all.")
    ] = CONTEXT,
    low_resolution: Annotated[bool, typer.Option(help="The picture is the network's input: do not shrink it.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Intervals of the path; 10 is quick and near.")] = STEPS,
    sigma: Annotated[float, typer.Option(min=0.1, help="Blur at the start of the path, in LR pixels.")] = SIGMA,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Draw which LR pixels networks use for a patch, and give the diffusion index of each."""
    square = parse_patch(patch)
    chosen = networks or list(NETWORKS)
    from data.sets import crop_to_multiple, downscale, read_rgb
    from model.registry import describe

    scales = [describe(name).scale for name in chosen]
    picture = read_rgb(image)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write into {output}: {error.strerror}.") from error
    results = []
    for name, scale in zip(chosen, scales, strict=True):
        lr = picture if low_resolution else downscale(crop_to_multiple(picture, scale), scale)
        part, inside = around(lr, square, scale, context)
        target = output / f"{name}.png"
        results.append(attribute_network(name, part, inside, target, steps=steps, sigma=sigma, quiet=quiet))
    rows: list[dict[str, Any]] = [asdict(result) for result in results]
    method = {"source": "Gu and Dong, CVPR 2021", "steps": steps, "sigma": sigma, "kernel": KERNEL, "context": context}
    payload = {"schema": 1, "image": str(image), "patch": asdict(square), "method": method, "results": rows}
    write_json(payload, json_target)
    columns = ("network", "diffusion_index", "seconds", "picture", "status")
    say(table([{key: row[key] for key in columns} for row in rows]), quiet=quiet, json_target=json_target)
    missing = [result for result in results if result.diffusion_index is None]
    if len(missing) == len(results):
        raise UserError(missing[0].status)
    if networks and missing:  # asked for by name and not done; among the defaults, HNCT is known to be absent
        raise SystemExit(3)


if __name__ == "__main__":
    run(app)
