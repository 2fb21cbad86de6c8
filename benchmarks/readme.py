"""The part of the README that is measured: tables, verdict and figure from one report, between two markers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.comparison import SCALE, TARGETS
from runtime.errors import UserError
from runtime.files import atomic_write, check_writable

if TYPE_CHECKING:
    from benchmarks.report_data import Report

BEGIN = "<!-- measured: begin. Made by benchmarks/report.py --readme; change the template, not this part. -->"
END = "<!-- measured: end -->"
FIGURE = Path("docs/images/comparison.svg")
FIGURES_OF = Path("docs/comparison.json")
TITLE = "Quality of super-resolution networks against computation, and against time on this CPU"
_SHOWN = ("Quality against computation", "Quality against time")
_LIBRARIES = ("onnxruntime", "openvino", "torch")


def check_readme(path: Path) -> None:
    """Refuse a file that could not take the measured part, before anything is measured.

    Raises:
        UserError: it is missing, cannot be written, or has not one pair of markers.
    """
    check_writable(path)
    _parts(path)


def update_readme(report: Report, path: Path) -> None:
    """Write the measured part into a Markdown file, and ``docs/images/comparison.svg`` and ``docs/comparison.json``.

    Raises:
        UserError: as ``check_readme``.
    """
    from benchmarks.report_data import as_json

    before, after = _parts(path)
    folder = path.parent
    for target, text in (
        (folder / FIGURE, figure(report)),
        (folder / FIGURES_OF, json.dumps(as_json(report), indent=1) + "\n"),
        (path, f"{before}{BEGIN}\n\n{block(report)}\n{END}{after}"),
    ):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"Cannot write into {target.parent}: {os.strerror(error.errno or 0).lower()}.") from error
        with atomic_write(target) as stream:
            stream.write(text.encode())


def block(report: Report) -> str:
    """What stands between the markers."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from benchmarks.report import FILTERS, date_of, int8_lines, network_rows

    templates = Environment(  # noqa: S701 - Markdown: there is nothing to escape for
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined
    )
    templates.filters |= FILTERS
    known = report.environment.libraries
    return templates.get_template("readme.md.j2").render(
        report=report,
        scale=SCALE,
        date=date_of(report.environment.date),
        libraries=", ".join(f"{name} {known[name]}" for name in _LIBRARIES if known.get(name)),
        figure=FIGURE.as_posix(),
        figure_title=TITLE,
        main_set=report.sets[0],
        networks=network_rows(report),
        files=[row for row in report.rows if row.kind == "file"],
        targets=list(TARGETS.values()),
        int8=int8_lines(report),
    )


def figure(report: Report) -> str:
    """The plots of the README as one SVG that carries its own style, light and dark."""
    from benchmarks.plots import sheet
    from benchmarks.report import PLOT_STYLE, date_of, plots

    drawn = [(title, svg) for title, svg in plots(report) if title in _SHOWN]
    scored = f" (GMIN's PSNR {report.scored.split()[0]})" if report.scored else ""
    note = (
        f"Up and left are better. In colour: GMIN. Filled: measured {date_of(report.environment.date)}{scored}, "
        f"{report.environment.threads} threads. Hollow: published only."
    )
    return sheet(drawn, style=PLOT_STYLE.read_text(), note=note)


def _parts(path: Path) -> tuple[str, str]:
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {os.strerror(error.errno or 0).lower()}.") from error
    begin, end = text.find(BEGIN), text.find(END)
    if not 0 <= begin < end or text.count(BEGIN) + text.count(END) != 2:
        raise UserError(f"{path} needs two lines, once and in this order, around the part to replace: {BEGIN} {END}")
    return text[:begin], text[end + len(END) :]
