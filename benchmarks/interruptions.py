"""Kill a run again and again and see whether the same command ends with the same bytes.

python benchmarks/interruptions.py --kills 200
python benchmarks/interruptions.py --kills 100 --video --frames 1200

A folder of small generated pictures, one of them damaged, goes through ``runtime/infer.py`` once without a disturbance.
Then the same command is started and killed (SIGKILL) at random moments, into a second folder, until it comes to its
end; that is compared byte by byte, manifest included, and begun anew until the kills are used up. One moment in four is
drawn from the whole time of a run, start of the process included, the others from the time in which results appear.
With ``--video`` it is one generated video instead, of uneven times and with sound, whose frames go into segments; one
moment in four is then drawn from the time in which the segments are joined.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, write_json
from runtime.errors import UserError
from runtime.manifest import NAME

INFER = Path(__file__).resolve().parents[1] / "runtime/infer.py"

app = new_app("Kill a run at random moments and compare what comes out.")


@app.command()
def main(
    kills: Annotated[int, typer.Option(min=1, help="How often to kill.")] = 200,
    pictures: Annotated[int, typer.Option(min=2, help="Pictures of the folder.")] = 100,
    video: Annotated[bool, typer.Option("--video", help="A video instead of a folder; needs the extra video.")] = False,
    frames: Annotated[int, typer.Option(min=2, help="Frames of the video.")] = 1200,
    engine: Annotated[
        str | None, typer.Option(help="Engine. Default: a cubic filter as an ONNX file, made here; it is no network.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures and the moments.")] = 0,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Count what differs after interruptions; the exit code is 2 where anything does."""
    with tempfile.TemporaryDirectory() as folder:
        report = (
            interrupt_video(Path(folder), kills=kills, frames=frames, engine=engine, seed=seed, quiet=quiet)
            if video
            else interrupt(Path(folder), kills=kills, pictures=pictures, engine=engine, seed=seed, quiet=quiet)
        )
    write_json({"schema": 1, **report}, json_target)
    say(", ".join(f"{name} {value}" for name, value in report.items()), quiet=quiet, json_target=json_target)
    if report["sets_that_differ"] or report["temporary_files_left"] or report["sources_touched"]:
        raise UserError("Interruptions changed the results: see the report.")


def interrupt(
    folder: Path, *, kills: int, pictures: int, engine: str | None = None, seed: int = 0, quiet: bool = True
) -> dict[str, Any]:
    """Run the experiment with a folder of pictures, in an empty folder.

    Returns:
        "kills", those of them "kills_at_work" (something was written, and not all), "half_written_after_kills"
        (found on the disk right after a kill: the moments were bad enough), "sets" compared, "sets_that_differ",
        "temporary_files_left" at the end of any, "sources_touched", "undisturbed_seconds", "seconds"; and "pictures".

    Raises:
        UserError: the undisturbed run fails.
    """
    make_pictures(folder / "photos", pictures, seed)
    engine = engine or _own_engine(folder)
    run = _Run(("photos",), "", engine, code=3, steps=pictures // 4, sources="photos")  # 3: one picture is damaged
    return {**_experiment(folder, run, kills=kills, seed=seed, quiet=quiet), "pictures": pictures}


def interrupt_video(
    folder: Path, *, kills: int, frames: int, engine: str | None = None, seed: int = 0, quiet: bool = True
) -> dict[str, Any]:
    """Run the experiment with a video, in an empty folder.

    Returns:
        As ``interrupt``, with "frames" of the video and the "segments" that they make, and "sets_whose_frames_differ":
        of the results that have other bytes, those whose frames are other ones too, or come at other times.

    Raises:
        UserError: PyAV is missing, or the undisturbed run fails.
    """
    from runtime.video import SEGMENT_FRAMES

    make_clip(folder / "source/clip.mkv", frames, seed)
    engine = engine or _own_engine(folder)
    segments = -(-frames // SEGMENT_FRAMES)
    run = _Run(("source/clip.mkv",), "clip.mkv", engine, code=0, steps=segments, sources="source")
    report = _experiment(folder, run, kills=kills, seed=seed, quiet=quiet)
    return {**report, "frames": frames, "segments": segments}


@dataclass(frozen=True)
class _Run:
    """What is started and killed. ``steps`` are the lines of the manifest that a run may go on before it is killed."""

    inputs: tuple[str, ...]
    result: str
    """Of a video, below the folder of the results; "" for that folder itself."""
    engine: str
    code: int
    steps: int
    sources: str

    def start(self, folder: Path, output: str) -> subprocess.Popen[bytes]:
        if self.result:
            (folder / output).mkdir(exist_ok=True)
        target = f"{output}/{self.result}" if self.result else output
        command = [sys.executable, str(INFER), *self.inputs, "-o", target, "--engine", self.engine]
        command += ["--threads", "1", "--quiet"]
        silent = subprocess.DEVNULL
        return subprocess.Popen(command, cwd=folder, stdout=silent, stderr=silent)  # noqa: S603 - ours

    def written(self, output: Path) -> int:
        """Lines of the manifest so far."""
        path = (output / f"{self.result}.parts" if self.result else output) / NAME
        try:
            return path.read_bytes().count(b"\n")
        except FileNotFoundError:  # not yet, or no more
            return 0

    def joining(self, output: Path) -> bool:
        """Whether the segments of a video are just being put together."""
        return any(path.suffix == Path(self.result).suffix for path in _temporary(output))


def _experiment(folder: Path, run: _Run, *, kills: int, seed: int, quiet: bool) -> dict[str, Any]:
    import numpy as np
    from tqdm import tqdm

    random = np.random.default_rng(seed)
    sources = _tree(folder / run.sources)
    started = time.perf_counter()
    with run.start(folder, "undisturbed") as process:
        code = process.wait()
    undisturbed = time.perf_counter() - started
    if code != run.code:
        raise UserError(f"The undisturbed run ended with exit code {code}, not {run.code}.")
    expected = _tree(folder / "undisturbed")
    target = folder / "disturbed"
    done, at_work, half_written, sets, differ, frames_differ, left = 0, 0, 0, 0, 0, 0, 0
    started = time.perf_counter()
    with tqdm(total=kills, unit="kill", disable=True if quiet else None) as bar:
        while True:
            with run.start(folder, target.name) as process:
                if done < kills:
                    kind = random.random()
                    if kind < 0.25:
                        _wait(process, random.uniform(0.1, 1.0) * undisturbed)
                    elif kind < 0.5 and run.result:
                        while process.poll() is None and not run.joining(target):
                            time.sleep(0.001)
                        _wait(process, random.uniform(0, 0.05))
                    else:
                        wanted = run.written(target) + random.integers(0, run.steps + 1)
                        while process.poll() is None and run.written(target) < wanted:
                            time.sleep(0.002)
                        _wait(process, random.uniform(0, undisturbed / run.steps / 2 if run.result else 0.02))
                    process.kill()
                process.wait()
            if process.returncode == -9:
                done += 1
                bar.update()
                found = _tree(target)
                at_work += bool(found) and found != expected
                half_written += len(_temporary(target))
                continue
            sets += 1
            same = process.returncode == run.code and _tree(target) == expected
            differ += not same
            if not same and run.result:
                frames_differ += _decoded(target / run.result) != _decoded(folder / "undisturbed" / run.result)
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
        **({"sets_whose_frames_differ": frames_differ} if run.result else {}),
        "temporary_files_left": left,
        "sources_touched": int(_tree(folder / run.sources) != sources),
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


def make_clip(path: Path, frames: int, seed: int) -> None:
    """A small Matroska video of noise at uneven times, with sound."""
    import av
    import numpy as np

    random = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 32, 24, "yuv420p"
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac", rate=16000, layout="mono")
        time_ms = 0
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            time_ms += int(random.integers(10, 60))
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for start in range(0, 16 * time_ms, 1024):
            noise = random.integers(-999, 999, (1, 1024)).astype(np.int16)
            sound = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 16000, start, Fraction(1, 16000)
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))


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


def _own_engine(folder: Path) -> str:
    cubic_engine(folder / "cubic_x4.onnx")
    return f"ort:{folder / 'cubic_x4.onnx'}"


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _decoded(path: Path) -> list[tuple[Fraction, str]]:
    """Time and sum of each frame of a video; [] where it is not there."""
    import av

    if not path.is_file():
        return []
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    times = [Fraction(frame.pts or 0) * (frame.time_base or 1) for frame in frames]
    return list(zip(times, (hashlib.sha256(frame.to_ndarray().tobytes()).hexdigest() for frame in frames), strict=True))


def _temporary(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


if __name__ == "__main__":
    run(app)
