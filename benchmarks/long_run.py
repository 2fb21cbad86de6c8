"""One process, hundreds of pictures: does memory stay flat, and how much of the bare engine's speed is left?

python benchmarks/long_run.py --pictures 500 --size 64x48 --vary
python benchmarks/long_run.py --pictures 24 --size 320x180 --engine openvino-bf16:gmin_x4 --format jpg

Pictures are cut from the shipped photo. The bare engine sees the same batches, without files, before and after the run.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from benchmarks.memory import resident_mb
from runtime.command_line import JsonOption, QuietOption, new_app, run, say, write_json
from runtime.errors import UserError

app = new_app("Memory and throughput of a folder run in one process.")


@app.command()
def main(
    pictures: Annotated[int, typer.Option(min=2, help="How many pictures.")] = 500,
    size: Annotated[str, typer.Option(metavar="WxH", help="Of each picture, at most 448x288.")] = "64x48",
    vary: Annotated[bool, typer.Option("--vary", help="Sides between half of the size and the size.")] = False,
    format_: Annotated[Literal["png", "jpg"], typer.Option("--format", help="Of pictures and results.")] = "png",
    engine: Annotated[str, typer.Option(help="Engine, as for runtime/infer.py.")] = "gmin_x4",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one inference.")] = None,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Upscale a folder in this process and report what it cost."""
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    if match is None or not (16 <= int(match[1]) <= 448 and 16 <= int(match[2]) <= 288):
        raise UserError(f"--size {size} is no size between 16x16 and 448x288.")
    if resident_mb("VmRSS") is None:
        raise UserError("Resident memory is read from /proc, which this system does not have: run this on Linux.")
    with tempfile.TemporaryDirectory() as folder:
        report = long_run(
            Path(folder), engine, count=pictures, width=int(match[1]), height=int(match[2]), vary=vary, threads=threads,
            ending=f".{format_}", quiet=quiet,
        )  # fmt: skip
    write_json({"schema": 1, **report}, json_target)
    shown = {key: value for key, value in report.items() if key not in ("engine", "resident_mb")}
    say(", ".join(f"{key} {value}" for key, value in shown.items()), quiet=quiet, json_target=json_target)


def long_run(
    folder: Path,
    engine: str,
    *,
    count: int,
    width: int,
    height: int,
    vary: bool = False,
    threads: int | None = None,
    ending: str = ".png",
    quiet: bool = True,
) -> dict[str, Any]:
    """Run ``count`` pictures of at most ``width`` × ``height`` pixels through an engine, in an empty folder.

    Pictures and results are files of the format of ``ending``.

    Returns:
        "bare_seconds" of the engine alone (mean of before and after), "folder_seconds", "share_of_bare", the resident
        memory after each picture ("resident_mb"), and "growth": its highest value after the first tenth (at most 50
        pictures) over the value then, less 1; and the same for the mean of the last tenth ("growth_at_end").
    """
    import numpy as np
    from tqdm import tqdm

    from runtime.batch import run_batch
    from runtime.engines.contract import ShapedEngine
    from runtime.engines.opening import model_of
    from runtime.folder import plan_folders
    from runtime.images import Picture, read_picture, write_picture
    from runtime.manifest import open_manifest
    from runtime.rows import to_batch
    from runtime.selection import open_fastest
    from runtime.steps import Options, options_hash

    photo = read_picture(Path(__file__).resolve().parents[1] / "data/chelsea.png").colour
    random = np.random.default_rng(0)
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    for i in range(count):
        h, w = (int(random.integers(max(16, n // 2), n + 1)) if vary else n for n in (height, width))
        top, left = int(random.integers(0, 300 - h)), int(random.integers(0, 451 - w))
        write_picture(folder / f"in/{i:05}{ending}", Picture(photo[top : top + h, left : left + w]))
    opened, _ = open_fastest(engine, threads=threads)
    options = Options()
    with closing(opened):
        plan = plan_folders([folder / "in"], folder / "out", label=f"x{opened.info.scale}", ending=ending)

        def bare() -> float:
            """Seconds of the engine alone, as the bench of latency asks it: prepared, one picture after the other."""
            if isinstance(opened, ShapedEngine) and not vary:
                opened.expect((1, 3, height, width))
            opened.infer(to_batch(read_picture(plan.jobs[0].source).colour))
            seconds = 0.0
            for job in plan.jobs:  # one at a time: memory is watched here
                batch = to_batch(read_picture(job.source).colour)
                started = time.perf_counter()
                opened.infer(batch)
                seconds += time.perf_counter() - started
            return seconds

        resident: list[float] = []
        with open_manifest(folder / "out") as manifest:
            key = options_hash(options, opened, model_of(opened.info.engine))
            work = run_batch(plan, opened, options, manifest=manifest, options_sha256=key)
            first = bare()
            started = time.perf_counter()
            with closing(work), tqdm(total=count, unit="picture", disable=True if quiet else None) as bar:
                for result in work:
                    if "error" in result:
                        raise UserError(result["error"])
                    resident.append(resident_mb("VmRSS") or 0.0)
                    bar.update()
            seconds = time.perf_counter() - started
        last = bare()
    settled = min(50, max(1, count // 10))
    after = resident[settled:]
    end = sum(resident[-settled:]) / settled
    return {
        "engine": asdict(opened.info),
        "pictures": count,
        "bare_seconds": round((first + last) / 2, 3),
        "bare_before_after": [round(first, 3), round(last, 3)],
        "folder_seconds": round(seconds, 3),
        "share_of_bare": round((first + last) / 2 / seconds, 3),
        "growth": round(max(after) / resident[settled - 1] - 1, 4),
        "growth_at_end": round(end / resident[settled - 1] - 1, 4),
        "resident_mb": resident,
    }


if __name__ == "__main__":
    run(app)
