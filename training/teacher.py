"""A teacher's outputs for whole training images, made once and kept.

The mean over the eight symmetries of the square ("self-ensemble", Timofte et al., CVPR 2016) is a better and smoother
target than a single pass, and costs nothing while training.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.sets import Rgb, from_batch, to_batch
from runtime.engines.contract import check_model_file
from runtime.engines.opening import open_engine, split_prefix
from runtime.errors import UserError
from training.samples import TrainingImage, cache_name, turned, turned_back, write_array

Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""(1, 3, H, W) float32 RGB in [0, 1] to (1, 3, s·H, s·W), unclamped."""


def target_file(image: TrainingImage, teacher: str, cache: Path) -> Path:
    """Where the teacher's output for an image is kept: under what it was made of, names and contents."""
    return cache / f"{cache_name(image.lr_path or image.path)}_{'+'.join(map(_file_name, several(teacher)))}.npy"


def several(teacher: str) -> list[str]:
    """The teachers that ``teacher`` names, with ``+`` between them; a file's name may hold one."""
    return [teacher] if Path(split_prefix(teacher)[1]).is_file() else teacher.split("+")


def _file_name(teacher: str) -> str:
    path = Path(split_prefix(teacher)[1])
    if not path.suffix:  # a registered network
        from model.engine import weights_path

        return f"{teacher}_{_content(weights_path(teacher))}"
    return f"{path.stem}_{_content(path)}"


@lru_cache(maxsize=8)
def _content(path: Path) -> str:
    check_model_file(path)
    digest = hashlib.sha256(path.read_bytes())
    if path.suffix.lower() == ".xml" and path.with_suffix(".bin").is_file():  # the weights of an OpenVINO IR
        digest.update(path.with_suffix(".bin").read_bytes())
    return digest.hexdigest()[:16]


def ensemble(networks: Sequence[Forward], lr: Rgb) -> Rgb:
    """Mean output of all networks over the eight symmetries of ``lr``, (H, W, 3) uint8 to (s·H, s·W, 3) uint8."""
    outputs = []
    for symmetry in range(8):
        batch = to_batch(turned(lr, symmetry))
        for forward in networks:
            output = forward(batch)[0]  # (3, s·H, s·W), turned
            outputs.append(turned_back(output.transpose(1, 2, 0), symmetry))
    mean: NDArray[np.float64] = np.stack(outputs).mean(axis=0, dtype=np.float64)
    return from_batch(mean.transpose(2, 0, 1)[None])


def make_targets(images: Sequence[TrainingImage], teacher: str, *, cache: Path, quiet: bool = True) -> None:
    """Put the teacher's output for each image into ``cache`` where it is not there yet.

    Raises:
        UserError: the teacher has no weights, or another scale than the images.
    """
    from tqdm import tqdm

    missing = [image for image in images if not target_file(image, teacher, cache).is_file()]
    if not missing:
        return
    networks = [_forward(name) for name in several(teacher)]
    for image in tqdm(
        missing, desc=f"targets of {teacher}", unit="image", leave=False, disable=True if quiet else None
    ):
        target = ensemble(networks, image.lr)
        if target.shape != image.hr.shape:
            raise UserError(f"The teacher {teacher} is of another scale than the network to be trained.")
        write_array(target_file(image, teacher, cache), target)


def with_target(image: TrainingImage, teacher: str, *, cache: Path) -> TrainingImage:
    """The image with the target that ``make_targets`` made."""
    return dataclasses.replace(image, target=np.load(target_file(image, teacher, cache), mmap_mode="r"))


def _forward(name: str) -> Forward:
    if Path(split_prefix(name)[1]).suffix:
        return open_engine(name).infer
    import torch

    from model.checkpoint import load_checkpoint
    from model.engine import weights_path
    from model.registry import create

    model = load_checkpoint(create(name), weights_path(name))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def forward(x: NDArray[np.float32]) -> NDArray[np.float32]:
        batch = torch.from_numpy(x).to(device, memory_format=torch.channels_last)
        result: NDArray[np.float32] = model(batch).cpu().numpy()
        return result

    return forward
