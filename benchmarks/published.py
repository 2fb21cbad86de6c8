"""Figures that others have published, with their sources: shown beside what is measured, never mixed with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Score:
    """Means over a set, on luma."""

    psnr_y_db: float
    ssim_y: float | None


@dataclass(frozen=True)
class PublishedNetwork:
    """One network at x4 as its source prints it."""

    label: str
    network: str | None
    """Its registered name, where this project can run it."""
    parameters_k: float | None
    multi_adds_g: float | None
    """For a 1280x720 result, as the source counts; sources count differently."""
    scores: dict[str, Score]
    """By set."""
    source: str


@lru_cache(maxsize=1)
def published_networks() -> tuple[PublishedNetwork, ...]:
    """All networks of ``published.json``, in its order."""
    content = json.loads((Path(__file__).with_name("published.json")).read_text())
    return tuple(
        PublishedNetwork(
            label=entry["label"],
            network=entry["network"],
            parameters_k=entry["parameters_k"],
            multi_adds_g=entry["multi_adds_g"],
            scores={name: Score(*figures) for name, figures in entry["scores"].items()},
            source=content["sources"][entry["source"]],
        )
        for entry in content["networks"]
    )
