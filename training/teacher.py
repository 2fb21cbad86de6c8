"""A teacher's outputs for whole training images, made once and kept.

The mean over the eight symmetries of the square ("self-ensemble", Timofte et al., CVPR 2016) is a better and smoother
target than a single pass, and costs nothing while training.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.metrics import to_uint8
from model.checkpoint import load_checkpoint
from model.registry import Network
from runtime.errors import UserError
from training.samples import TrainingImage, content_name, turned, turned_back, write_array


def target_file(image: TrainingImage, teacher: str, cache: Path) -> Path:
    """Where the teacher's output for an image is kept."""
    return cache / f"{content_name(image.hr)}_{teacher}.npy"


def ensemble(forward: Callable[[NDArray[np.float32]], NDArray[np.float32]], lr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mean output over the eight symmetries.

    Args:
        forward: (1, 3, H, W) float32 RGB in [0, 1] to (1, 3, s·H, s·W).
        lr: (H, W, 3) uint8 RGB.

    Returns:
        (s·H, s·W, 3) uint8 RGB.
    """
    total: NDArray[np.generic] | float = 0.0
    for symmetry in range(8):
        x = turned(lr, symmetry).transpose(2, 0, 1)[None].astype(np.float32) / 255
        total = total + turned_back(forward(x)[0].transpose(1, 2, 0), symmetry)
    return to_uint8(np.asarray(total) / 8)


def with_targets(images: Iterable[TrainingImage], teacher: str, *, cache: Path) -> Iterator[TrainingImage]:
    """The images with the teacher's outputs, read from ``cache`` or made and put there.

    Raises:
        UserError: the teacher has another scale than the images or no weights.
    """
    forward: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None
    for image in images:
        path = target_file(image, teacher, cache)
        if path.is_file():
            target = np.load(path)
        else:
            forward = forward or _teacher(teacher)
            target = ensemble(forward, image.lr)
            if target.shape != image.hr.shape:
                raise UserError(f"The teacher {teacher} is of another scale than the network to be trained.")
            write_array(path, target)
        yield dataclasses.replace(image, target=target)


def _weights_file(network: Network) -> Path:
    if network.weights is None:
        raise UserError(f"{network.name} has no released weights and cannot teach.")
    ours = Path(__file__).parents[1] / "model" / "weights" / network.weights
    root = os.environ.get("GMIN_DATA")
    theirs = Path(root) / "weights" / network.weights if root else ours
    path = ours if ours.is_file() else theirs
    if not path.is_file():
        raise UserError(f"The weights {network.weights} of {network.name} are not in the folder weights of GMIN_DATA.")
    return path


def _teacher(name: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    from model.registry import create, describe

    network = describe(name)
    model = create(name)
    load_checkpoint(model, _weights_file(network))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def forward(x: NDArray[np.float32]) -> NDArray[np.float32]:
        result = model(torch.from_numpy(x).contiguous(memory_format=torch.channels_last))
        return np.asarray(result.numpy())

    return forward
