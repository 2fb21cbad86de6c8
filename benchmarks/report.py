"""The comparison as one page: GMIN against LKDN, BSRN and HNCT, FP32 against INT8, and which file to ship.

python benchmarks/report.py -o out/report
python benchmarks/report.py -o out/report --quick
python benchmarks/report.py -o out/report --readme README.md
python benchmarks/report.py --from docs/comparison.json --readme README.md
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from benchmarks.comparison import FULL, QUICK, SCALE, TARGETS, Plan, Row, label_of
from benchmarks.protocol import size_from_text
from runtime.command_line import JsonOption, QuietOption, new_app, run, say, write_json
from runtime.errors import UserError
from runtime.files import atomic_write

if TYPE_CHECKING:
    from benchmarks.layers import LayerProfile
    from benchmarks.pictures import Crop
    from benchmarks.plots import Point
    from benchmarks.report_data import Report, Slider
    from quantize.ptq import Target
    from runtime.environment import Environment

_HERE = Path(__file__).parent
PHOTO = _HERE.parent / "data/chelsea.png"
"""Ours to show (CC0), so that a report can be published as it is; pictures of the benchmark sets could not."""
PLOT_STYLE = _HERE / "plots.css"


def make_report(plan: Plan, *, command: str, quiet: bool = True) -> Report:
    """Measure everything that a plan asks for.

    Raises:
        UserError: ONNX Runtime or PyTorch, the shipped models or an image set is missing.
    """
    from benchmarks.comparison import measure_rows, refusals, verdict
    from benchmarks.complexity import PROTOCOL as COUNTING
    from benchmarks.latency import NOISY
    from benchmarks.latency import PROTOCOL as TIMING
    from benchmarks.layers import profile_layers
    from benchmarks.published import published
    from benchmarks.report_data import Report
    from data.metrics import PROTOCOL as SCORING
    from runtime.engines.opening import MODELS
    from runtime.environment import available_cores, environment

    threads = plan.threads or available_cores()
    rows = measure_rows(plan, quiet=quiet)
    around = environment(threads)
    sets = tuple(Path(name).name for name in plan.sets)
    files = [row for row in rows if row.kind == "file"]
    sliders, crops = compare_pictures(files, sets[0], threads)
    profiles = profile_layers(
        [MODELS / "gmin_x4.onnx", MODELS / "gmin_x4_int8_cpu.onnx"],
        width=plan.size.width,
        height=plan.size.height,
        threads=threads,
        runs=plan.profile_runs,
    )
    noisy = [row for row in rows if row.median_ms and row.p90_ms and row.p90_ms > NOISY * row.median_ms]
    warnings = [f"Left out: {reason}" for reason in dict.fromkeys(refusals().values())]
    if noisy:
        warnings.append(
            f"The machine was busy: for {len(noisy)} of the timed engines the slowest tenth of the runs took over "
            f"{NOISY} times the median. Ratios compare runs of the same moment and hold better than milliseconds."
        )
    return Report(
        command=command,
        quick=plan.quick,
        sets=sets,
        size=str(plan.size),
        rounds=plan.rounds,
        verdict=verdict(rows, sets[0], gpu=bool(around.accelerators)),
        rows=tuple(rows),
        published=tuple(published()),
        profiles=tuple(profiles),
        sliders=tuple(sliders),
        crops=tuple(crops),
        environment=around,
        protocol={
            "Quality": SCORING,
            "Cost": COUNTING,
            "Time": f"{TIMING}; {plan.size} pixels in, {plan.rounds} rounds",
        },
        warnings=tuple(warnings),
        weights=_checkpoint(MODELS / "gmin_x4.onnx"),
    )


def compare_pictures(files: Sequence[Row], name: str, threads: int) -> tuple[list[Slider], list[Crop]]:
    """The project's photo through bicubic, FP32 and every INT8 file; the INT8 file to slide is the one to ship.

    Args:
        files: measured files, GMIN FP32 in ONNX Runtime first.
        name: the set that decides which INT8 file is the one to ship.
        threads: of one inference.
    """
    from contextlib import closing

    from benchmarks.comparison import ACCEPTED_DROP_DB
    from benchmarks.engines import open_any
    from benchmarks.pictures import Shown, crops, data_address
    from benchmarks.report_data import Slider
    from data.metrics import psnr_y
    from data.sets import crop_to_multiple, downscale, from_batch, read_rgb, to_batch

    original = crop_to_multiple(read_rgb(PHOTO), SCALE)
    batch = to_batch(downscale(original, SCALE))

    def through(spec: str) -> Any:
        with closing(open_any(spec, SCALE, threads=threads)) as engine:
            return from_batch(engine.infer(batch))

    eights = [row for row in files if row.target and row.engine and "bf16" not in row.label]
    bicubic, fp32 = through("bicubic"), through(files[0].engine or "")
    int8 = {_int8_label(row): row for row in eights}
    results = {label: through(row.engine or "") for label, row in int8.items()}

    def shown(label: str, image: Any) -> Shown:
        return Shown(label, data_address(image), psnr_y(image, original, crop=SCALE))

    height, width = original.shape[:2]
    sliders = []
    if int8:
        good = [label for label, row in int8.items() if row.drop_db[name] <= ACCEPTED_DROP_DB] or list(int8)
        best = min(good, key=lambda label: int8[label].ratio or 1.0)
        last = shown(best, results[best])
        sliders = [
            Slider(shown(label, image), last, width, height) for label, image in (("Bicubic", bicubic), ("FP32", fp32))
        ]
    return sliders, crops(original, bicubic, fp32, results)


def render(report: Report) -> tuple[str, str]:
    """The page, which needs nothing from outside, and the same in Markdown without pictures."""
    import base64
    import hashlib

    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
    from markupsafe import Markup

    from benchmarks.pictures import FULL_SCALE
    from benchmarks.published import caveats

    templates = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
    )
    templates.filters |= FILTERS
    style = PLOT_STYLE.read_text() + (_HERE / "report.css").read_text()
    script = (_HERE / "report.js").read_text()

    def allowed(text: str) -> str:
        return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

    context = {
        "report": report,
        "date": date_of(report.environment.date),
        "scale": SCALE,
        "main_set": report.sets[0],
        "networks": network_rows(report),
        "files": [row for row in report.rows if row.kind == "file"],
        "targets": list(TARGETS.items()),
        "int8": int8_lines(report),
        "plots": [(title, Markup(svg)) for title, svg in plots(report)],  # noqa: S704 - built here, text escaped there
        "layers": layer_table(report.profiles),
        "environment": _environment_lines(report.environment),
        "caveats": caveats(),
        "published_sets": ("Set5", "Set14", "BSD100"),
        "full_scale": FULL_SCALE,
        "style": Markup(style),  # noqa: S704 - our own file
        "script": Markup(script),  # noqa: S704 - our own file
        "style_hash": allowed(style),
        "script_hash": allowed(script),
    }
    page = templates.get_template("report.html.j2").render(context)
    return page, templates.get_template("report.md.j2").render(context)


def network_rows(report: Report) -> list[Row]:
    """The rows of the table of networks: GMIN FP32, the others, the floor."""
    from benchmarks.comparison import training_remarks

    remark = "weights as shipped, with less training" if training_remarks(report.rows, report.sets[0]) else ""
    ours = replace(report.rows[0], label="GMIN", remark=remark)
    return [ours, *(row for row in report.rows if row.kind in ("network", "floor"))]


def int8_lines(report: Report) -> list[dict[str, Any]]:
    """The table of other networks through the same INT8 path: a label, and what to say of each flavour.

    Empty where none was quantized. The first line is GMIN, to compare with.
    """
    name = report.sets[0]
    plain = {row.network: row for row in network_rows(report)}
    others = [row.network for row in report.rows if row.kind == "int8"]
    tried = {(row.network, row.target, (row.engine or "").split(":")[0]): row for row in report.rows if row.target}

    def cell(network: str, target: Target, backend: str) -> str:
        row = tried.get((network, target, backend)) or tried.get((network, target, ""))
        if row is None or name not in row.drop_db:
            return row.remark if row else "–"
        text, base = f"{round(row.drop_db[name], 3) + 0.0:.3f} dB", plain.get(network)
        if target != "tensorrt" and row.ratio and base and base.ratio:
            text += f", ×{base.ratio / row.ratio:.2f}"
        return text

    return [
        {
            "label": label_of(network),
            "network": network,
            "cells": [cell(network, target, backend) for target, (backend, _) in TARGETS.items()],
        }
        for network in dict.fromkeys(["gmin_x4", *others] if others else [])
    ]


def plots(report: Report) -> list[tuple[str, str]]:
    """Quality against MACs, parameters and time: titles and SVG."""
    from benchmarks.plots import Point, scatter

    name = report.sets[0]
    networks = [row for row in network_rows(report) if row.kind != "floor"]

    def against(rows: Sequence[Row], value: Any) -> list[Point]:
        points = []
        for row in rows:
            x, ours = value(row), row.network == "gmin_x4"
            if x is not None and name in row.measured:
                points.append(Point(row.label, x, row.measured[name].psnr_y_db, "measured", ours))
            printed = row.published[name].psnr_y_db if name in row.published else None
            if x is not None and printed is not None and (ours or name not in row.measured):
                points.append(Point(row.label, x, printed, "published", ours))
        return points

    timed = [replace(row, published={}) for row in networks[1:]]
    timed += [
        replace(row, published={}, label=f"{_short(row)}")
        for row in report.rows
        if row.kind == "file" and row.file != "gmin_x4_int8.onnx"  # that one is for GPUs
    ]
    y = f"PSNR on {name}, dB"
    drawn = [
        (
            "Quality against computation",
            against(networks, lambda r: r.macs and r.macs / 1e9),
            "MACs for a 1280×720 result, G",
        ),
        (
            "Quality against size",
            against(networks, lambda r: r.parameters and r.parameters / 1e3),
            "parameters, thousands",
        ),
        ("Quality against time", against(timed, lambda r: r.median_ms), f"ms for {report.size} pixels in"),
    ]
    return [(title, scatter(points, title=title, x_label=x, y_label=y)) for title, points, x in drawn if points]


def layer_table(profiles: Sequence[LayerProfile]) -> dict[str, Any] | None:
    """FP32 and INT8 side by side, by kind of layer."""
    if len(profiles) != 2:
        return None
    fp32, int8 = ({layer.kind: layer for layer in profile.layers} for profile in profiles)
    lines: list[dict[str, Any]] = []
    for kind in {**fp32, **int8}:
        pair = [side.get(kind) for side in (fp32, int8)]
        nodes = "; ".join(f"{layer.nodes} × {', '.join(layer.node_types)}" if layer else "none" for layer in pair)
        times = [layer.time_ms if layer else None for layer in pair]
        lines.append({"kind": kind, "fp32_ms": times[0], "int8_ms": times[1], "nodes": nodes})
    lines.sort(key=lambda line: -max(line["fp32_ms"] or 0, line["int8_ms"] or 0))
    return {
        "lines": lines,
        "size": profiles[0].size,
        "longest": max(max(line["fp32_ms"] or 0, line["int8_ms"] or 0) for line in lines),
        "fp32": profiles[0].file,
        "int8": profiles[1].file,
        "fp32_ms": profiles[0].total_ms,
        "int8_ms": profiles[1].total_ms,
    }


def write_report(report: Report, folder: Path) -> Path:
    """Write ``report.html``, ``report.md`` and ``report.json`` into a folder, and return the page's path."""
    import json

    from benchmarks.report_data import as_json

    page, markdown = render(report)
    texts = {"report.html": page, "report.md": markdown, "report.json": json.dumps(as_json(report), indent=1) + "\n"}
    for name, text in texts.items():
        with atomic_write(folder / name) as stream:
            stream.write(text.encode())
    return folder / "report.html"


def _int8_label(row: Row) -> str:
    """``INT8 for OpenVINO``, and where it runs unless that is what it is for."""
    library = (row.backend or "").split(",")[0].rsplit(" ", 1)[0]
    label = row.label.removeprefix("GMIN ")
    return label if label.endswith(library) else f"{label}, run in {library}"


def _short(row: Row) -> str:
    """A file in its engine, short enough for a plot."""
    engine = (row.backend or "").split()[0].replace("ONNX", "ORT")
    kinds = [kind for kind in ("INT8", "bf16") if kind in row.label] or ["FP32"]
    return f"{' + '.join(kinds)}, {engine}"


def date_of(text: str) -> str:
    from datetime import datetime

    return f"{datetime.fromisoformat(text):%Y-%m-%d, %H:%M} UTC"


def _thousands(value: int | None) -> str:
    return "–" if value is None else f"{value:,}".replace(",", "\u202f")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


FILTERS = {"thousands": _thousands, "signed": _signed, "positive_zero": lambda value: round(value, 3) + 0.0}
"""How templates write numbers."""


def _checkpoint(path: Path) -> str:
    """Which weights an exported file holds, in words."""
    import onnx

    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return f"SHA-256 {properties.get('gmin.checkpoint_sha256', 'not told')[:12]}"


def _environment_lines(environment: Environment) -> list[tuple[str, str]]:
    names = {
        "date": "Date (UTC)", "processor": "Processor", "features": "Its features", "cores": "Cores",
        "threads": "Threads",
        "clock_mhz": "Clock, MHz", "highest_clock_mhz": "Highest clock, MHz", "governor": "Governor",
        "power_mode": "Power mode", "accelerators": "Accelerators", "memory_gb": "Memory, GB", "system": "System",
        "python": "Python", "libraries": "Libraries",
    }  # fmt: skip
    lines = []
    for key, value in asdict(environment).items():
        if isinstance(value, Mapping):
            text = ", ".join(f"{library} {version}" for library, version in value.items())
        elif isinstance(value, list):
            text = (
                ", ".join(str(part.get("name")) if isinstance(part, Mapping) else str(part) for part in value) or "none"
            )
        else:
            text = "not told" if value is None else str(value)
        lines.append((names.get(key, key), text))
    return lines


def _command() -> str:
    """What the user typed, as it can be typed again."""
    import shlex

    started = "python benchmarks/report.py" if Path(sys.argv[0]).name == "report.py" else "gmin"
    return f"{started} {shlex.join(sys.argv[1:])}".strip()


app = new_app("The comparison as one page.")


@app.command()
def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for report.html, .md and .json.")] = Path(
        "out/report"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Set5 only, few rounds, LKDN and BSRN only: minutes.")] = False,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="BSD100, Set5, Set14 or a folder; repeat it. The first decides.")
    ] = None,
    networks: Annotated[
        list[str] | None, typer.Option("--network", help="A registered network to compare with; repeat it.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Size of the input for times. Default: 320x180.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of one inference. Default: all cores of this process.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Timed runs of each engine. Default: 30, quick 5.")] = None,
    int8: Annotated[
        bool | None,
        typer.Option(help="Quantize the other networks too. Default: LKDN, BSRN and HNCT, with --quick none."),
    ] = None,
    readme: Annotated[
        Path | None,
        typer.Option(
            help="Put tables and verdict between the markers in this Markdown file, the figure and the JSON into docs/ "
            "beside it."
        ),
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Measure nothing: take a report.json. Only with --readme.")
    ] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option(help="With --from: JSON of benchmarks/accuracy.py with new scores of GMIN's files; repeat it."),
    ] = None,
    note: Annotated[str, typer.Option(help="With --scores: a sentence to stand beside them.")] = "",
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure everything and write one page that says which file to ship, and why."""
    import importlib.util

    from benchmarks.readme import check_readme, update_readme
    from benchmarks.report_data import as_json, from_json
    from benchmarks.rescored import rescore
    from model.registry import describe
    from runtime.engines.opening import MODELS

    for library in ("jinja2", "torch"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"The report needs {library}, which is not installed: pip install 'gmin-edge[report]'.")
    for name in networks or []:
        if describe(name).scale != SCALE:
            raise UserError(f"{name} upscales by {describe(name).scale}; the report compares networks for x{SCALE}.")
    if readme is not None:
        check_readme(readme)
    if scores and source is None:
        raise UserError("--scores changes a report that is there: name it with --from.")
    if note and not scores:
        raise UserError("--note stands beside new scores: name them with --scores.")
    if source is not None:
        if readme is None:
            raise UserError("A report.json holds no pictures: --from works with --readme only.")
        report = from_json(source)
        if scores:
            report = rescore(report, scores, weights=_checkpoint(MODELS / "gmin_x4.onnx"))
            report = replace(report, warnings=tuple(dict.fromkeys([*report.warnings, *([note] if note else [])])))
        update_readme(report, readme)
        write_json(as_json(report), json_target)
        say(f"{readme}: from {source}", quiet=quiet, json_target=json_target)
        return
    plan = QUICK if quick else FULL
    compared = tuple(networks or plan.networks)
    plan = replace(
        plan,
        networks=compared,
        int8=tuple(name for name in compared if (name in plan.int8 if int8 is None else int8)),
        sets=tuple(sets or plan.sets),
        size=size_from_text(size) if size else plan.size,
        threads=threads,
        rounds=rounds or plan.rounds,
    )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write into {output}: {error.strerror}.") from error
    report = make_report(plan, command=_command(), quiet=quiet)
    page = write_report(report, output)
    if readme is not None:
        update_readme(report, readme)
    write_json(as_json(report), json_target)
    remarks = "\n".join(f"- {remark}" for remark in report.verdict.remarks)
    say(f"{report.verdict.sentence}\n{remarks}\n{page}", quiet=quiet, json_target=json_target)


if __name__ == "__main__":
    run(app)
