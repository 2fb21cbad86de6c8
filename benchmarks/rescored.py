"""New scores of GMIN's files in an earlier report: times are those of the graphs, scores those of the weights.

python benchmarks/accuracy.py ort:runtime/models/gmin_x4.onnx … --set BSD100 --json out/BSD100.json
python benchmarks/report.py --from docs/comparison.json --scores out/BSD100.json --readme README.md

For weights that are trained further: where the graphs stay what they were, so do their times, and the machine that took
the times is not needed again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.comparison import Row, Score, verdict
from runtime.errors import UserError

if TYPE_CHECKING:
    from benchmarks.report_data import Report

IN_ONNX_RUNTIME = "PSNR of this file in ONNX Runtime"
NOT_SCORED = "not scored with these weights"


def rescore(report: Report, scores: Sequence[Path], *, weights: str) -> Report:
    """The report with other scores of GMIN's files, its times and the other networks as they were.

    An INT8 file that was not scored in OpenVINO gets its score in ONNX Runtime, with a remark that says so: both
    multiply the same integers, and round differently in between. What is computed in bf16 then has no score at all.

    Args:
        report: to change.
        scores: files as ``benchmarks/accuracy.py --json`` writes them.
        weights: which weights were scored.

    Raises:
        UserError: a file is none of accuracy.py's, or GMIN FP32 was not scored on all sets of the report.
    """
    from benchmarks.report import date_of

    found: dict[tuple[str, str], dict[str, Any]] = {}
    origins = []
    for path in scores:
        try:
            content = json.loads(path.read_text())
            found |= {(result["engine"], result["set"]): result for result in content["results"]}
            day = date_of(content["environment"]["date"]).split(",")[0]
            origins.append(f"{day} on {content['environment']['processor']}")
        except OSError as error:
            raise UserError(f"Cannot read {path}: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no JSON of benchmarks/accuracy.py.") from error

    def scored(row: Row) -> Row:
        if row.kind != "file" or row.engine is None:
            return row
        ways = [(row.engine, "")]
        if row.engine.startswith("openvino:") and row.target is not None:
            ways.append((row.engine.replace("openvino:", "ort:", 1), IN_ONNX_RUNTIME))
        for engine, remark in ways:
            if all((engine, name) in found for name in report.sets):
                results = {name: found[engine, name] for name in report.sets}
                measured = {name: Score(result["psnr_y_db"], result["ssim_y"]) for name, result in results.items()}
                return replace(row, measured=measured, remark=remark)
        return replace(row, measured={}, remark=NOT_SCORED)

    rows = [scored(row) for row in report.rows]
    base = rows[0].measured
    if not base:
        raise UserError(f"{rows[0].engine} must be scored on {', '.join(report.sets)}: everything is held against it.")
    rows = [
        replace(row, drop_db={name: base[name].psnr_y_db - score.psnr_y_db for name, score in row.measured.items()})
        if row.kind == "file"
        else row
        for row in rows
    ]
    return replace(
        report,
        rows=tuple(rows),
        verdict=verdict(rows, report.sets[0], gpu=bool(report.environment.accelerators)),
        sliders=(),  # these are pictures by the earlier weights
        crops=(),
        weights=weights,
        scored=", ".join(dict.fromkeys(origins)),
        timed_weights=report.timed_weights or report.weights,
    )
