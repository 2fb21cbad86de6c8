"""Trade-off plots as SVG for the report: quality against what it costs.

Written by hand rather than by a plotting library so that the page's colours, light or dark, apply to them too, and so
that the report needs no such library. Shapes carry classes; the page's style sheet paints them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple
from xml.sax.saxutils import escape, quoteattr

WIDTH, HEIGHT = 440, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 20, 16, 50
_FONT = 13
_MARK = 5.5

_CROSSING = 400.0
"""What a leader through a label costs (through another leader 0.3 of it), in square pixels of covered mark."""
_ROUNDS = 4

Status = Literal["measured", "published"]
_Line = tuple[float, float, float, float]
"""x and y of both ends."""


@dataclass(frozen=True)
class Point:
    """A network in a plot. ``ours`` stands out; what is only published is hollow."""

    label: str
    x: float
    y: float
    status: Status = "measured"
    ours: bool = False


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: _Box) -> float:
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, high)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from below ``low`` to above ``high``, at most about ``most`` steps."""
    span = high - low or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / most))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude * most >= span)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(step * i, 10) for i in range(first, max(last, first + 1) + 1)]


def scatter(points: Sequence[Point], *, title: str, x_label: str, y_label: str) -> str:
    """Points with their names, as one ``<svg>`` element that needs nothing from outside.

    Two points of one label, measured and published, are joined by a dashed line.

    Raises:
        ValueError: there is no point.
    """
    if not points:
        raise ValueError(f"nothing to plot in '{title}'")
    xs, ys = ([getattr(p, axis) for p in points] for axis in "xy")
    pad_x, pad_y = 0.06 * (max(xs) - min(xs)), 0.06 * (max(ys) - min(ys))
    x_ticks = ticks(max(0.0, min(xs) - pad_x), max(xs) + pad_x, most=5)
    y_ticks = ticks(min(ys) - pad_y, max(ys) + pad_y)

    def across(x: float) -> float:
        return _LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return HEIGHT - _BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - _TOP - _BOTTOM)

    described = "; ".join(f"{p.label} {p.status}: {p.x:g}, {p.y:.2f}" for p in points)
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label={quoteattr(title)}>',
        f"<title>{escape(title)}</title><desc>{escape(described)}</desc>",
    ]
    for x in x_ticks:
        parts.append(_line("grid", across(x), _TOP, across(x), HEIGHT - _BOTTOM))
        parts.append(_text(f"{x:g}", across(x), HEIGHT - _BOTTOM + 18, "middle", "tick"))
    for y in y_ticks:
        parts.append(_line("grid", _LEFT, down(y), WIDTH - _RIGHT, down(y)))
        parts.append(_text(_decimals(y, y_ticks), _LEFT - 8, down(y) + 4, "end", "tick"))
    parts.append(_text(x_label, (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 10, "middle", "axis"))
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    turned = f' transform="rotate(-90 15 {middle:.1f})"'
    parts.append(f'<text class="axis" x="15" y="{middle:.1f}" text-anchor="middle"{turned}>{escape(y_label)}</text>')
    placed = [(p, across(p.x), down(p.y)) for p in points]
    for p, x, y in placed:
        for q, u, v in placed:
            if p.label == q.label and (p.status, q.status) == ("measured", "published"):
                parts.append(_line("link", x, y, u, v))
    for p, x, y in placed:
        kind = f"mark {p.status}{' ours' if p.ours else ''}"
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{_MARK}"/>')
    for (p, x, y), box in zip(placed, _label_boxes(placed), strict=True):
        if leader := _leader(x, y, box):
            parts.append(_line("leader", *leader))
        parts.append(_text(_name(p), box.left, box.bottom - 4, "start", "name ours" if p.ours else "name"))
    return "".join([*parts, "</svg>"])


def sheet(plots: Sequence[tuple[str, str]], *, style: str, note: str) -> str:
    """Plots side by side as one SVG file that carries its style: for pages that show it as a picture.

    Args:
        plots: titles, and ``<svg>`` elements as ``scatter`` gives them.
        style: the style sheet of the plots.
        note: one line below them.

    Raises:
        ValueError: there is no plot.
    """
    if not plots:
        raise ValueError("nothing to show")
    width, height = WIDTH * len(plots), HEIGHT + 62
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, sans-serif">',
        f"<style>{escape(style)}</style>",
        f'<rect class="sheet" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
    ]
    for i, (title, plot) in enumerate(plots):
        place = f'<svg x="{WIDTH * i}" y="32" width="{WIDTH}" height="{HEIGHT}"'
        parts.append(_text(title, WIDTH * i + 18, 25, "start", "title"))
        parts.append(plot.replace("<svg", place, 1))
    parts.append(_text(note, 18, height - 12, "start", "tick"))
    return "".join([*parts, "</svg>\n"])


def _name(point: Point) -> str:
    return point.label if point.status == "measured" else f"{point.label} (published)"


def _label_boxes(placed: Sequence[tuple[Point, float, float]]) -> list[_Box]:
    """Where each label stands: near its mark, covering as little as can be of marks and other labels.

    One after the other, then each again, knowing where all the others are.
    """
    marks = [_Box(x - _MARK - 1, y - _MARK - 1, x + _MARK + 1, y + _MARK + 1) for _, x, y in placed]
    inside = _Box(_LEFT, 0, WIDTH, HEIGHT - _BOTTOM)
    boxes: dict[int, _Box] = {}
    leaders: dict[int, _Line] = {}
    for _ in range(_ROUNDS):
        for i, (point, x, y) in enumerate(placed):
            length = (0.64 if point.ours else 0.58) * _FONT * len(_name(point))
            boxes.pop(i, None)
            leaders.pop(i, None)

            def cost(box: _Box, x: float = x, y: float = y) -> float:
                area = (box.right - box.left) * (box.bottom - box.top)
                leader = _leader(x, y, box)
                crossings: float = sum(_crosses(line, box) for line in leaders.values())
                if leader:
                    crossings += sum(_crosses(leader, other) for other in boxes.values())
                    crossings += 0.3 * sum(_meet(leader, line) for line in leaders.values())
                covered = sum(map(box.overlap, marks)) + 8 * sum(map(box.overlap, boxes.values()))
                return round(covered + 4 * (area - box.overlap(inside)) + _CROSSING * crossings, 3)

            boxes[i] = min(_around(x, y, length), key=cost)  # the first of equals is the nearest
            if leader := _leader(x, y, boxes[i]):
                leaders[i] = leader
    return [boxes[i] for i in range(len(placed))]


def _leader(x: float, y: float, box: _Box) -> _Line | None:
    """The line from a mark to its label, or None where that stands near enough to need none."""
    near_x, near_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
    return (x, y, near_x, near_y) if math.hypot(near_x - x, near_y - y) > 2 * _MARK + 2 else None


def _crosses(line: _Line, box: _Box) -> bool:
    x1, y1, x2, y2 = line
    enter, leave = 0.0, 1.0  # the part of the line that is inside
    for start, step, low, high in ((x1, x2 - x1, box.left, box.right), (y1, y2 - y1, box.top, box.bottom)):
        if step == 0:
            if not low < start < high:
                return False
            continue
        first, last = sorted(((low - start) / step, (high - start) / step))
        enter, leave = max(enter, first), min(leave, last)
    return leave - enter > 1e-9


def _meet(a: _Line, b: _Line) -> bool:
    """Whether two lines cross: the ends of each lie on both sides of the other."""

    def side(line: _Line, x: float, y: float) -> float:
        x1, y1, x2, y2 = line
        return (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)

    return side(a, *b[:2]) * side(a, *b[2:]) < 0 and side(b, *a[:2]) * side(b, *a[2:]) < 0


def _around(x: float, y: float, length: float) -> Iterator[_Box]:
    gap, high = _MARK + 3, _FONT + 3
    for distance in range(0, 113, 16):
        for left, top in (
            (x + gap, y - high / 2 - distance),
            (x - gap - length, y - high / 2 - distance),
            (x - length / 2, y - gap - high - distance),
            (x - length / 2, y + gap + distance),
            (x + gap, y - high / 2 + distance),
            (x - gap - length, y - high / 2 + distance),
            (x + gap + distance, y - high / 2 - distance),
            (x - gap - length - distance, y - high / 2 - distance),
            (x + gap + distance, y - high / 2 + distance),
            (x - gap - length - distance, y - high / 2 + distance),
        ):
            yield _Box(left, top, left + length, top + high)


def _decimals(value: float, among: Sequence[float]) -> str:
    step = among[1] - among[0]
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9) + (round(step * 1e6) % 250000 == 0 and step < 1))}f}"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(text: str, x: float, y: float, anchor: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
