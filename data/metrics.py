"""PSNR and SSIM on luma as the super-resolution papers compute them.

Protocol: clamp to [0, 1], ×255, round to uint8; BT.601 studio luma, not rounded; crop ``scale`` pixels at each border.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

PROTOCOL = (
    "LR by MATLAB-exact bicubic (uint8, rounded between the passes); output clamped, rounded to uint8; "
    "BT.601 studio luma (65.481, 128.553, 24.966, +16), unrounded; scale pixels cropped at each border; "
    "PSNR with peak 255; SSIM 11x11 Gaussian, sigma 1.5, valid region"
)
SSIM_WINDOW = 11
"""Side in pixels of the smallest picture that SSIM is defined for."""
_LUMA = np.array([65.481, 128.553, 24.966]) / 255


def luma(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(H, W, 3) uint8 RGB to (H, W) float64 studio luma in [16, 235]."""
    return rgb @ _LUMA + 16


def psnr(a: NDArray[np.generic], b: NDArray[np.generic], *, peak: float = 255.0) -> float:
    """PSNR in dB of two arrays of one shape; infinite where they are equal."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def psnr_y(result: NDArray[np.uint8], reference: NDArray[np.uint8], *, crop: int) -> float:
    """PSNR on luma in dB of two (H, W, 3) uint8 RGB images, ``crop`` pixels left out at each border."""
    return psnr(_luma_cropped(result, crop), _luma_cropped(reference, crop))


def ssim_y(result: NDArray[np.uint8], reference: NDArray[np.uint8], *, crop: int) -> float:
    """SSIM on luma of two (H, W, 3) uint8 RGB images (Wang et al. 2004, the MATLAB reference's settings)."""
    import cv2

    a, b = _luma_cropped(result, crop), _luma_cropped(reference, crop)
    if min(a.shape) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs {SSIM_WINDOW} x {SSIM_WINDOW} pixels after cropping, got {a.shape[1]} x {a.shape[0]}"
        )
    window = cv2.getGaussianKernel(SSIM_WINDOW, 1.5)

    def blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(cv2.sepFilter2D(x, -1, window, window)[5:-5, 5:-5])

    mean_a, mean_b = blur(a), blur(b)
    variance_a = blur(a * a) - mean_a**2
    variance_b = blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    )
    return float(similarity.mean())


def _luma_cropped(rgb: NDArray[np.uint8], crop: int) -> NDArray[np.float64]:
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"expected (H, W, 3) uint8 RGB, got {rgb.shape} {rgb.dtype}")
    height, width = rgb.shape[:2]
    return luma(rgb[crop : height - crop, crop : width - crop])
