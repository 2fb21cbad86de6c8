"""The teacher's targets: averaged over the symmetries, made once, put where the images find them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import UserError
from tests.tiny_onnx import tiny
from training import teacher
from training.samples import TrainingImage, load_image

from .conftest import picture


def enlarge(x: np.ndarray) -> np.ndarray:
    return x.repeat(2, axis=2).repeat(2, axis=3)


def test_ensemble_of_an_equivariant_network_is_its_output() -> None:
    lr = picture(0, 16, 24)
    np.testing.assert_array_equal(teacher.ensemble([enlarge], lr), lr.repeat(2, axis=0).repeat(2, axis=1))


def test_ensemble_averages_what_depends_on_the_direction() -> None:
    lr = np.full((4, 6, 3), 100, np.uint8)

    def slanted(x: np.ndarray) -> np.ndarray:  # adds a ramp from top to bottom, of mean 0
        y = enlarge(x)
        return y + np.linspace(-0.1, 0.1, y.shape[2], dtype=np.float32)[:, None]

    assert np.ptp(np.rint(slanted(np.full((1, 3, 4, 6), 100 / 255, np.float32)) * 255)) > 40
    np.testing.assert_array_equal(teacher.ensemble([slanted], lr), np.full((8, 12, 3), 100))


def test_several_networks_are_averaged() -> None:
    lr = picture(0, 16, 24)
    two = teacher.ensemble([enlarge, lambda x: enlarge(1 - x)], lr)
    assert np.abs(two.astype(int) - 127.5).max() <= 0.5


def test_names_of_several(tmp_path: Path) -> None:
    assert teacher.several("lkdn_x4+bsrn_x4") == ["lkdn_x4", "bsrn_x4"]
    odd = tmp_path / "a+b.onnx"
    odd.write_bytes(b"")
    assert teacher.several(f"ort:{odd}") == [f"ort:{odd}"]


def test_targets_are_made_once(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def forward(x: np.ndarray) -> np.ndarray:
        calls.append(x.shape)
        return enlarge(x)

    monkeypatch.setattr(teacher, "_forward", lambda _: forward)
    image = load_image(pictures / "photo0.png", scale=2)
    for _ in range(2):
        teacher.make_targets([image], "gmin_x2", cache=tmp_path / "cache")
    assert len(calls) == 8
    target = teacher.with_target(image, "gmin_x2", cache=tmp_path / "cache").target
    assert target is not None
    np.testing.assert_array_equal(target, image.lr.repeat(2, axis=0).repeat(2, axis=1))


def test_a_teacher_of_another_scale_is_refused(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "_forward", lambda _: enlarge)
    image: TrainingImage = load_image(pictures / "photo0.png", scale=4)
    with pytest.raises(UserError, match="another scale"):
        teacher.make_targets([image], "gmin_x2", cache=tmp_path)


def test_a_network_of_ours_can_teach() -> None:
    lr = picture(3, 16, 16)
    result = teacher.ensemble([teacher._forward("gmin_x4")], lr)
    assert result.shape == (64, 64, 3)
    assert abs(float(result.mean()) - float(lr.mean())) < 4


def test_a_file_teaches_in_any_engine(pictures: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    image = load_image(pictures / "photo0.png", scale=2)
    files, path = [], tmp_path / "net.onnx"
    for operator in ("Relu", "Sigmoid"):
        path.write_bytes(tiny(operator=operator))
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        expected = teacher.ensemble([lambda x, run=session.run: run(None, {"input": x})[0]], image.lr)
        teacher._content.cache_clear()  # another process would read the file again
        teacher.make_targets([image], f"ort:{path}", cache=tmp_path / "cache")
        files.append(teacher.target_file(image, f"ort:{path}", tmp_path / "cache"))
        found = teacher.with_target(image, f"ort:{path}", cache=tmp_path / "cache").target
        assert found is not None
        assert np.abs(found.astype(int) - expected).max() <= 1
    assert files[0] != files[1], "outputs of another file of the same name are not taken for its own"


def test_targets_are_those_of_the_weights_and_of_the_lr_image(pictures: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "lr.png"), cv2.imread(str(pictures / "photo0.png"))[::2, ::2])
    image = load_image(pictures / "photo0.png", scale=2)
    other = load_image(pictures / "photo0.png", scale=2, lr_path=tmp_path / "lr.png")
    first, second = (teacher.target_file(one, "gmin_x2", tmp_path) for one in (image, other))
    assert first != second
    (tmp_path / "net.xml").write_text("<net/>")
    names = []
    for weights in (b"1", b"2"):
        (tmp_path / "net.bin").write_bytes(weights)
        teacher._content.cache_clear()  # another process would read the file again
        names.append(teacher.target_file(image, f"openvino:{tmp_path / 'net.xml'}", tmp_path))
    assert names[0] != names[1]


def test_a_file_that_is_not_there(pictures: Path, tmp_path: Path) -> None:
    image = load_image(pictures / "photo0.png", scale=2)
    with pytest.raises(UserError, match=r"gone\.onnx"):
        teacher.make_targets([image], "ort:gone.onnx", cache=tmp_path)
