"""One page on one quantized file: which layers stayed float and why, what each range clips, decibels against time."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import numpy as np

from quantize.calibration import TensorStatistics
from quantize.placement import Affine
from quantize.plan import Plan
from runtime.files import atomic_write

if TYPE_CHECKING:
    from quantize.ptq import Quantized
    from quantize.search import SearchResult

_HISTOGRAMS = 12
_WIDTH, _HEIGHT = 220, 60


@dataclass(frozen=True)
class TensorReport:
    """A tensor that passes through 8 bits."""

    name: str
    readers: tuple[str, ...]
    """Units that read its 8-bit values."""
    dtype: str
    scale: float
    zero_point: int
    low: float
    high: float
    """What 8 bits cover."""
    seen_low: float
    seen_high: float
    """What the calibration pictures showed."""
    clipped_share: float
    sqnr_db: float
    """Signal over error of rounding and clipping, from the histogram."""


def tensor_reports(plan: Plan, floats: Collection[str]) -> list[TensorReport]:
    """Every calibrated tensor that a quantized unit reads, in the order of the graph."""
    left = set(plan.units) - set(floats)
    readers: dict[str, list[str]] = {}
    for node in plan.model.graph.node:
        if node.name in left:
            for name in node.input:
                readers.setdefault(name, []).append(node.name)
    reports = []
    for name, units in readers.items():
        if name in plan.statistics:
            reports.append(_tensor(name, tuple(units), plan.activations[name], plan.statistics[name]))
    return reports


def _tensor(name: str, units: tuple[str, ...], affine: Affine, seen: TensorStatistics) -> TensorReport:
    first, last = (-128, 127) if affine.dtype == "int8" else (0, 255)
    scale = float(affine.scale)
    low, high = (first - affine.zero_point) * scale, (last - affine.zero_point) * scale
    values, counts = seen.centres(), seen.counts
    restored = (np.rint(values / scale) * scale).clip(low, high)
    signal, error = float(values**2 @ counts), float((values - restored) ** 2 @ counts)
    outside = int(counts[(values < low - scale / 2) | (values > high + scale / 2)].sum())
    return TensorReport(
        name=name,
        readers=units,
        dtype=affine.dtype,
        scale=scale,
        zero_point=affine.zero_point,
        low=low,
        high=high,
        seen_low=seen.low,
        seen_high=seen.high,
        clipped_share=outside / max(int(counts.sum()), 1),
        sqnr_db=float(10 * np.log10(max(signal, 1e-30) / max(error, 1e-30))),
    )


def verdict(result: Quantized) -> str:
    """What to do with the file, from what was measured."""
    name = Path(result.path).name
    lost = f"{result.drop_db:+.3f} dB".replace("+", "\N{MINUS SIGN}", 1) if result.drop_db > 0 else "no loss"
    if not result.within:
        return f"Do not ship {name}: it loses {result.drop_db:.3f} dB where {result.max_drop_db} were allowed."
    if not result.times:
        return f"{name}: {lost} on held-out pictures; its time was not measured here."
    plain, ours = (
        min((time for time in result.times if time.file == file), key=lambda time: time.ratio, default=None)
        for file in ("FP32", "INT8")
    )
    if plain is None or ours is None:
        return f"{name}: {lost} on held-out pictures; no engine here takes it."
    first = result.times[0].engine
    unquantized = f"{1 / plain.ratio:.2f} times as fast as in {first}"
    if ours.ratio >= plain.ratio:
        return (
            f"Nobody should quantize for this machine: {Path(result.source).name} in {plain.engine} is {unquantized}; "
            f"{name} reaches {1 / ours.ratio:.2f} in {ours.engine} ({lost})."
        )
    return (
        f"Ship {name} with {ours.engine}: {lost}, {1 / ours.ratio:.2f} times as fast as FP32 in {first}, and "
        f"{plain.ratio / ours.ratio:.2f} times as fast as the best without quantization (FP32 in {plain.engine})."
    )


def render(result: Quantized, plan: Plan) -> str:
    """The page, which needs nothing from outside."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    floats = result.float_layers
    tensors = tensor_reports(plan, floats)
    worst = sorted(tensors, key=lambda tensor: tensor.sqnr_db)[:_HISTOGRAMS]
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    return templates.get_template("report.html.j2").render(
        result=result,
        verdict=verdict(result),
        tensors=tensors,
        histograms=[
            (tensor, Markup(histogram(tensor, plan.statistics[tensor.name])))  # noqa: S704 - built here, escaped
            for tensor in worst
        ],
        floats=set(floats),
        layers=sorted(result.search.sensitivities, key=lambda s: -s.mse) if result.search else [],
        plot=Markup(trade_off(result.search)) if result.search else None,  # noqa: S704 - built here, escaped
    )


def histogram(tensor: TensorReport, seen: TensorStatistics) -> str:
    """How often each value came, on a logarithmic axis, and the interval that 8 bits cover, as ``<svg>``."""
    counts = seen.counts.reshape(-1, len(seen.counts) // 128).sum(axis=1)  # 128 bins over [-reach, reach]
    edges = np.linspace(-seen.reach, seen.reach, len(counts) + 1)
    inside = (edges[1:] > min(seen.low, tensor.low)) & (edges[:-1] < max(seen.high, tensor.high))
    counts, left = counts[inside], float(edges[:-1][inside][0])
    right = float(edges[1:][inside][-1])
    tops = np.log1p(counts) / max(float(np.log1p(counts).max()), 1e-9)
    wide = _WIDTH / len(counts)

    def across(value: float) -> float:
        return (value - left) / (right - left) * _WIDTH

    bars = "".join(
        f'<rect class="bar" x="{i * wide:.1f}" y="{_HEIGHT * (1 - top):.1f}" width="{max(wide - 0.3, 0.5):.1f}" '
        f'height="{_HEIGHT * top:.1f}"/>'
        for i, top in enumerate(tops)
    )
    marks = "".join(
        f'<line class="bound" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{_HEIGHT}"/>'
        for x in (across(tensor.low), across(tensor.high))
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(tensor.name)}: values and range">'
        f"{bars}{marks}</svg>"
    )


def trade_off(search: SearchResult) -> str:
    """Loss against time (or, untimed, against the number of float layers) of every candidate, as ``<svg>``."""
    timed = all(candidate.ratio is not None for candidate in search.candidates)
    points = [(c.ratio if timed else len(c.floats), c.drop_db, i) for i, c in enumerate(search.candidates)]
    xs, ys = [float(x or 0) for x, _, _ in points], [y for _, y, _ in points]
    low_x, high_x = min([*xs, 0.0 if not timed else min(xs)]), max(xs)
    low_y, high_y = min(0.0, *ys), max(ys)
    span_x, span_y = (high_x - low_x) or 1.0, (high_y - low_y) or 1.0
    marks = []
    for x, y, i in points:
        left, top = 60 + (float(x or 0) - low_x) / span_x * 420, 170 - (y - low_y) / span_y * 150
        kind = "chosen" if i == search.chosen else "pareto" if i in search.pareto else "other"
        label = f"{len(search.candidates[i].floats)} float layers, {y:.3f} dB" + (f", {x:.2f} of FP32" if timed else "")
        marks.append(f'<circle class="{kind}" cx="{left:.1f}" cy="{top:.1f}" r="5"><title>{label}</title></circle>')
    name = "time, FP32 = 1" if timed else "layers in float"
    return (
        '<svg class="plot" viewBox="0 0 500 215" role="img" aria-label="Loss against cost">'
        '<line class="axis" x1="60" y1="170" x2="490" y2="170"/><line class="axis" x1="60" y1="10" x2="60" y2="170"/>'
        f'<text x="270" y="208" text-anchor="middle">{name}</text><text x="60" y="188">{low_x:.2f}</text>'
        f'<text x="480" y="188" text-anchor="end">{high_x:.2f}</text><text x="54" y="172" text-anchor="end">{low_y:.2f}'
        f'</text><text x="54" y="24" text-anchor="end">{high_y:.2f}</text><text x="64" y="14">dB lost</text>'
        f"{''.join(marks)}</svg>"
    )


def write_report(result: Quantized, plan: Plan, path: Path) -> None:
    """Write the page, whole or not at all."""
    page = render(result, plan)
    with atomic_write(path) as stream:
        stream.write(page.encode())
