"""What papers print of x4 networks, with where it was read: figures of others, never mixed with measurements."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PublishedScore:
    """PSNR in dB and SSIM, both on luma; None where a source does not print it, or misprints it."""

    psnr_y_db: float | None
    ssim_y: float | None


@dataclass(frozen=True)
class Published:
    """One method as its sources print it."""

    method: str
    network: str | None
    """Registered name of our implementation of the same network, trained on the same data; None without one."""
    parameters_k: float | None
    multi_adds_g: float | None
    """For a 1280x720 output, as the source counts, which is not as others do."""
    sources: tuple[str, ...]
    notes: tuple[str, ...]
    scores: dict[str, PublishedScore]
    """By set: BSD100, Set5, Set14, Urban100, Manga109."""


def published() -> list[Published]:
    """All methods at x4, in the order of the file; sources and notes spelled out."""
    content = _content()
    return [
        Published(
            method=entry["method"],
            network=entry["network"],
            parameters_k=entry["parameters_k"],
            multi_adds_g=entry["multi_adds_g"],
            sources=tuple(content["sources"][key] for key in entry["sources"]),
            notes=tuple(content["notes"][str(key)] for key in entry["notes"]),
            scores={name: PublishedScore(**score) for name, score in entry["scores"].items()},
        )
        for entry in content["methods"]
    ]


def caveats() -> tuple[str, str]:
    """What must stand beside these figures: how they were scored, and that most are second-hand."""
    content = _content()
    return content["protocol"], content["provenance"]


@lru_cache(maxsize=1)
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return content
