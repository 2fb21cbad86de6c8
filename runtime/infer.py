"""Upscale pictures.

python runtime/infer.py img.png
python runtime/infer.py a.png b.jpg --engine openvino:gmin_x4.onnx -o results/
"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, write_json
from runtime.errors import UserError
from runtime.files import check_writable

if TYPE_CHECKING:
    from runtime.engines.contract import Engine

Device = Literal[
    "auto", "cpu", "cuda", "tensorrt", "nvtensorrtrtx", "openvino", "coreml", "directml", "qnn", "rocm", "migraphx",
    "xnnpack", "webgpu",
]  # fmt: skip
TilingMode = Literal["fast", "exact"]

app = new_app("Upscale pictures.")


@app.command()
def main(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="PNG, JPEG, WebP, TIFF or BMP pictures.")],
    engine: Annotated[
        str,
        typer.Option(help="A model file, or the name of a shipped one; ort:FILE or openvino:FILE forces a back end."),
    ] = "gmin_x4",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Result: a file, or a folder. Default: IMAGE_x4.png beside each picture."),
    ] = None,
    device: Annotated[
        Device,
        typer.Option(help="Where to compute: auto, cpu, or a provider that ONNX Runtime has here."),
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one inference.")] = None,
    tile: Annotated[
        int | None, typer.Option(min=0, help="Side of a tile in pixels of the input; 0 never tiles. Default: by size.")
    ] = None,
    overlap: Annotated[int, typer.Option(min=0, help="Pixels of the input that neighbouring tiles share.")] = 32,
    trust_engine: Annotated[
        bool, typer.Option("--trust-engine", help="Load a TensorRT plan that was not built here: it is native code.")
    ] = False,
    tiling: Annotated[
        TilingMode,
        typer.Option(help="exact: the pixels of the whole picture, for several times the time; fast: nearly them."),
    ] = "fast",
    stream: Annotated[
        bool, typer.Option("--stream", help="Never hold a picture as a whole: read and write by strips, into .tif.")
    ] = False,
    memory: Annotated[
        int | None,
        typer.Option(min=100, metavar="MB", help="With --stream: memory for all. Default: half of the free."),
    ] = None,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Upscale pictures. A picture that fails does not stop the others; the exit code is 3 then."""
    if tiling == "fast" and tile is not None and 0 < tile <= overlap:
        raise UserError(f"--tile {tile} must be larger than --overlap {overlap}.")
    for image in images:
        if not image.is_file():
            raise UserError(f"There is no picture at {image}.")
    from runtime.selection import open_fastest

    started = time.perf_counter()
    opened, reason = open_fastest(engine, device=device, threads=threads, trust_engine=trust_engine)
    load = time.perf_counter() - started
    with closing(opened):
        targets = _targets(images, output, opened.info.scale, ".tif" if stream else ".png")
        say(f"engine {opened.info.engine} on {opened.info.backend}, {opened.info.device} ({reason})",
            quiet=quiet, json_target=json_target)  # fmt: skip
        results = []
        for image, target in zip(images, targets, strict=True):
            silent = quiet or json_target == "-"
            if stream:
                results.append(_streamed(opened, image, target, tile, overlap, tiling, memory, quiet=silent))
            else:
                results.append(_one(opened, image, target, tile, overlap, tiling, quiet=silent))
            say(_sentence(results[-1]), quiet=quiet, json_target=json_target)
        if opened.info.fallback:
            say(f"fallback: {opened.info.fallback}", quiet=quiet, json_target="-")
    failed = [result for result in results if "error" in result]
    payload = {"schema": 1, "engine": asdict(opened.info), "chosen": reason, "load_seconds": load, "results": results}
    write_json(payload, json_target)
    if failed and len(images) == 1:
        raise UserError(failed[0]["error"])
    if failed:
        for result in failed:
            typer.echo(f"error: {result['error']}", err=True)
        raise SystemExit(2 if len(failed) == len(images) else 3)


def _one(
    engine: Engine, image: Path, target: Path, tile: int | None, overlap: int, tiling: TilingMode, *, quiet: bool
) -> dict[str, Any]:
    from tqdm import tqdm

    from runtime.images import check_output_format, read_picture, write_picture
    from runtime.upscale import upscale

    try:
        started = time.perf_counter()
        picture = read_picture(image)
        check_output_format(target, alpha=picture.alpha is not None)
        read = time.perf_counter() - started
        with tqdm(unit="tile", leave=False, disable=True if quiet else None) as bar:  # None: only on a terminal

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            result = upscale(engine, picture, tile=tile, overlap=overlap, tiling=tiling, progress=progress)
        started = time.perf_counter()
        write_picture(target, result.picture)
        result.seconds.load += read
        result.seconds.postprocess += time.perf_counter() - started
    except UserError as error:
        return {"input": str(image), "error": str(error)}
    height, width = result.picture.colour.shape[:2]
    return {
        "input": str(image),
        "output": str(target),
        "width": width,
        "height": height,
        "tiles": result.tiles,
        "tile": result.tile,
        "overlap": result.overlap,
        "exact": result.exact,
        "seconds": asdict(result.seconds),
    }


def _streamed(
    engine: Engine,
    image: Path,
    target: Path,
    tile: int | None,
    overlap: int,
    tiling: TilingMode,
    memory: int | None,
    *,
    quiet: bool,
) -> dict[str, Any]:
    from tqdm import tqdm

    from runtime.streaming import upscale_file

    limit = None if memory is None else memory * 1_000_000
    try:
        with tqdm(unit="tile", leave=False, disable=True if quiet else None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            result = upscale_file(
                engine, image, target, tile=tile, overlap=overlap, tiling=tiling, memory_bytes=limit, progress=progress
            )
    except UserError as error:
        return {"input": str(image), "error": str(error)}
    return {"input": str(image), "output": str(target), **asdict(result), "tile": list(result.tile)}


def _targets(images: list[Path], output: Path | None, scale: int, suffix: str) -> list[Path]:
    """One path per picture, all different and none of them a source."""
    from runtime.images import check_output_format

    folder = output if output is not None and (output.is_dir() or len(images) > 1 or not output.suffix) else None
    if folder is not None and not folder.is_dir():
        if folder.suffix or folder.exists():
            raise UserError(f"{output} is no folder, and {len(images)} pictures do not fit into one file.")
        if not folder.parent.is_dir():
            raise UserError(f"Cannot write into {folder}: the folder {folder.parent} does not exist.")
        folder.mkdir()
    if output is not None and folder is None:
        targets = [output]
    else:
        targets = [(folder or image.parent) / f"{image.stem}_x{scale}{suffix}" for image in images]
    sources = {image.resolve() for image in images}
    seen: set[Path] = set()
    for target in targets:
        check_output_format(target)
        check_writable(target)
        if target.resolve() in sources:
            raise UserError(f"{target} is one of the pictures to upscale and would be overwritten; name another -o.")
        if target.resolve() in seen:
            raise UserError(f"Two pictures would be written to {target}; give them different names or folders.")
        seen.add(target.resolve())
    return targets


def _sentence(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{result['input']}: failed"
    seconds = result["seconds"]
    tiles = "whole" if result["tiles"] == 1 else f"{result['tiles']} tiles of {result['tile']}"
    exact = (
        "exact"
        if result["exact"]
        else "approximate: this network sees the whole picture, or further than a tile; --tiling exact is not"
    )
    times = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    return f"{result['output']}: {result['width']}x{result['height']}, {tiles} ({exact}); {times}"


if __name__ == "__main__":
    run(app)
