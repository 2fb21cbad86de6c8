"""PSNR and SSIM on luma."""

import math

import numpy as np
import pytest

from data.metrics import luma, psnr, psnr_y, ssim_y


def test_luma_of_white_black_and_grey() -> None:
    pixels = np.array([[[255, 255, 255], [0, 0, 0], [51, 51, 51]]], np.uint8)
    np.testing.assert_allclose(luma(pixels)[0], [235, 16, 16 + 219 / 5], atol=1e-9)


def test_psnr_of_a_known_error() -> None:
    a = np.zeros((10, 10))
    assert psnr(a, a) == math.inf
    assert psnr(a, a + 1) == pytest.approx(20 * math.log10(255))


def test_the_border_does_not_count() -> None:
    a = np.full((40, 40, 3), 128, np.uint8)
    b = a.copy()
    b[:4] = 0
    assert psnr_y(a, b, crop=4) == math.inf
    assert psnr_y(a, b, crop=3) < 40


def test_ssim_of_equal_shifted_and_noisy_pictures(photo: np.ndarray) -> None:
    assert ssim_y(photo, photo, crop=4) == pytest.approx(1)
    noisy = (photo + np.random.default_rng(0).normal(0, 25, photo.shape)).clip(0, 255).astype(np.uint8)
    assert 0.2 < ssim_y(noisy, photo, crop=4) < 0.9
    with pytest.raises(ValueError, match="11 x 11"):
        ssim_y(photo[:18, :18], photo[:18, :18], crop=4)
