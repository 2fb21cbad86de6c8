"""Kill a folder run again and again and see whether the same command ends with the same bytes.

python benchmarks/interruptions.py --kills 200

A folder of small generated pictures, one of them damaged, goes through ``runtime/infer.py`` once without a disturbance.
Then the same command is started and killed (SIGKILL) at random moments, into a second folder, until it comes to its
end; that is compared byte by byte, manifest included, and begun anew until the kills are used up. One moment in four is
drawn from the whole time of a run, start of the process included, the others from the time in which results appear.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, write_json
from runtime.errors import UserError
from runtime.manifest import NAME

INFER = Path(__file__).resolve().parents[1] / "runtime/infer.py"

app = new_app("Kill a folder run at random moments and compare what comes out.")


@app.command()
def main(
    kills: Annotated[int, typer.Option(min=1, help="How often to kill.")] = 200,
    pictures: Annotated[int, typer.Option(min=2, help="Pictures of the folder.")] = 100,
    engine: Annotated[
        str | None, typer.Option(help="Engine. Default: a cubic filter as an ONNX file, made here; it is no network.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the pictures and the moments.")] = 0,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Count what differs after interruptions; the exit code is 2 where anything does."""
    with tempfile.TemporaryDirectory() as folder:
        report = interrupt(Path(folder), kills=kills, pictures=pictures, engine=engine, seed=seed, quiet=quiet)
    write_json({"schema": 1, **report}, json_target)
    say(", ".join(f"{name} {value}" for name, value in report.items()), quiet=quiet, json_target=json_target)
    if report["sets_that_differ"] or report["temporary_files_left"] or report["sources_touched"]:
        raise UserError("Interruptions changed the results: see the report.")


def interrupt(
    folder: Path, *, kills: int, pictures: int, engine: str | None = None, seed: int = 0, quiet: bool = True
) -> dict[str, Any]:
    """Run the experiment in an empty folder.

    Returns:
        "kills", those of them "kills_at_work" (between the first and the last result), "half_written_after_kills"
        (found on the disk right after a kill: the moments were bad enough), "sets" compared, "sets_that_differ",
        "temporary_files_left" at the end of any, "sources_touched", "undisturbed_seconds", "seconds".

    Raises:
        UserError: the undisturbed run fails.
    """
    import numpy as np
    from tqdm import tqdm

    random = np.random.default_rng(seed)
    make_pictures(folder / "photos", pictures, seed)
    if engine is None:
        cubic_engine(folder / "cubic_x4.onnx")
        engine = f"ort:{folder / 'cubic_x4.onnx'}"
    sources = _tree(folder / "photos")
    started = time.perf_counter()
    with _start(folder, "undisturbed", engine) as process:
        code = process.wait()
    undisturbed = time.perf_counter() - started
    if code != 3:  # done in part: one picture is damaged
        raise UserError(f"The undisturbed run ended with exit code {code}, not 3.")
    expected = _tree(folder / "undisturbed")
    target = folder / "disturbed"
    done, at_work, half_written, sets, differ, left = 0, 0, 0, 0, 0, 0
    started = time.perf_counter()
    with tqdm(total=kills, unit="kill", disable=True if quiet else None) as bar:
        while True:
            with _start(folder, target.name, engine) as process:
                if done < kills:
                    if random.random() < 0.25:
                        _wait(process, random.uniform(0.1, 1.0) * undisturbed)
                    else:
                        wanted = _written(target) + random.integers(0, pictures // 4 + 1)
                        while process.poll() is None and _written(target) < wanted:
                            time.sleep(0.002)
                        _wait(process, random.uniform(0, 0.02))
                    process.kill()
                process.wait()
            if process.returncode == -9:
                done += 1
                bar.update()
                results = sum(path.is_file() for path in target.rglob("*"))
                at_work += 0 < results < len(expected)
                half_written += len(_temporary(target))
                continue
            sets += 1
            differ += process.returncode != 3 or _tree(target) != expected
            left += len(_temporary(target))
            if done == kills:
                break
            shutil.rmtree(target)
    return {
        "kills": done,
        "kills_at_work": at_work,
        "half_written_after_kills": half_written,
        "sets": sets,
        "sets_that_differ": differ,
        "temporary_files_left": left,
        "sources_touched": int(_tree(folder / "photos") != sources),
        "pictures": pictures,
        "undisturbed_seconds": round(undisturbed, 2),
        "seconds": round(time.perf_counter() - started, 1),
    }


def make_pictures(folder: Path, count: int, seed: int) -> None:
    """Small pictures of noise in three formats and four folders, the second of them damaged."""
    import cv2
    import numpy as np

    random = np.random.default_rng(seed)
    for i in range(count):
        path = folder / ("", "a", "a/b", "c")[i % 4] / f"{i:04}{('.png', '.jpg', '.tiff')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i == 1:
            path.write_bytes(b"\xff\xd8\xff no picture")
            continue
        height, width = random.integers(16, 64, 2)
        cv2.imwrite(str(path), random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def cubic_engine(path: Path) -> None:
    """A cubic filter x4 as an ONNX file: no network, but what runs it is a real engine."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="cubic", cubic_coeff_a=-0.5)
    graph = helper.make_graph(
        [node],
        "cubic_x4",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, "H4", "W4"])],
        [numpy_helper.from_array(np.array([1, 1, 4, 4], np.float32), "scales")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)


def _start(folder: Path, output: str, engine: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(INFER), "photos", "-o", output, "--engine", engine, "--threads", "1", "--quiet"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603 - ours


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _written(folder: Path) -> int:
    """Lines of the manifest so far."""
    path = folder / NAME
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _temporary(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


if __name__ == "__main__":
    run(app)
