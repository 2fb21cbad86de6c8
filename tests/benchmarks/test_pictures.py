"""Crops show the places that they say, and difference maps the differences."""

from __future__ import annotations

import base64

import cv2
import numpy as np

from benchmarks.pictures import FULL_SCALE, crops, data_address, densest_window, difference, heat


def pixels(address: str) -> np.ndarray:
    head, _, content = address.partition(",")
    assert head == "data:image/webp;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_data_addresses_lose_nothing(photo: np.ndarray) -> None:
    np.testing.assert_array_equal(pixels(data_address(photo[:64, :80])), photo[:64, :80])


def test_difference_is_the_largest_of_the_colours() -> None:
    a = np.zeros((2, 2, 3), np.uint8)
    b = a.copy()
    b[0, 1] = (3, 200, 7)
    assert difference(a, b).tolist() == [[0, 200], [0, 0]]
    assert difference(b, a).tolist() == [[0, 200], [0, 0]]


def test_heat_grows_brighter_up_to_its_full_scale() -> None:
    shown = heat(np.arange(FULL_SCALE + 3, dtype=np.uint8)[None]).astype(int).sum(axis=2)[0]
    assert shown[0] < 10
    assert (np.diff(shown[: FULL_SCALE + 1]) > 0).all()
    assert len(set(shown[FULL_SCALE:])) == 1


def test_windows_find_the_weight_and_keep_apart() -> None:
    weight = np.zeros((60, 80))
    weight[20:30, 40:50] = 1
    weight[45:50, 10:15] = 0.5
    x, y, side = densest_window(weight, 16, 4, avoid=[])
    assert side == 16
    assert x <= 40
    assert y <= 20
    assert x + side >= 50
    assert y + side >= 30
    u, v, _ = densest_window(weight, 16, 4, avoid=[(x, y)])
    assert u + 16 <= x or x + 16 <= u or v + 16 <= y or y + 16 <= v
    assert u <= 10 <= u + 16
    assert densest_window(weight, 500, 4, avoid=[])[2] == 52


def test_the_second_crop_is_where_int8_differs(photo: np.ndarray) -> None:
    worse = photo.copy()
    worse[200:210, 300:310] ^= 4
    detail, lost = crops(photo, photo, photo, {"INT8": worse}, size=48)
    assert lost.x <= 300 <= lost.x + 48 - 10
    assert lost.y <= 200 <= lost.y + 48 - 10
    assert [version.label for version in lost.versions] == ["Original", "Bicubic", "FP32", "INT8"]
    last = lost.versions[-1]
    assert last.largest == 4
    window = (slice(lost.y, lost.y + 48), slice(lost.x, lost.x + 48))
    np.testing.assert_array_equal(pixels(last.image), worse[window])
    np.testing.assert_array_equal(pixels(last.difference or ""), heat(difference(photo, worse)[window]))
    assert detail.versions[-1].largest == 0
    assert detail.versions[-1].psnr_fp32_db is None
