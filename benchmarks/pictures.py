"""What INT8 does to a picture: crops beside each other, and maps of the difference."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.metrics import psnr, psnr_y

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data.sets import Rgb

FULL_SCALE = 8
"""Grey levels of difference that a map shows at its brightest."""


@dataclass(frozen=True)
class Shown:
    """One version of a picture, or of a part: an image as a data address, and what to say below it."""

    label: str
    image: str
    psnr_y_db: float | None = None
    """Against the original."""
    difference: str | None = None
    """Map of the difference from FP32, as a data address."""
    psnr_fp32_db: float | None = None
    """Against FP32, all colours; None where every pixel is the same."""
    largest: int | None = None
    """Largest difference from FP32, in grey levels."""


@dataclass(frozen=True)
class Crop:
    """The same place in all versions, the original first."""

    why: str
    x: int
    y: int
    size: int
    versions: tuple[Shown, ...]


def crops(
    original: Rgb, bicubic: Rgb, fp32: Rgb, int8: Mapping[str, Rgb], *, size: int = 96, border: int = 4
) -> list[Crop]:
    """Two places: where FP32 holds most detail, and where the INT8 versions differ most from it.

    Args:
        original: (H, W, 3) uint8 RGB, as the others.
        bicubic: the floor.
        fp32: what INT8 is held against.
        int8: INT8 versions by label.
        size: side of a crop.
        border: pixels at the edge of the picture where no crop lies.
    """
    import numpy as np

    grey = fp32.astype(np.float32).mean(axis=2)
    detail = np.abs(np.gradient(grey)[0]) + np.abs(np.gradient(grey)[1])
    lost = np.max([difference(fp32, version) for version in int8.values()], axis=0)
    found: list[Crop] = []
    for why, weight in (("where most detail is", detail), ("where INT8 differs most from FP32", lost)):
        x, y, side = densest_window(weight, size, border, avoid=[(crop.x, crop.y) for crop in found])
        window = (slice(y, y + side), slice(x, x + side))
        versions = [
            Shown("Original", data_address(original[window])),
            *(
                Shown(label, data_address(image[window]), psnr_y(image[window], original[window], crop=0))
                for label, image in (("Bicubic", bicubic), ("FP32", fp32))
            ),
            *(compared(label, image[window], fp32[window], original[window]) for label, image in int8.items()),
        ]
        found.append(Crop(why, x, y, side, tuple(versions)))
    return found


def compared(label: str, image: Rgb, fp32: Rgb, original: Rgb) -> Shown:
    """An INT8 version with its difference from FP32."""
    gap = difference(fp32, image)
    return Shown(
        label=label,
        image=data_address(image),
        psnr_y_db=psnr_y(image, original, crop=0),
        difference=data_address(heat(gap)),
        psnr_fp32_db=psnr(fp32, image) if gap.any() else None,
        largest=int(gap.max()),
    )


def difference(a: Rgb, b: Rgb) -> NDArray[np.uint8]:
    """(H, W): the largest difference of a pixel's three colours, in grey levels."""
    import numpy as np

    gap: NDArray[np.uint8] = np.abs(a.astype(np.int16) - b.astype(np.int16)).max(axis=2).astype(np.uint8)
    return gap


def heat(gap: NDArray[np.uint8]) -> Rgb:
    """(H, W) grey levels to (H, W, 3) RGB: black for none, bright for ``FULL_SCALE`` and more."""
    import cv2
    import numpy as np

    level = (gap.astype(np.float32) * (255 / FULL_SCALE)).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)[..., ::-1])


def densest_window(
    weight: NDArray[np.generic], size: int, border: int, avoid: list[tuple[int, int]]
) -> tuple[int, int, int]:
    """Left, top and side of the square that holds most of ``weight`` and overlaps none of ``avoid``.

    The side is ``size``, or what the picture has. Where every square overlaps, overlap is allowed.
    """
    import numpy as np

    height, width = weight.shape
    side = min(size, height - 2 * border, width - 2 * border)
    table = np.zeros((height + 1, width + 1))
    table[1:, 1:] = weight.astype(np.float64).cumsum(axis=0).cumsum(axis=1)
    sums = table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]
    allowed = np.zeros(sums.shape, bool)
    allowed[border : sums.shape[0] - border, border : sums.shape[1] - border] = True
    free = allowed.copy()
    for x, y in avoid:
        free[max(0, y - side + 1) : y + side, max(0, x - side + 1) : x + side] = False
    sums[~(free if free.any() else allowed)] = -1
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(left), int(top), side


def data_address(image: Rgb) -> str:
    """A lossless WebP inside a ``data:`` address: a page that holds it needs no other file."""
    import cv2
    import numpy as np

    _, content = cv2.imencode(".webp", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, 101])
    return f"data:image/webp;base64,{base64.b64encode(content.tobytes()).decode()}"
