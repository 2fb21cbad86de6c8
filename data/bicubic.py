"""MATLAB's ``imresize(image, scale, 'bicubic')``, exactly.

Super-resolution is scored on LR images made by that function. It differs from the bicubic filters of OpenCV, Pillow
and PyTorch: the kernel (Keys, a = -0.5) is widened when shrinking, borders are mirrored, height is resized before
width, and a uint8 image is rounded to uint8 *between* the two passes as well as at the end.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def resize_bicubic(image: NDArray[np.generic], scale: float) -> NDArray[np.generic]:
    """Resize by ``scale`` (0.25 makes a quarter, 4 four times the size).

    Args:
        image: (H, W) or (H, W, C), uint8 or floating point, any colour space.
        scale: factor for both sides; the result has ⌈scale·H⌉ × ⌈scale·W⌉ pixels.

    Returns:
        The same layout and dtype; uint8 is rounded and clipped as MATLAB does, floating point is neither.

    Raises:
        ValueError: ``image`` has another shape or dtype, or ``scale`` is not positive.
    """
    if image.ndim not in (2, 3) or not (image.dtype == np.uint8 or np.issubdtype(image.dtype, np.floating)):
        raise ValueError(f"expected (H, W[, C]) of uint8 or floats, got {image.shape} {image.dtype}")
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    return _along_axis(_along_axis(image, scale, axis=0), scale, axis=1)


def _along_axis(image: NDArray[np.generic], scale: float, axis: int) -> NDArray[np.generic]:
    weights, indices = _contributions(image.shape[axis], math.ceil(scale * image.shape[axis]), scale)
    shape = [1] * image.ndim
    shape[axis] = -1
    total: NDArray[np.float64] = np.zeros(1)
    for tap in range(weights.shape[1]):
        total = total + weights[:, tap].reshape(shape) * image.take(indices[:, tap], axis=axis).astype(np.float64)
    if image.dtype == np.uint8:
        return np.floor(total + 0.5).clip(0, 255).astype(np.uint8)
    return total.astype(image.dtype)


@lru_cache(maxsize=256)
def _contributions(length: int, result: int, scale: float) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Weights and source indices, each (result, taps), of one pass."""
    stretch = min(scale, 1.0)
    support = 4.0 / stretch
    centre = np.arange(1, result + 1) / scale + 0.5 * (1 - 1 / scale)  # 1-based, as in the reference
    taps = math.ceil(support) + 2
    positions = np.floor(centre - support / 2)[:, None] + np.arange(taps)
    weights = stretch * _keys_cubic(stretch * (centre[:, None] - positions))
    weights /= weights.sum(axis=1, keepdims=True)
    mirror = np.concatenate((np.arange(length), np.arange(length - 1, -1, -1)))
    indices = mirror[np.mod(positions.astype(np.intp) - 1, 2 * length)]
    used = (weights != 0).any(axis=0)
    return weights[:, used], indices[:, used]


def _keys_cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel, a = -0.5 (IEEE Trans. ASSP 29, 1981)."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
