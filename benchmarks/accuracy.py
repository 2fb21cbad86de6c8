"""PSNR and SSIM on luma over a set, for any number of engines.

python benchmarks/accuracy.py bicubic gmin_x4 gmin_x4.onnx --set BSD100
"""

from __future__ import annotations

import io
import sys
from csv import writer
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, table, write_json
from runtime.errors import UserError
from runtime.files import atomic_write, check_writable

if TYPE_CHECKING:
    from data.sets import ImageSet
    from runtime.engines.contract import Engine


@dataclass(frozen=True)
class ImageScore:
    """One picture: PSNR in dB and SSIM, both on luma."""

    image: str
    psnr_y_db: float
    ssim_y: float


@dataclass(frozen=True)
class Accuracy:
    """Means over a set."""

    engine: str
    backend: str
    set: str
    scale: int
    psnr_y_db: float
    ssim_y: float
    images: int


def score(engine: Engine, images: ImageSet, *, quiet: bool = True) -> tuple[Accuracy, list[ImageScore]]:
    """Run every picture of a set, whole, through an engine and score it against HR by the protocol.

    Raises:
        UserError: a picture is too small for the engine, or for SSIM.
    """
    from tqdm import tqdm

    from data.metrics import SSIM_WINDOW, psnr_y, ssim_y
    from data.sets import from_batch, to_batch

    scores = []
    bar = tqdm(images, desc=engine.info.engine, unit="picture", leave=False, disable=True if quiet else None)
    crop = images.scale
    least = max(SSIM_WINDOW + 2 * crop, crop * engine.info.minimum_size)
    for pair in bar:
        height, width = pair.hr.shape[:2]
        if min(height, width) < least:
            raise UserError(
                f"{pair.name} of {images.name} has {width}x{height} pixels; to be scored with {engine.info.engine} at "
                f"x{crop} it needs {least} a side."
            )
        result = from_batch(engine.infer(to_batch(pair.lr)))
        scores.append(ImageScore(pair.name, psnr_y(result, pair.hr, crop=crop), ssim_y(result, pair.hr, crop=crop)))
    mean = Accuracy(
        engine=engine.info.engine,
        backend=f"{engine.info.backend}, {engine.info.device}",
        set=images.name,
        scale=images.scale,
        psnr_y_db=sum(s.psnr_y_db for s in scores) / len(scores),
        ssim_y=sum(s.ssim_y for s in scores) / len(scores),
        images=len(scores),
    )
    return mean, scores


app = new_app("PSNR and SSIM over a set.")


@app.command()
def main(
    engines: Annotated[
        list[str], typer.Argument(metavar="ENGINE...", help="Model files, registered networks (PyTorch), or bicubic.")
    ],
    set_name: Annotated[str, typer.Option("--set", help="BSD100, Set5, Set14, or a folder of HR pictures.")] = "BSD100",
    scale: Annotated[int, typer.Option(min=1, help="Upscaling factor.")] = 4,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one inference.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the score of every picture to this CSV file.")] = None,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Score engines over a set: PSNR and SSIM on luma, by the protocol of the super-resolution papers."""
    if csv is not None:
        check_writable(csv)
    from contextlib import closing

    from benchmarks.engines import open_any
    from data.metrics import PROTOCOL
    from data.sets import image_set
    from runtime.environment import available_cores, environment

    images = image_set(set_name, scale)
    results, lines = [], [["engine", "image", "psnr_y_db", "ssim_y"]]
    for spec in engines:
        with closing(open_any(spec, scale, threads=threads)) as engine:
            mean, scores = score(engine, images, quiet=quiet)
        results.append(mean)
        lines += [[spec, s.image, f"{s.psnr_y_db:.6f}", f"{s.ssim_y:.6f}"] for s in scores]
    if csv is not None:
        text = io.StringIO(newline="")
        writer(text, lineterminator="\n").writerows(lines)
        with atomic_write(csv) as stream:
            stream.write(text.getvalue().encode("utf-8", "surrogateescape"))
    report = {
        "schema": 1,
        "protocol": PROTOCOL,
        "environment": asdict(environment(threads or available_cores())),
        "results": [asdict(r) for r in results],
    }
    write_json(report, json_target)
    say(f"{table([asdict(r) for r in results])}\nprotocol: {PROTOCOL}", quiet=quiet, json_target=json_target)


if __name__ == "__main__":
    run(app)
