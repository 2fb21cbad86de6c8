"""Small images with structure, and a network of one module: a training run in about a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch


def picture(seed: int, height: int = 64, width: int = 72) -> np.ndarray:
    """A smooth random (H, W, 3) uint8 picture."""
    noise = np.random.default_rng(seed).random((height // 8, width // 8, 3)).astype(np.float32)
    return np.rint(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1) * 255).astype(np.uint8)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of images to learn from, with one to hold out in its folder ``valid``."""
    folder = tmp_path / "pictures"
    (folder / "valid").mkdir(parents=True)
    for i in range(4):
        cv2.imwrite(str(folder / f"photo{i}.png"), picture(i))
    cv2.imwrite(str(folder / "valid" / "held.png"), picture(9))
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than these networks do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
