"""A report as data: everything that its page shows, and the same as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.comparison import Row, Score, Verdict
from benchmarks.layers import LayerProfile, LayerTime
from benchmarks.published import Published, PublishedScore, published
from runtime.environment import Environment
from runtime.errors import UserError

if TYPE_CHECKING:
    from benchmarks.pictures import Crop, Shown

SCHEMA = 2
"""2 has what other networks lose in INT8, and GMIN's weights."""


@dataclass(frozen=True)
class Slider:
    """Two versions of one picture on top of each other."""

    left: Shown
    right: Shown
    width: int
    height: int


@dataclass(frozen=True)
class Report:
    """Everything on the page. ``sets[0]`` is the set of the verdict and of the plots."""

    command: str
    quick: bool
    sets: tuple[str, ...]
    size: str
    rounds: int
    verdict: Verdict
    rows: tuple[Row, ...]
    published: tuple[Published, ...]
    profiles: tuple[LayerProfile, ...]
    sliders: tuple[Slider, ...]
    crops: tuple[Crop, ...]
    environment: Environment
    protocol: dict[str, str]
    warnings: tuple[str, ...]
    weights: str
    """Which weights GMIN had: part of the checkpoint's SHA-256."""
    scored: str = ""
    """When and where GMIN's files were scored, where that was not with everything else (``benchmarks.rescored``)."""
    timed_weights: str = ""
    """Which weights the times are of, where not of ``weights``."""


def as_json(report: Report) -> dict[str, Any]:
    """The report's figures for a machine, without the pictures."""
    content = asdict(report)
    for crop in content["crops"]:
        for version in crop["versions"]:
            del version["image"], version["difference"]
    for slider in content["sliders"]:
        for side in ("left", "right"):
            slider[side] = {key: slider[side][key] for key in ("label", "psnr_y_db")}
    return {"schema": SCHEMA, **content}


def from_json(path: Path) -> Report:
    """A report as ``as_json`` wrote it: everything but the pictures.

    Raises:
        UserError: the file is missing, or no report of this version.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON.") from error
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise UserError(f"{path} is no report.json of this version: measure again.")
    try:
        verdict = Verdict(**content["verdict"] | {"remarks": tuple(content["verdict"]["remarks"])})
        rows = tuple(
            Row(
                **row
                | {
                    "measured": {name: Score(**score) for name, score in row["measured"].items()},
                    "published": {name: PublishedScore(**score) for name, score in row["published"].items()},
                }
            )
            for row in content["rows"]
        )
        kept = {name: content[name] for name in ("command", "quick", "size", "rounds", "protocol", "weights")}
        return Report(
            **kept,
            sets=tuple(content["sets"]),
            verdict=verdict,
            rows=rows,
            published=tuple(published()),
            profiles=tuple(
                LayerProfile(**profile | {"layers": tuple(LayerTime(**layer) for layer in profile["layers"])})
                for profile in content["profiles"]
            ),
            sliders=(),
            crops=(),
            environment=Environment(**content["environment"]),
            warnings=tuple(content["warnings"]),
            scored=content.get("scored", ""),
            timed_weights=content.get("timed_weights", ""),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no report.json of this version: measure again.") from error
