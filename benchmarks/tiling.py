"""What tiles cost: the error of exact and fast tiles against the picture in one piece, and their time.

python benchmarks/tiling.py data/chelsea.png --engine openvino:gmin_x4.onnx --tile 96
"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, table, write_json
from runtime.errors import UserError

if TYPE_CHECKING:
    from runtime.engines.contract import Engine
    from runtime.upscale import TilingMode


@dataclass(frozen=True)
class TilingError:
    """One mode on one picture. Differences are those of uint8 levels over all channels of all pixels."""

    image: str
    tiling: str
    tile: int
    tiles: int
    exact: bool
    max_levels: int
    differing_percent: float
    psnr_db: float
    seconds: float
    times_whole: float


app = new_app("Measure the error and the time of tiles against the picture in one piece.")


@app.command()
def main(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures small enough for one piece.")],
    engine: Annotated[str, typer.Option(help="As in runtime/infer.py.")] = "gmin_x4",
    tile: Annotated[list[int] | None, typer.Option(min=16, help="Side of a tile; may be given often.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one inference.")] = None,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure exact and fast tiles."""
    from runtime.engines.opening import open_engine

    with closing(open_engine(engine, threads=threads)) as opened:
        results = [
            result for image in images for side in tile or [96] for result in measure_tiling(opened, image, side)
        ]
        payload = {"schema": 1, "engine": asdict(opened.info), "results": [asdict(result) for result in results]}
    write_json(payload, json_target)
    say(table([asdict(result) for result in results]), quiet=quiet, json_target=json_target)


def measure_tiling(engine: Engine, image: Path, side: int) -> list[TilingError]:
    """The whole picture, then both modes against it; each is run once to warm up where it is fast."""
    import numpy as np

    from data.metrics import psnr
    from runtime.images import read_picture
    from runtime.upscale import upscale

    picture = read_picture(image)
    if picture.colour.dtype != np.uint8:
        raise UserError(f"{image} has 16 bits; tiles are compared in levels of 8.")
    upscale(engine, picture, tile=0)
    started = time.perf_counter()
    whole = upscale(engine, picture, tile=0).picture.colour.astype(np.int32)
    whole_seconds = time.perf_counter() - started
    results = []
    modes: tuple[TilingMode, ...] = ("exact", "fast")
    for mode in modes:
        started = time.perf_counter()
        result = upscale(engine, picture, tile=side, tiling=mode)
        seconds = time.perf_counter() - started
        pixels = result.picture.colour.astype(np.int32)
        difference = np.abs(pixels - whole)
        results.append(
            TilingError(
                image=str(image),
                tiling=mode,
                tile=side,
                tiles=result.tiles,
                exact=result.exact,
                max_levels=int(difference.max()),
                differing_percent=float((difference > 0).mean() * 100),
                psnr_db=psnr(pixels, whole),
                seconds=seconds,
                times_whole=seconds / whole_seconds,
            )
        )
    return results


if __name__ == "__main__":
    run(app)
