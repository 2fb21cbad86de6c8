"""A part of a picture before and after: its pixels repeated on the left, what an engine makes of them on the right.

python benchmarks/before_after.py data/chelsea.png -o out/before_after.png --part 96x72 --at 120,80
"""

from __future__ import annotations

import re
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from benchmarks.protocol import Size, size_from_text
from runtime.command_line import JsonOption, QuietOption, new_app, run, say, write_json
from runtime.errors import UserError

if TYPE_CHECKING:
    from data.sets import Rgb
    from runtime.engines.contract import Engine

GAP = 8
"""Pixels of white between the two halves."""

app = new_app("Draw a part of a picture before and after upscaling.")


@app.command()
def main(
    image: Annotated[Path, typer.Argument(help="The picture; it is upscaled as a whole.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture to write.")],
    engine: Annotated[str, typer.Option(help="As in runtime/infer.py.")] = "gmin_x4",
    part: Annotated[str, typer.Option(help="Size of the part, in pixels of the input.")] = "96x72",
    at: Annotated[str, typer.Option(help="Its left upper corner: x,y.")] = "0,0",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the inference.")] = None,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write both halves side by side."""
    from runtime.engines.opening import open_engine
    from runtime.images import Picture, check_output_format, write_picture

    check_output_format(output)
    size = size_from_text(part)
    corner = re.fullmatch(r"(\d{1,6}),(\d{1,6})", at.strip())
    if corner is None:
        raise UserError(f"'{at}' is no corner; write x,y in pixels, such as 120,80.")
    with closing(open_engine(engine, threads=threads)) as opened:
        drawn = before_after(opened, image, size, (int(corner[1]), int(corner[2])))
        name = opened.info.name
    write_picture(output, Picture(drawn))
    write_json({"schema": 1, "image": str(image), "engine": name, "part": str(size), "at": at}, json_target)
    say(f"{output}: {size} pixels of {image}, by {name}", quiet=quiet, json_target=json_target)


def before_after(engine: Engine, image: Path, size: Size, corner: tuple[int, int]) -> Rgb:
    """The halves of one part, (s·H, 2·s·W + GAP, 3) uint8.

    Args:
        engine: upscales by s, the whole picture in one piece: some networks subtract global means.
        image: a picture of 8 bits.
        size: of the part, in LR pixels.
        corner: x and y of its left upper corner.

    Raises:
        UserError: the part is not inside the picture, or the picture has 16 bits.
    """
    import numpy as np

    from runtime.images import read_picture
    from runtime.upscale import upscale

    picture = read_picture(image)
    height, width = picture.colour.shape[:2]
    if picture.colour.dtype != np.uint8:
        raise UserError(f"{image} has 16 bits; only pictures of 8 bits are drawn.")
    x, y = corner
    if x + size.width > width or y + size.height > height:
        raise UserError(f"A part of {size} at {x},{y} is not inside {image}, which is {width}x{height}.")
    large, scale = upscale(engine, picture, tile=0).picture.colour, engine.info.scale
    before = picture.colour[y : y + size.height, x : x + size.width].repeat(scale, 0).repeat(scale, 1)
    after = large[scale * y : scale * (y + size.height), scale * x : scale * (x + size.width)]
    return np.hstack([before, np.full((scale * size.height, GAP, 3), 255, np.uint8), after])


if __name__ == "__main__":
    run(app)
