"""Local attribution maps: on networks whose answer is known, then through the script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.attribution import (
    Patch,
    around,
    attribute,
    attribute_network,
    blur_path,
    gini,
    gradient_in_patch,
    importance,
    overlay,
    parse_patch,
)
from runtime.errors import UserError
from tests.conftest import ROOT, Script

SCALE = 2


class Upscaler(nn.Module):
    """One convolution of ones-like random weights, then pixel shuffle."""

    def __init__(self, *kernels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = [3, *[4] * (len(kernels) - 1), 3 * SCALE**2]
        self.body = nn.Sequential(
            *(nn.Conv2d(a, b, k, padding=k // 2) for a, b, k in zip(widths[:-1], widths[1:], kernels, strict=True))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pixel_shuffle(self.body(x), SCALE)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(0).random((24, 28, 3)).astype(np.float32)


def attributed(model: nn.Module, lr: np.ndarray, patch: Patch, steps: int = 4) -> np.ndarray:
    return importance(attribute(model, blur_path(lr, steps=steps), lambda sr: gradient_in_patch(sr, patch)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 1, 1, 1], 0.0), ([0, 0, 0, 5], 0.75), ([1, 2, 3, 4], 0.25), ([[0, 1], [0, 1]], 0.5), ([7], 0.0)],
)
def test_gini_known_answers(values: list, expected: float) -> None:
    assert gini(np.array(values, float)) == pytest.approx(expected)


def test_gini_does_not_depend_on_order_or_unit() -> None:
    values = np.random.default_rng(0).random(50)
    assert gini(values[::-1] * 255) == pytest.approx(gini(values))


@pytest.mark.parametrize("values", [[], [0, 0], [-1, 2]])
def test_gini_refuses_what_has_none(values: list) -> None:
    with pytest.raises(ValueError, match="Gini"):
        gini(np.array(values, float))


def test_path_goes_from_the_paper_s_blur_to_the_picture(noise: np.ndarray) -> None:
    path = blur_path(noise, steps=5)
    assert len(path) == 6
    assert path[-1] is noise
    np.testing.assert_allclose(path[0], cv2.GaussianBlur(noise, (9, 9), 1.2), atol=1e-6)
    detail = [float(np.abs(np.diff(step, axis=0)).sum()) for step in path]
    assert detail == sorted(detail)
    assert detail[0] < 0.6 * detail[-1]


def test_a_single_convolution_uses_exactly_its_receptive_field(noise: np.ndarray) -> None:
    """SR patch [8, 14) and the pixel beyond it come from LR [4, 8); a 5x5 kernel sees two more on each side."""
    shown = attributed(Upscaler(5), noise, Patch(8, 10, 6))
    used = np.argwhere(shown > 0)
    assert used.min(axis=0).tolist() == [5 - 2, 4 - 2]
    assert used.max(axis=0).tolist() == [8 + 2, 7 + 2]
    assert shown.max() == 1
    unused = np.argwhere(shown[3:11, 2:10] == 0).tolist()
    assert unused == [[7, 7]]  # the detector compares to the right and downwards, never diagonally


def test_a_wider_network_diffuses_more(noise: np.ndarray) -> None:
    narrow, wide = (attributed(model, noise, Patch(20, 20, 4)) for model in (Upscaler(3), Upscaler(9, 9)))
    assert 1 - gini(wide) > 2 * (1 - gini(narrow))


@pytest.mark.parametrize("steps", [1, 7])
def test_attributions_of_a_linear_detector_add_up_to_its_change(noise: np.ndarray, steps: int) -> None:
    model = Upscaler(3, 5)
    weights = torch.rand(1, 3, SCALE * 24, SCALE * 28)
    path = blur_path(noise, steps=steps)
    signed = attribute(model, path, lambda sr: (weights * sr).sum())

    def detector(picture: np.ndarray) -> float:
        with torch.no_grad():
            return float((weights * model(torch.from_numpy(picture.transpose(2, 0, 1)[None]))).sum())

    change = detector(noise) - detector(path[0])
    assert abs(change) > 0.1
    assert float(signed.sum()) == pytest.approx(change, rel=1e-3)


def test_attributions_of_the_paper_s_detector_add_up_in_the_limit(noise: np.ndarray) -> None:
    model, patch = Upscaler(5), Patch(8, 8, 16)
    path = blur_path(noise, steps=100)
    signed = attribute(model, path, lambda sr: gradient_in_patch(sr, patch))
    with torch.no_grad():
        first, last = (
            float(gradient_in_patch(model(torch.from_numpy(p.transpose(2, 0, 1)[None])), patch))
            for p in (path[0], path[-1])
        )
    assert float(signed.sum()) == pytest.approx(last - first, rel=0.03)


def test_a_flat_picture_has_finite_gradients() -> None:
    signed = attribute(Upscaler(3), blur_path(np.full((8, 8, 3), 0.5, np.float32), steps=2), lambda sr: sr.sum() * 0)
    assert np.isfinite(signed).all()
    assert not importance(signed).any()


@pytest.mark.parametrize(
    ("patch", "context", "shape", "moved"),
    [
        (Patch(40, 40, 8), 0, (30, 40), Patch(40, 40, 8)),
        (Patch(80, 60, 8), 64, (16, 16), Patch(28, 28, 8)),  # centred
        (Patch(0, 0, 8), 64, (16, 16), Patch(0, 0, 8)),  # shifted in at a corner
        (Patch(150, 110, 4), 64, (16, 16), Patch(54, 54, 4)),
        (Patch(80, 60, 8), 1000, (30, 40), Patch(80, 60, 8)),  # no more than there is
    ],
)
def test_context_around_the_patch(patch: Patch, context: int, shape: tuple[int, int], moved: Patch) -> None:
    lr = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    part, inside = around(lr, patch, 4, context)
    assert part.shape[:2] == shape
    assert inside == moved
    left, top = (patch.x - inside.x) // 4, (patch.y - inside.y) // 4
    np.testing.assert_array_equal(part, lr[top : top + shape[0], left : left + shape[1]])


def test_overlay_reddens_what_was_used() -> None:
    shown = np.zeros((8, 10), np.float32)
    shown[2, 3] = 1
    picture = overlay(np.full((8, 10, 3), 128, np.uint8), shown, Patch(0, 0, 2), 2)
    assert picture.shape == (32, 40, 3)
    assert picture[9, 13].tolist() == [214, 26, 40]
    assert len(set(picture[20, 20].tolist())) == 1


@pytest.mark.parametrize("text", ["1,2", "a,b,c", "1,2,3,4", "-1,2,3", "1,2,0", "1.5,2,3"])
def test_patches_are_three_whole_numbers(text: str) -> None:
    with pytest.raises(UserError, match="--patch"):
        parse_patch(text)


def test_absent_weights_are_said_and_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMIN_DATA", str(tmp_path))
    result = attribute_network("hnct_x4", np.zeros((20, 20, 3), np.uint8), Patch(8, 8, 8), tmp_path / "a.png", steps=1)
    assert result.status.startswith("weights not present")
    assert result.diffusion_index is None
    assert not (tmp_path / "a.png").exists()


def test_script_draws_gmin(script: Script, tmp_path: Path) -> None:
    done = script(
        "benchmarks/attribution.py", "gmin_x4", "--steps", 2, "--context", 128, "-o", tmp_path / "maps", "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    payload = json.loads(done.stdout)
    (result,) = payload["results"]
    assert payload["schema"] == 1
    assert payload["method"]["steps"] == 2
    assert 0 < result["diffusion_index"] < 100
    picture = cv2.imread(result["picture"])
    assert picture.shape == (256, 256, 3)


def test_a_named_network_without_weights_is_done_in_part(script: Script, tmp_path: Path) -> None:
    done = script(
        "benchmarks/attribution.py", "hnct_x4", "gmin_x4", "--steps", 1, "--context", 64, "-o", tmp_path,
        GMIN_DATA=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "weights not present" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gmin_x4", "--patch", "9999,0,16"], "does not lie inside the result"),
        (["gmin_x4", "--patch", "here"], "is not X,Y,SIZE"),
        (["nobody_x4"], "No network is called 'nobody_x4'"),
        (["gmin_x4", "--image", "nowhere.png"], "There is no picture at nowhere.png"),
    ],
)
def test_mistakes_end_with_one_sentence(script: Script, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = script("benchmarks/attribution.py", *arguments, "-o", tmp_path / "maps")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    code = "import sys, benchmarks.attribution; sys.exit(bool({'torch', 'cv2', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
