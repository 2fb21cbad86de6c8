"""The teacher's targets: averaged over the symmetries, made once, put where the images find them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.errors import UserError
from training import teacher
from training.samples import TrainingImage, load_image

from .conftest import picture


def enlarge(x: np.ndarray) -> np.ndarray:
    return x.repeat(2, axis=2).repeat(2, axis=3)


def test_ensemble_of_an_equivariant_network_is_its_output() -> None:
    lr = picture(0, 16, 24)
    np.testing.assert_array_equal(teacher.ensemble(enlarge, lr), lr.repeat(2, axis=0).repeat(2, axis=1))


def test_ensemble_averages_what_depends_on_the_direction() -> None:
    lr = np.full((4, 6, 3), 100, np.uint8)

    def slanted(x: np.ndarray) -> np.ndarray:  # adds a ramp from top to bottom, of mean 0
        y = enlarge(x)
        return y + np.linspace(-0.1, 0.1, y.shape[2], dtype=np.float32)[:, None]

    assert np.ptp(np.rint(slanted(np.full((1, 3, 4, 6), 100 / 255, np.float32)) * 255)) > 40
    np.testing.assert_array_equal(teacher.ensemble(slanted, lr), np.full((8, 12, 3), 100))


def test_targets_are_made_once(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def forward(x: np.ndarray) -> np.ndarray:
        calls.append(x.shape)
        return enlarge(x)

    monkeypatch.setattr(teacher, "_forward", lambda _: forward)
    image = load_image(pictures / "photo0.png", scale=2)
    for _ in range(2):
        teacher.make_targets([image], "some_x2", cache=tmp_path / "cache")
    assert len(calls) == 8
    target = teacher.with_target(image, "some_x2", cache=tmp_path / "cache").target
    assert target is not None
    np.testing.assert_array_equal(target, image.lr.repeat(2, axis=0).repeat(2, axis=1))


def test_a_teacher_of_another_scale_is_refused(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "_forward", lambda _: enlarge)
    image: TrainingImage = load_image(pictures / "photo0.png", scale=4)
    with pytest.raises(UserError, match="another scale"):
        teacher.make_targets([image], "some_x2", cache=tmp_path)


def test_a_network_of_ours_can_teach() -> None:
    lr = picture(3, 16, 16)
    result = teacher.ensemble(teacher._forward("gmin_x4"), lr)
    assert result.shape == (64, 64, 3)
    assert abs(float(result.mean()) - float(lr.mean())) < 4
