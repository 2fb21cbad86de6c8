"""Checkpoints in and out, without running what is inside them.

safetensors first. A ``.pth`` is opened only through weights-only loading; there is no fallback, whatever it contains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

_CONTAINERS = ("params_ema", "params", "state_dict")  # in the order in which they are preferred


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors`` or, through weights-only loading, from ``.pth``/``.pt``/``.ckpt``.

    Containers of the usual trainers are opened: ``params_ema`` before ``params`` before ``state_dict``.

    Raises:
        UserError: the file is missing, empty, broken, of another kind, or holds more than tensors.
    """
    import torch

    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}.")
    if path.stat().st_size == 0:
        raise UserError(f"The checkpoint {path} is empty (0 bytes).")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, ValueError, OSError) as error:
            raise UserError(f"{path} is not a readable safetensors file ({error}).") from error
    if suffix not in {".pth", ".pt", ".ckpt"}:
        raise UserError(f"{path} is no checkpoint: expected .safetensors, .pth, .pt or .ckpt.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many kinds; all of them mean the same to the user
        raise UserError(
            f"{path} cannot be opened as plain weights: it is damaged or contains code, which is never run. "
            "Convert it to safetensors where you trust it."
        ) from error
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path} does not hold a state dict of tensors.")
    return dict(content)


def load_checkpoint(model: nn.Module, path: Path) -> nn.Module:
    """Load ``path`` into ``model``, strictly, and return the model.

    Raises:
        UserError: the file cannot be read, or its keys or shapes do not fit; the message names them.
    """
    state = read_state(path)
    expected = model.state_dict()
    wrong = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    fitting = {key: value for key, value in state.items() if key not in expected or value.shape == expected[key].shape}
    absent, unexpected = model.load_state_dict(fitting, strict=False)
    missing = [key for key in absent if key not in state]
    faults = [
        f"{label} {_some(keys)}"
        for label, keys in (("missing:", missing), ("unexpected:", unexpected), ("wrong shape:", wrong))
        if keys
    ]
    if faults:
        raise UserError(f"{path} does not fit this network; {'; '.join(faults)}. Name the right one with --model.")
    return model


def save_checkpoint(state: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write a state dict as safetensors, atomically. ``metadata`` says what it is and how it was trained."""
    from safetensors.torch import save

    from runtime.files import atomic_write

    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with atomic_write(path) as stream:
        stream.write(save(tensors, metadata=dict(metadata)))


def recorded(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; nothing for a file of another kind, or that cannot be read."""
    if path.suffix.lower() != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def recorded_name(path: Path) -> str | None:
    """The network's registered name as recorded in a safetensors file, if it is."""
    return recorded(path).get("model")


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _some(keys: list[str], limit: int = 6) -> str:
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
