"""Which images are found, what becomes of them, and which crops a step gets."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.bicubic import resize_bicubic
from runtime.errors import UserError
from training.samples import (
    Crops,
    ResidentCrops,
    TrainingImage,
    find_images,
    load_image,
    lr_counterpart,
    turned,
    turned_back,
)


def images(count: int = 3) -> list[TrainingImage]:
    rng = np.random.default_rng(1)
    return [
        TrainingImage(Path(f"{i}"), hr := rng.integers(0, 256, (60 + 6 * i, 80, 3), np.uint8), hr[::2, ::2], 255 - hr)
        for i in range(count)
    ]


def test_find_images(pictures: Path) -> None:
    (pictures / "notes.txt").write_text("no picture")
    assert [path.name for path in find_images(pictures)] == [
        "photo0.png",
        *(f"photo{i}.png" for i in (1, 2, 3)),
        "held.png",
    ]
    assert [path.name for path in find_images(pictures, only=["valid/*"])] == ["held.png"]
    assert len(find_images(pictures, exclude=["*[01].png", "valid/*"])) == 2


def test_load_image_follows_the_protocol(pictures: Path, tmp_path: Path) -> None:
    path = pictures / "photo0.png"
    whole = cv2.imread(str(path))[:, :, ::-1]
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):  # kept in memory, made, taken up
        image = load_image(path, scale=3, cache=cache)
        np.testing.assert_array_equal(image.hr, whole[:63, :72])
        np.testing.assert_array_equal(image.lr, resize_bicubic(np.ascontiguousarray(whole[:63, :72]), 1 / 3))


def test_cache_does_not_serve_a_changed_image(pictures: Path, tmp_path: Path) -> None:
    path = pictures / "photo0.png"
    before = np.array(load_image(path, scale=2, cache=tmp_path / "cache").hr)
    cv2.imwrite(str(path), 255 - before)
    os.utime(path, ns=(1, 1))
    assert not np.array_equal(load_image(path, scale=2, cache=tmp_path / "cache").hr, before)


def test_lr_images_from_the_disk(pictures: Path, tmp_path: Path) -> None:
    path, folder = pictures / "valid" / "held.png", tmp_path / "lr"
    (folder / "valid").mkdir(parents=True)
    with pytest.raises(UserError, match=r"held\.png"):
        lr_counterpart(path, data=pictures, lr_data=folder, scale=4)
    mark = np.full((16, 18, 3), 7, np.uint8)
    cv2.imwrite(str(folder / "valid" / "heldx4.png"), mark)
    found = lr_counterpart(path, data=pictures, lr_data=folder, scale=4)
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        load_image(path, scale=4, cache=cache)  # an LR image of our own making must not take its place
        np.testing.assert_array_equal(load_image(path, scale=4, cache=cache, lr_path=found).lr, mark)
    with pytest.raises(UserError, match="not 1/2"):
        load_image(path, scale=2, lr_path=found)


def test_crops_fit_together() -> None:
    lr, hr, target = Crops(images(), scale=2, patch=8, batch=32, seed=0).batch(3)
    assert lr.shape == (32, 3, 8, 8)
    assert target is not None
    assert hr.shape == target.shape == (32, 3, 16, 16)
    torch.testing.assert_close(target, 1 - hr)
    # a pixel of LR is the top left one of its four HR pixels; turned and mirrored, one of the other three
    corners = torch.stack([hr[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    assert bool((corners == lr).flatten(2).all(dim=2).any(dim=0).all())


def test_crops_depend_on_step_and_seed_alone() -> None:
    crops = Crops(images(), scale=2, patch=8, batch=6, seed=5)
    later = crops.batch(9)[0]
    crops.batch(2)
    torch.testing.assert_close(crops.batch(9)[0], later, rtol=0, atol=0)
    assert not torch.equal(crops.batch(10)[0], later)
    assert not torch.equal(Crops(images(), scale=2, patch=8, batch=6, seed=6).batch(9)[0], later)


def test_processes_share_one_batch() -> None:
    crops = Crops(images(), scale=2, patch=8, batch=6, seed=5)
    parts = [crops.batch(4, rank=rank, world=3)[1] for rank in range(3)]
    torch.testing.assert_close(torch.cat(parts), crops.batch(4)[1], rtol=0, atol=0)


def test_crops_on_a_device_are_the_same() -> None:
    one = Crops(images(), scale=2, patch=9, batch=4, seed=5)
    other = ResidentCrops(images(), scale=2, patch=9, batch=4, seed=5, device="cpu")
    for step in (0, ResidentCrops.AHEAD - 1, ResidentCrops.AHEAD, 3):
        for mine, theirs in zip(one.batch(step, rank=1, world=2), other.batch(step, rank=1, world=2), strict=True):
            assert mine is not None
            assert theirs is not None
            assert torch.equal(mine, theirs)
    assert ResidentCrops.bytes_of(images()) == sum(part.size for i in images() for part in (i.lr, i.hr, i.hr))


def test_all_places_and_symmetries_are_reached() -> None:
    hr = np.arange(20 * 20, dtype=np.int64).reshape(20, 20)
    image = TrainingImage(
        Path("x"), np.dstack([hr % 256, hr // 256, hr * 0]).astype(np.uint8), np.zeros((10, 10, 3), np.uint8)
    )
    seen = set()
    crops = Crops([image], scale=2, patch=8, batch=64, seed=0)
    for step in range(40):
        top = (crops.batch(step)[1][:, :2, 0, :2] * 255).round().long()  # the two first pixels tell place and symmetry
        seen |= {tuple((row[0] + 256 * row[1]).tolist()) for row in top}
    assert len(seen) == 9 * 8  # 3 x 3 places of an 8-pixel crop in 10 pixels, 8 symmetries


def test_small_images_are_left_out() -> None:
    with pytest.raises(UserError, match="48 x 48"):
        Crops(images(), scale=2, patch=48, batch=1, seed=0)


def test_symmetries_are_eight_and_undone() -> None:
    image = images(1)[0].hr
    views = {turned(image, symmetry).tobytes() for symmetry in range(8)}
    assert len(views) == 8
    for symmetry in range(8):
        np.testing.assert_array_equal(turned_back(turned(image, symmetry), symmetry), image)
