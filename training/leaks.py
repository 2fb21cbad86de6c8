"""The leak rule: no image that anybody scores on is ever learnt from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data.assets import data_folder
from data.sets import Rgb, read_rgb
from runtime.errors import UserError
from runtime.images import WRITABLE

if TYPE_CHECKING:
    from training.samples import TrainingImage

_BSD100 = """
101085 101087 102061 103070 105025 106024 108005 108070 108082 109053 119082 12084 123074 126007 130026
134035 14037 143090 145086 147091 148026 148089 156065 157055 159008 160068 16077 163085 167062 167083
170057 175032 175043 182053 189080 19021 196073 197017 208001 210088 21077 216081 219090 220075 223061
227092 229036 236037 24077 241004 241048 253027 253055 260058 271035 285079 291000 295087 296007 296059
299086 300091 302008 304034 304074 306005 3096 33039 351093 361010 37073 376043 38082 38092 385039 41033
41069 42012 42049 43074 45096 54082 55073 58060 62096 65033 66053 69015 69020 69040 76053 78004 8023 85048
86000 86016 86068 87046 89072 97033
"""
BSD100_IDS = frozenset(_BSD100.split())
"""BSDS ids of BSD100 (the test list of BSDS300)."""

BSDS_RELATED_IDS = frozenset({"302003", "108041", "160067"})
"""302003 is Set5's woman; the other two seem to show the animals of the test ids 108082 and 160068."""


BENCHMARKS = frozenset({"bsd100", "b100", "set5", "set14", "urban100", "manga109"})
_SIDE = 16
_SAME = 0.98
"""Correlation of two thumbnails: resized copies of the benchmark images reach 0.995, 544 other photographs 0.95."""


def refuse_benchmarks(paths: Iterable[Path]) -> None:
    """Refuse images by name: a BSDS id of the test list or related to a benchmark, or a benchmark's folder.

    Raises:
        UserError: one of them is among ``paths``.
    """
    for path in paths:
        folders = {part.lower() for part in path.parts[:-1]}
        if path.stem.split("_")[0] in BSD100_IDS | BSDS_RELATED_IDS or folders & BENCHMARKS:
            raise UserError(f"{path} is a benchmark image or related to one and must not be learnt from; remove it.")


def refuse_copies(images: Sequence[TrainingImage]) -> None:
    """Refuse copies of benchmark images, resized or mirrored, under whatever name, if the benchmarks are at hand.

    Raises:
        UserError: one of them is among ``images``.
    """
    folder = data_folder() / "benchmarks"
    scored = sorted(path for path in folder.glob("*/HR/*") if path.suffix.lower() in WRITABLE)
    if not scored:
        return
    known = np.stack([thumbnail(read_rgb(path)) for path in scored])  # (B, 256)
    mirrored = known.reshape(-1, _SIDE, _SIDE)[:, :, ::-1].reshape(known.shape)
    for image in images:
        mark = thumbnail(image.lr)
        likeness = np.maximum(known @ mark, mirrored @ mark)
        nearest = int(likeness.argmax())
        if likeness[nearest] > _SAME:
            raise UserError(f"{image.path} shows the same as the benchmark image {scored[nearest]}; remove it.")


def thumbnail(image: Rgb) -> NDArray[np.float64]:
    """(H, W, 3) uint8 RGB to 256 grey values of mean 0 and length 1, so that a product is a correlation."""
    import cv2

    grey = cv2.resize(image.astype(np.float32).mean(axis=2), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    centred = grey.astype(np.float64).ravel() - grey.mean()
    return centred / max(float(np.linalg.norm(centred)), 1e-9)
