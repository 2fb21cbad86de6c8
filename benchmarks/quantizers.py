"""Our quantization against others: the same FP32 file, the same pictures, the same sets, the same cores, one run.

python benchmarks/quantizers.py -o out/quantizers
python benchmarks/quantizers.py -o out/quantizers --set Set5 --rounds 3 --only ours-cpu --only ort --only nncf
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from benchmarks.protocol import LATENCY_INPUT, Size, size_from_text
from runtime.command_line import JsonOption, QuietOption, new_app, run, say, write_json
from runtime.engines.opening import CPU_BACKENDS
from runtime.errors import UserError
from runtime.files import atomic_write

if TYPE_CHECKING:
    from benchmarks.rivals import Made, Recipe
    from data.sets import ImageSet
    from quantize.patches import Patches

MODEL = Path(__file__).resolve().parents[1] / "runtime/models/gmin_x4.onnx"
NOT_NAMED = (
    "not run: it pins onnx 1.21 and an older ONNX Runtime, so it needs an environment of its own; make one with "
    "pip install 'nvidia-modelopt[onnx]' and name its Python with --modelopt"
)


@dataclass(frozen=True)
class Row:
    """One file in one engine. ``note`` says why figures are missing; sets are by name."""

    recipe: str
    quantizer: str
    setting: str
    version: str | None
    engine: str | None
    backend: str | None
    drop_db: dict[str, float] = field(default_factory=dict)
    """FP32 in ONNX Runtime less this, mean luma PSNR over the set."""
    psnr_y_db: dict[str, float] = field(default_factory=dict)
    median_ms: float | None = None
    p90_ms: float | None = None
    ratio: float | None = None
    """Median over rounds of this time over that of FP32 in ONNX Runtime in the same round."""
    size_bytes: int | None = None
    calibration_s: float | None = None
    calibration_peak_mb: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Candidate:
    """A file to be scored: what made it, and where it lies (None where it was not made)."""

    key: str
    recipe: Recipe | None
    """None is the FP32 file itself."""
    path: Path | None
    made: Made


def quantize_all(
    recipes: Mapping[str, Recipe],
    source: Path,
    patches: Patches,
    *,
    calib: str,
    count: int,
    max_drop: float,
    folder: Path,
    limit_s: float,
    limit_mb: float,
    quiet: bool = True,
) -> list[Candidate]:
    """Let every recipe make its file in ``folder``, one after the other, each in a process of its own."""
    import numpy as np
    from tqdm import tqdm

    from benchmarks.rivals import Job, Made, make

    found = []
    with tempfile.TemporaryDirectory() as temporary:
        array = Path(temporary) / "pictures.npy"
        pictures = list(patches.batches())
        alike = len({picture.shape for picture in pictures}) == 1
        if alike:
            np.save(array, np.concatenate(pictures))
        for key, recipe in tqdm(recipes.items(), "quantizing", leave=False, disable=True if quiet else None):
            target = folder / f"{key.replace(' ', '_')}{recipe.suffix}"
            job = Job(
                recipe=key.split()[0],
                source=str(source),
                target=str(target),
                calib=calib,
                array=str(array),
                patches=count,
                scale=patches.scale,
                max_drop=max_drop,
                options=recipe.options,
            )
            _remove(target)  # what an earlier run left is not this one's
            if recipe.library == "nvidia-modelopt" and recipe.python is None:
                made = Made(error=NOT_NAMED)
            elif recipe.library == "nvidia-modelopt" and not alike:
                made = Made(error="not run: it takes pictures of one size only")
            else:
                made = make(recipe, job, limit_s=limit_s, limit_mb=limit_mb)
            if made.error:
                _remove(target)
            found.append(Candidate(key, recipe, None if made.error else target, made))
    return found


def measure_all(
    candidates: Sequence[Candidate],
    sets: Sequence[ImageSet],
    size: Size,
    *,
    threads: int,
    rounds: int,
    engines: Sequence[str] = CPU_BACKENDS,
    quiet: bool = True,
) -> list[Row]:
    """Score every file in every engine that takes it, then time all of them in turns; the first candidate is FP32."""
    from tqdm import tqdm

    from benchmarks.accuracy import score
    from benchmarks.engines import open_any
    from benchmarks.latency import WARM_UP, Contestant, measure
    from runtime.engines.opening import BACKENDS, installed

    silent = True if quiet else None
    present = [name for name in engines if installed(BACKENDS[name])]
    rows: list[Row] = []
    specs: list[str | None] = []
    base: dict[str, float] = {}
    bar = tqdm([(c, name) for c in candidates for name in present], "scoring", leave=False, disable=silent)
    for candidate, name in bar:
        row, spec = _row(candidate), f"{name}:{candidate.path}"
        if candidate.path is None or (candidate.path.suffix == ".xml" and name == "ort"):
            if candidate.path is None and name == present[0]:
                rows.append(replace(row, note=candidate.made.error or ""))
                specs.append(None)
            continue
        try:
            with closing(open_any(spec, threads=threads)) as engine:
                info = engine.info
                means = [score(engine, images)[0] for images in sets]
        except UserError as error:  # a refusal is a result here
            rows.append(replace(row, engine=name, note=f"refused: {error}"))
            specs.append(None)
            continue
        psnr = {Path(mean.set).name: mean.psnr_y_db for mean in means}
        base = base or psnr
        rows.append(
            replace(
                row,
                engine=name,
                backend=f"{info.backend}, {info.device}",
                psnr_y_db=psnr,
                drop_db={key: base[key] - value for key, value in psnr.items()},
            )
        )
        specs.append(spec)
    racing = [i for i, spec in enumerate(specs) if spec]
    with ExitStack() as stack:
        contestants = [
            Contestant(stack.enter_context(closing(open_any(specs[i] or "", threads=threads))), rows[i].recipe)
            for i in racing
        ]
        with tqdm(total=rounds + WARM_UP, desc="timing", unit="round", leave=False, disable=silent) as bar:
            times = measure(contestants, size, threads=threads, rounds=rounds, warm_up=WARM_UP, after_round=bar.update)
    for i, latency in zip(racing, times, strict=True):
        rows[i] = replace(rows[i], median_ms=latency.median_ms, p90_ms=latency.p90_ms, ratio=latency.ratio)
    return rows


def markdown(content: Mapping[str, Any]) -> str:
    """The result as a page: a table by engine, fastest first, and everything that decides about it."""
    sets: list[str] = content["sets"]
    rows: list[dict[str, Any]] = content["results"]

    def cell(value: float | None, digits: int = 0) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    head = ["Quantizer", "Setting", *(f"drop on {name}, dB" for name in sets), "speed", "median, ms", "p90, ms"]
    head += ["MB", "calibration, s", "its peak, MB"]
    lines = [
        f"# Quantizers on {content['source']}",
        "",
        f"{content['date']}; {content['environment']['processor']}, {content['environment']['threads']} threads; "
        f"{content['calibration_pictures']} pictures of {content['calibration']} calibrate, "
        f"{content['held_out_pictures']} others judge where a method asks; {content['size']} pixels in, "
        f"{content['rounds']} rounds in turns; by `{content['command']}`.",
        "",
        content["verdict"],
        "",
    ]
    for engine in CPU_BACKENDS:
        own = [row for row in rows if row["engine"] == engine and not row["note"]]
        if not own:
            continue
        lines += [f"## In {own[0]['backend']}", "", _line(head), _line(["---"] * 2 + ["--:"] * (len(head) - 2))]
        for row in sorted(own, key=lambda row: row["ratio"]):
            lines.append(
                _line(
                    [
                        row["quantizer"],
                        row["setting"],
                        *(cell(round(row["drop_db"][name], 4) + 0.0, 4) for name in sets),
                        f"×{1 / row['ratio']:.2f}",
                        cell(row["median_ms"]),
                        cell(row["p90_ms"]),
                        cell(row["size_bytes"] / 1e6 if row["size_bytes"] else None, 2),
                        cell(row["calibration_s"]),
                        cell(row["calibration_peak_mb"]),
                    ]
                )
            )
        lines.append("")
    silent = [row for row in rows if row["note"]]
    if silent:
        lines += ["## Without figures", ""]
        lines += [
            f"- {row['quantizer']} ({row['setting']}){' in ' + row['engine'] if row['engine'] else ''}: {row['note']}"
            for row in silent
        ]
        lines.append("")
    lines += ["## How", ""]
    lines += [f"- {key}: {text}" for key, text in content["protocol"].items()]
    lines += [f"- libraries: {', '.join(f'{k} {v}' for k, v in content['environment']['libraries'].items())}", ""]
    return "\n".join(lines)


def verdict(rows: Sequence[Row], name: str, accepted_db: float) -> str:
    """Whether anyone should quantize here: the fastest of all within the accepted drop, in a sentence.

    Args:
        rows: FP32 in ONNX Runtime first.
        name: the set that decides.
        accepted_db: largest drop on it.
    """
    timed = [row for row in rows if row.ratio is not None and row.drop_db[name] <= accepted_db]
    if not timed:
        return "Nothing could be compared here."
    best = min(timed, key=lambda row: row.ratio or 1.0)
    plain = min((row for row in timed if row.recipe == "fp32"), key=lambda row: row.ratio or 1.0, default=None)

    def told(row: Row) -> str:
        what = row.setting if row.recipe == "fp32" else f"{row.quantizer} ({row.setting})"
        return (
            f"{what} in {row.backend}, {1 / (row.ratio or 1):.2f} times as fast as FP32 in "
            f"ONNX Runtime for {round(row.drop_db[name], 4) + 0.0:.4f} dB on {name}"
        )

    if plain is None or best is plain:
        return f"Nobody should quantize here: within {accepted_db:g} dB no INT8 file beats {told(best)}."
    gain = (plain.ratio or 1) / (best.ratio or 1)
    return (
        f"Fastest within {accepted_db:g} dB: {told(best)}. That is {gain:.2f} times as fast as the best without any "
        f"quantization, {told(plain)}."
    )


def _row(candidate: Candidate) -> Row:
    recipe, made = candidate.recipe, candidate.made
    size = sum(part.stat().st_size for part in _parts(candidate.path)) if candidate.path else None
    return Row(
        recipe=candidate.key,
        quantizer=recipe.label if recipe else "none",
        setting=recipe.setting if recipe else "the FP32 file",
        version=made.version,
        engine=None,
        backend=None,
        size_bytes=size,
        calibration_s=made.seconds,
        calibration_peak_mb=made.peak_memory_mb,
    )


def _parts(path: Path) -> list[Path]:
    """The files of a model: OpenVINO keeps graph and weights apart."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def _remove(path: Path) -> None:
    for part in _parts(path):
        part.unlink(missing_ok=True)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _chosen(only: Sequence[str], ours: Sequence[str], modelopt: Path | None) -> dict[str, Recipe]:
    """The recipes to run, ours once for each set of options.

    Raises:
        UserError: a name is unknown, or the interpreter is not there.
    """
    import shlex

    from benchmarks.rivals import RECIPES

    if unknown := sorted(set(only) - set(RECIPES)):
        raise UserError(f"No quantizer is called {unknown[0]}; known: {', '.join(RECIPES)}.")
    if modelopt is not None and not modelopt.is_file():
        raise UserError(f"There is no Python at {modelopt}.")
    found: dict[str, Recipe] = {}
    for key, recipe in RECIPES.items():
        if only and key not in only:
            continue
        if recipe.library == "nvidia-modelopt":
            found[key] = replace(recipe, python=str(modelopt) if modelopt else None)
        elif recipe.library != "gmin-edge":
            found[key] = recipe
        else:
            for options in ours or [""]:
                found[f"{key} {options}".strip()] = replace(
                    recipe, setting=f"{recipe.setting} {options}".strip(), options=tuple(shlex.split(options))
                )
    return found


def made_before(path: Path) -> Candidate:
    """A file that no recipe here made; its own metadata say how it came about.

    Raises:
        UserError: it is no ONNX file.
    """
    from benchmarks.rivals import Made, Recipe
    from quantize.graph import read_onnx

    properties = {entry.key: entry.value for entry in read_onnx(path).metadata_props}
    setting = properties.get("gmin.quantization", "as it was given")
    return Candidate(path.stem, Recipe(path.name, setting, "", lambda _: None), path, Made())


app = new_app("Our quantization against others.")


@app.command()
def main(
    model: Annotated[Path, typer.Argument(help="The FP32 .onnx file.")] = MODEL,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files, .md and .json.")] = Path(
        "out/quantizers"
    ),
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="A set or a folder; repeat it. Default: BSD100 and Set14.")
    ] = None,
    calib: Annotated[str, typer.Option(help="DIV2K, or a folder of HR pictures.")] = "DIV2K",
    patches: Annotated[int, typer.Option(min=1, help="Pictures to calibrate on, at most.")] = 64,
    max_drop: Annotated[
        float, typer.Option(min=0, help="Largest accepted drop in dB: of accuracy control, and of the verdict.")
    ] = 0.03,
    only: Annotated[list[str] | None, typer.Option("--only", help="A quantizer; repeat it. Default: all.")] = None,
    engines: Annotated[
        list[str] | None,
        typer.Option(
            "--engine", help=f"Where files are scored and timed, besides ort; repeat it. Of {', '.join(CPU_BACKENDS)}."
        ),
    ] = None,
    ours: Annotated[
        list[str] | None,
        typer.Option(
            "--ours", help="Options for quantize/ptq.py, such as '--method minmax'; repeat it for several runs."
        ),
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", help="An INT8 .onnx file made before, as by quantize/qat.py; repeat it."),
    ] = None,
    modelopt: Annotated[Path | None, typer.Option(help="Python of an environment with nvidia-modelopt[onnx].")] = None,
    size: Annotated[str | None, typer.Option(help="Size of the input for times. Default: 320x180.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of one inference. Default: all cores of this process.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 30,
    time_limit: Annotated[float, typer.Option(min=0, help="Minutes that one quantization may take.")] = 60,
    memory_limit: Annotated[float, typer.Option(min=0, help="GB that one quantization may hold.")] = 8,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Quantize one FP32 file in every way there is here, and say what each costs and wins."""
    import json

    from benchmarks.latency import PROTOCOL as TIMING
    from benchmarks.rivals import Made
    from data.metrics import PROTOCOL as SCORING
    from data.sets import image_set
    from quantize.graph import check_quantizable, read_onnx
    from quantize.patches import load_patches
    from runtime.engines.ort import OrtEngine
    from runtime.environment import available_cores, environment

    recipes = _chosen(only or [], ours or [], modelopt)
    given = [made_before(path) for path in files or []]
    if unknown := sorted(set(engines or []) - set(CPU_BACKENDS)):
        raise UserError(f"No engine is called {unknown[0]} here; known: {', '.join(CPU_BACKENDS)}.")
    measured_at = size_from_text(size) if size else LATENCY_INPUT
    check_quantizable(read_onnx(model), model)
    with closing(OrtEngine(model, device="cpu")) as engine:
        scale = engine.info.scale
    images = [image_set(name, scale) for name in sets or ["BSD100", "Set14"]]
    chosen = load_patches(calib, scale, patches)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write into {output}: {error.strerror}.") from error
    threads = threads or available_cores()
    made = quantize_all(
        recipes,
        model,
        chosen,
        calib=calib,
        count=patches,
        max_drop=max_drop,
        folder=output,
        limit_s=60 * time_limit,
        limit_mb=1e3 * memory_limit,
        quiet=quiet,
    )
    candidates = [Candidate("fp32", None, model, Made()), *made, *given]
    rows = measure_all(
        candidates,
        images,
        measured_at,
        threads=threads,
        rounds=rounds,
        engines=[name for name in CPU_BACKENDS if name == CPU_BACKENDS[0] or not engines or name in engines],
        quiet=quiet,
    )
    around = environment(threads)
    names = [Path(part.name).name for part in images]
    content = {
        "schema": 1,
        "source": model.name,
        "command": _command(),
        "date": around.date,
        "sets": names,
        "size": str(measured_at),
        "rounds": rounds,
        "calibration": Path(calib).name,
        "calibration_pictures": len(chosen.calibration),
        "held_out_pictures": len(chosen.held_out),
        "max_drop_db": max_drop,
        "verdict": verdict(rows, names[0], max_drop),
        "results": [asdict(row) for row in rows],
        "environment": asdict(around),
        "protocol": {
            "Quality": SCORING,
            "Time": TIMING,
            "Calibration": "each quantizer in a process of its own; seconds are of the call, without starting Python "
            "and importing libraries; the peak is the highest resident memory of that process, everything included; "
            "ours includes its check on the held-out pictures",
        },
    }
    text = markdown(content)
    for name, part in (("quantizers.json", json.dumps(content, indent=1) + "\n"), ("quantizers.md", text)):
        with atomic_write(output / name) as stream:
            stream.write(part.encode())
    write_json(content, json_target)
    say(f"{text}\n{output / 'quantizers.md'}", quiet=quiet, json_target=json_target)


def _command() -> str:
    """What the user typed, without where an environment lies on this machine."""
    import shlex

    words = [
        "PYTHON" if before == "--modelopt" else word for before, word in zip(["", *sys.argv], sys.argv, strict=False)
    ]
    return f"python benchmarks/quantizers.py {shlex.join(words[1:])}".strip()


if __name__ == "__main__":
    run(app)
