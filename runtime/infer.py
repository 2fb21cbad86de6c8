"""Upscale pictures, whole folders of them, and videos.

python runtime/infer.py img.png
python runtime/infer.py a.png b.jpg --engine openvino:gmin_x4.onnx -o results/
python runtime/infer.py photos/ -o out/
python runtime/infer.py clip.mp4
"""

from __future__ import annotations

import re
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
from runtime.files import check_writable, make_folder

if TYPE_CHECKING:
    from collections.abc import Generator

    from runtime.engines.contract import Engine
    from runtime.folder import Plan
    from runtime.steps import Options

Device = Literal[
    "auto", "cpu", "cuda", "tensorrt", "nvtensorrtrtx", "openvino", "coreml", "directml", "qnn", "rocm", "migraphx",
    "xnnpack", "webgpu",
]  # fmt: skip
TilingMode = Literal["fast", "exact"]
Format = Literal["png", "jpg", "webp", "tiff", "bmp", "same"]

app = new_app("Upscale pictures, whole folders of them, and videos.")


@app.command()
def main(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE|FOLDER|VIDEO...",
            help="PNG, JPEG, WebP, TIFF, BMP or HEIF pictures, folders of them, or MP4, MOV, MKV, WebM or AVI videos.",
        ),
    ],
    engine: Annotated[
        str,
        typer.Option(help="A model file, or the name of a shipped one; ort:FILE or openvino:FILE forces a back end."),
    ] = "gmin_x4",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Result: a file, or a folder. Default: IMAGE_x4.png beside each picture."),
    ] = None,
    file_format: Annotated[
        Format | None, typer.Option("--format", help="Format of the results; same: that of each source. [default: png]")
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="Of JPEG and WebP. [default: 95; WebP without loss]")
    ] = None,
    scale: Annotated[
        int | None, typer.Option(min=2, max=4, help="2, 3 or 4; below the network's own, its result is reduced.")
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Final size instead of a scale: as large as fits in, say, 3840x2160."),
    ] = None,
    x8: Annotated[
        bool, typer.Option("--x8", help="Mean over eight turns and mirrors: better, eight times slower.")
    ] = False,
    strip_metadata: Annotated[
        bool, typer.Option("--strip-metadata", help="Write no EXIF and no XMP. The colour profile stays.")
    ] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave pictures alone whose result is there.")
    ] = False,
    budget: Annotated[
        str, typer.Option(help="Refuse pictures that take more decoded, with their result: 500M, 8G.")
    ] = "8G",
    encoder: Annotated[
        str,
        typer.Option(help="Of videos, as FFmpeg names it. Default: a hardware encoder that works here, or libx264."),
    ] = "auto",
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
    """Upscale pictures. A picture that fails does not stop the others; the exit code is 3 then.

    A folder is searched to the bottom and its tree is mirrored in the folder of the results, with a manifest there:
    the same command, given again after it was stopped in any way, does what is left.
    """
    if tiling == "fast" and tile is not None and 0 < tile <= overlap:
        raise UserError(f"--tile {tile} must be larger than --overlap {overlap}.")
    if scale is not None and fit is not None:
        raise UserError("--scale and --fit contradict each other; give one.")
    for image in images:
        _check_there(image)
    if stream:
        _check_stream(images, scale=scale, fit=fit, file_format=file_format, quality=quality,
                      strip_metadata=strip_metadata, skip_existing=skip_existing)  # fmt: skip
    from runtime.ensemble import SelfEnsemble
    from runtime.selection import open_fastest
    from runtime.steps import Options, check_options

    options = Options(tile, overlap, scale, _box(fit), x8, quality, strip_metadata, _bytes(budget), tiling)
    started = time.perf_counter()
    opened, reason = open_fastest(engine, device=device, threads=threads, trust_engine=trust_engine)
    load = time.perf_counter() - started
    with closing(SelfEnsemble(opened) if x8 else opened) as asked:
        if any(_is_video(image) for image in images):
            chosen = {"schema": 1, "engine": asdict(opened.info), "chosen": reason, "load_seconds": load}
            if file_format is not None or skip_existing:
                raise UserError("--format and --skip-existing are for pictures; leave them out for videos.")
            _videos(images, output, asked, options, encoder, device, chosen, json_target=json_target, quiet=quiet)
            _say_fallback(opened, quiet=quiet)
            return
        if stream:  # before anything looks at the budget of what is held whole
            plan = _stream_plan(images, output, opened.info.scale)
        else:
            plan = _plan(images, output, file_format, options, opened.info.scale)
            check_options(options, {job.target.suffix for job in plan.jobs}, opened.info.scale)
        say(f"engine {opened.info.engine} on {opened.info.backend}, {opened.info.device} ({reason})",
            quiet=quiet, json_target=json_target)  # fmt: skip
        is_folder_run = any(image.is_dir() for image in images)
        started = time.perf_counter()
        if is_folder_run:
            results = _folder_run(plan, asked, options, skip_existing, device, quiet=quiet or json_target == "-")
        elif stream:
            results = []
            for job in plan.jobs:
                silent = quiet or json_target == "-"
                results.append(_streamed(asked, job.source, job.target, tile, overlap, tiling, memory, quiet=silent))
                say(_sentence(results[-1]), quiet=quiet, json_target=json_target)
        else:
            results = []
            with closing(_watched(plan, asked, options, skip_existing, quiet=quiet or json_target == "-")) as finished:
                for result in finished:
                    results.append(result)
                    say(_sentence(result), quiet=quiet, json_target=json_target)
        seconds = time.perf_counter() - started
        _say_fallback(opened, quiet=quiet)
    failed = [result for result in results if "error" in result]
    payload = {"schema": 1, "engine": asdict(opened.info), "chosen": reason, "load_seconds": load, "results": results}
    if is_folder_run:
        skipped = sum("skipped" in result for result in results)
        done = len(results) - len(failed) - skipped
        payload["summary"] = {"done": done, "skipped": skipped, "failed": len(failed), "no_pictures": plan.ignored,
                              "seconds": seconds}  # fmt: skip
        say(f"{plan.root}: {done} upscaled, {skipped} were there, {len(failed)} failed; {seconds:.1f} s",
            quiet=quiet, json_target=json_target)  # fmt: skip
    write_json(payload, json_target)
    if failed and len(results) == 1:
        raise UserError(failed[0]["error"])
    if failed:
        for result in failed:
            typer.echo(f"error: {result['error']}", err=True)
        raise SystemExit(2 if len(failed) == len(results) else 3)


def _check_there(image: Path) -> None:
    try:
        there = image.is_file() or image.is_dir()
    except OSError as error:  # a folder around it that may not be entered
        raise UserError(f"{image} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    if not there:
        raise UserError(f"There is no picture at {image}.")


def _say_fallback(opened: Engine, *, quiet: bool) -> None:
    """What was asked for and does not run: on standard error even where the JSON goes to standard output."""
    if opened.info.fallback:
        say(f"fallback: {opened.info.fallback}", quiet=quiet, json_target="-")


def _check_stream(images: list[Path], **refused: object) -> None:
    """Refuse what does not go with pictures that are never in memory as a whole."""
    if any(image.is_dir() or _is_video(image) for image in images):
        raise UserError("--stream is for pictures that are named one by one; leave it out for folders and videos.")
    for name, value in refused.items():
        if value:
            option = "--format" if name == "file_format" else f"--{name.replace('_', '-')}"
            raise UserError(f"{option} does not go with --stream, which writes the network's own scale into a .tif.")


def _stream_plan(images: list[Path], output: Path | None, scale: int) -> Plan:
    from runtime.folder import Job, Plan

    targets = _targets(images, output, f"x{scale}", None, ".tif")
    return Plan(Path(), tuple(Job(i, t, str(i), str(t)) for i, t in zip(images, targets, strict=True)))


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


def _is_video(path: Path) -> bool:
    from runtime.video_files import ENDINGS

    return path.suffix.lower() in ENDINGS and not path.is_dir()


def _videos(
    videos: list[Path],
    output: Path | None,
    engine: Engine,
    options: Options,
    encoder: str,
    device: str,
    payload: dict[str, Any],
    *,
    json_target: str | None,
    quiet: bool,
) -> None:
    from tqdm import tqdm

    from runtime.engines.opening import model_of
    from runtime.steps import check_options, options_hash
    from runtime.video import upscale_video
    from runtime.video_files import ENDINGS

    if not all(_is_video(path) for path in videos):
        raise UserError("Give videos and pictures to two commands: they have other options.")
    check_options(options, {".jpg"}, engine.info.scale)
    label = _label(options, engine.info.scale)
    endings = [ENDINGS[path.suffix.lower()] for path in videos]
    if output is not None and (output.is_dir() or len(videos) > 1 or not _is_ending(output.suffix)):
        if not output.is_dir():
            raise UserError(f"{output} is no folder for the videos; make it first.")
        targets = [output / f"{v.stem}_{label}{ending}" for v, ending in zip(videos, endings, strict=True)]
    elif output is not None:
        if output.suffix.lower() != endings[0]:
            raise UserError(f"{output} must end in {endings[0]}: what else the video carries is copied as it is.")
        targets = [output]
    else:
        targets = [v.with_name(f"{v.stem}_{label}{ending}") for v, ending in zip(videos, endings, strict=True)]
    for target in targets:
        check_writable(target)
        if target.resolve() in {video.resolve() for video in videos} or targets.count(target) > 1:
            raise UserError(f"{target} is a source or the result of two videos; name another -o.")
    sum_of_options = options_hash(options, engine, model_of(engine.info.engine, device))
    results: list[dict[str, Any]] = []
    for video, target in zip(videos, targets, strict=True):
        with tqdm(unit="frame", leave=False, disable=True if quiet or json_target == "-" else None) as bar:

            def tell(done: int, total: int, bar: Any = bar) -> None:
                bar.total = total or None
                bar.update(done - bar.n)

            try:
                result = upscale_video(
                    video, target, engine, options, options_sha256=sum_of_options, encoder=encoder, tell=tell
                )
            except UserError as error:
                if len(videos) == 1:
                    raise
                result = {"input": str(video), "error": str(error)}
        results.append(result)
        notes = "".join(f"; {note}" for note in result.get("notes", ()))
        sentence = f"{video}: failed"
        if "error" not in result:
            size = f"{result['width']}x{result['height']}"
            sentence = f"{target}: {size}, {result['frames']} frames by {result['encoder']}{notes}"
        say(sentence, quiet=quiet, json_target=json_target)
    write_json({**payload, "results": results}, json_target)
    failed = [result for result in results if "error" in result]
    for result in failed:
        typer.echo(f"error: {result['error']}", err=True)
    if failed:
        raise SystemExit(2 if len(failed) == len(results) else 3)


def _label(options: Options, scale: int) -> str:
    """What is put behind the name of a result."""
    return f"{options.fit[0]}x{options.fit[1]}" if options.fit else f"x{options.scale or scale}"


def _plan(images: list[Path], output: Path | None, file_format: Format | None, options: Options, scale: int) -> Plan:
    from runtime.folder import Job, Plan, plan_folders

    label = _label(options, scale)
    folders = [image for image in images if image.is_dir()]
    if not folders:
        targets = _targets(images, output, label, file_format)
        return Plan(Path(), tuple(Job(i, t, str(i), str(t)) for i, t in zip(images, targets, strict=True)))
    if output is None and len(images) > 1:
        raise UserError("Name a folder for the results of several folders with -o.")
    root = output if output is not None else Path(f"{folders[0].resolve()}_{label}")
    plan = plan_folders(images, root, label=label, ending=_ending(file_format))
    if not plan.jobs and not plan.refused:
        raise UserError(f"There is no picture at {folders[0]}: nothing in that folder ends like one.")
    if not root.is_dir():
        if output is not None and _is_ending(root.suffix):
            raise UserError(f"{root} is no folder; the results of a folder need one.")
        if not root.parent.is_dir():
            raise UserError(f"Cannot write into {root}: the folder {root.parent} does not exist.")
        make_folder(root)
    return plan


def _folder_run(
    plan: Plan, engine: Engine, options: Options, skip_existing: bool, device: str, *, quiet: bool
) -> list[dict[str, Any]]:
    from tqdm import tqdm

    from runtime.batch import run_batch
    from runtime.engines.opening import model_of
    from runtime.folder import sweep
    from runtime.manifest import open_manifest
    from runtime.steps import options_hash

    results = [{"input": str(source), "error": reason} for source, reason in plan.refused]
    with open_manifest(plan.root) as manifest:
        sweep(plan)
        sum_of_options = options_hash(options, engine, model_of(engine.info.engine, device))
        run = run_batch(plan, engine, options, manifest=manifest, options_sha256=sum_of_options,
                        skip_existing=skip_existing)  # fmt: skip
        bar = tqdm(total=len(plan.jobs), unit="picture", disable=True if quiet else None)  # None: only on a terminal
        try:
            with closing(run), bar:
                for result in run:
                    results.append(result)
                    bar.update()
        except KeyboardInterrupt:
            if not quiet:
                typer.echo(f"interrupted after {len(results)} of {len(plan.jobs)}; the same command goes on", err=True)
            raise
        manifest.finish()
    return results


def _watched(
    plan: Plan, engine: Engine, options: Options, skip_existing: bool, *, quiet: bool
) -> Generator[dict[str, Any], None, None]:
    """Pictures that were named one by one, with a bar over the tiles of each."""
    from tqdm import tqdm

    from runtime.batch import run_batch

    with tqdm(unit="tile", leave=False, disable=True if quiet else None) as bar:  # None: only on a terminal

        def progress(done: int, total: int) -> None:
            if done == 1:
                bar.reset(total)
            bar.update(done - bar.n)

        with closing(run_batch(plan, engine, options, skip_existing=skip_existing, progress=progress)) as run:
            for result in run:
                bar.clear()
                yield result


def _targets(
    images: list[Path], output: Path | None, label: str, file_format: Format | None, default: str = ".png"
) -> list[Path]:
    """One path per picture, all different and none of them a source."""
    from runtime.images import check_output_format

    named = output is not None and (output.is_dir() or len(images) > 1 or not _is_ending(output.suffix))
    folder = output if named else None
    if folder is not None and not folder.is_dir():
        if _is_ending(folder.suffix) or folder.exists():
            raise UserError(f"{output} is no folder, and {len(images)} pictures do not fit into one file.")
        if not folder.parent.is_dir():
            raise UserError(f"Cannot write into {folder}: the folder {folder.parent} does not exist.")
        make_folder(folder)
    if output is not None and folder is None:
        if file_format not in (None, "same") and check_output_format(output) != check_output_format(
            Path(f"x.{file_format}")
        ):
            raise UserError(f"{output} and --format {file_format} contradict each other; give one.")
        targets = [output]
    else:
        ending = _ending(file_format, default)
        targets = [(folder or image.parent) / f"{image.stem}_{label}{ending or _same(image)}" for image in images]
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


def _is_ending(suffix: str) -> bool:
    """Whether it looks like that of a file; a folder may be called 2024.05.01 Trip or results_v1.0."""
    return re.fullmatch(r"\.[A-Za-z]\w{0,4}", suffix) is not None


def _ending(file_format: Format | None, default: str = ".png") -> str | None:
    """The ending of the results, or None for that of each source."""
    return None if file_format == "same" else f".{file_format}" if file_format else default


def _same(image: Path) -> str:
    from runtime.images import same_ending

    return same_ending(image)


def _box(fit: str | None) -> tuple[int, int] | None:
    if fit is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,5})[xX×]([1-9]\d{0,5})", fit)
    if match is None:
        raise UserError(f"--fit {fit} is no size; write it as 3840x2160.")
    return int(match[1]), int(match[2])


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.strip().upper())
    if match is None or not int(match[1]):
        raise UserError(f"--budget {text} is no number of bytes; write it as 500M or 8G.")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2]]


def _sentence(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{result['input']}: failed"
    if "skipped" in result:
        return f"{result['output']}: left alone, {result['skipped']}"
    seconds = result["seconds"]
    side = "x".join(map(str, reversed(result["tile"]))) if isinstance(result["tile"], list) else result["tile"]
    tiles = "whole" if result["tiles"] <= 1 else f"{result['tiles']} tiles of {side}"
    exact = (
        "exact"
        if result["exact"]
        else "approximate: this network sees the whole picture, or further than a tile; --tiling exact is not"
    )
    times = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    notes = "".join(f"; {note}" for note in result.get("notes", ()))
    return f"{result['output']}: {result['width']}x{result['height']}, {tiles} ({exact}){notes}; {times}"


if __name__ == "__main__":
    run(app)
