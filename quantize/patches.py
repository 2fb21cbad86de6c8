"""The pictures that calibrate and the pictures that judge, never the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.assets import located
from data.sets import Pair, make_pair, pictures_in, read_rgb, to_batch
from runtime.errors import UserError

HELD_OUT_EVERY = 5
CROP = 256
"""Side of the centre crop of each HR picture, in pixels: what the calibration set has, and bounded memory."""


@dataclass(frozen=True)
class Patches:
    """HR files split into those that calibrate and those that are held out to judge."""

    name: str
    scale: int
    calibration: tuple[Path, ...]
    held_out: tuple[Path, ...]
    least: int = 1
    """Smallest side of an LR picture that the network takes."""

    def batches(self) -> Iterator[NDArray[np.float32]]:
        """The calibration pictures, each (1, 3, h, w) float32 LR, one at a time."""
        for path in self.calibration:
            yield to_batch(self.pair(path).lr)

    def judges(self) -> Iterator[Pair]:
        """The held-out pictures."""
        for path in self.held_out:
            yield self.pair(path)

    def pair(self, path: Path) -> Pair:
        """The centre crop of one picture and its LR counterpart."""
        hr = read_rgb(path)
        side = CROP - CROP % self.scale
        top, left = max(0, (hr.shape[0] - side) // 2), max(0, (hr.shape[1] - side) // 2)
        return make_pair(path, hr[top : top + side, left : left + side], self.scale, least=self.least)


def load_patches(name: str, scale: int, count: int, *, least: int = 1) -> Patches:
    """``DIV2K`` (the validation crops) or a folder of HR pictures; every fifth picture is held out.

    Raises:
        UserError: no such folder, or fewer than two pictures in it.
    """
    folder = located("calibration/DIV2K") if name == "DIV2K" else Path(name)
    if not folder.is_dir():
        raise UserError(f"{name} is neither DIV2K nor a folder of pictures to calibrate on.")
    files = pictures_in(folder)
    if len(files) < 2:
        raise UserError(f"{folder} holds one picture; calibration needs one and its check another.")
    held_out = files[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or files[-1:]
    calibration = tuple(path for path in files if path not in held_out)[:count]
    return Patches(name, scale, calibration, tuple(held_out), least)
