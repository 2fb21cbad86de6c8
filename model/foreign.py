"""Super-resolution networks of others, recognised by spandrel from their weights alone.

The file is read by ``model.checkpoint``, as every other: weights only. spandrel sees a dictionary of tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoint import read_state
from model.registry import Network
from runtime.errors import UserError


class Padded(nn.Module):
    """A network whose input sides must be multiples of ``multiple``, made to take any.

    Rows and columns are reflected at the end, by index: so the exported graph holds for every size.
    """

    def __init__(self, inner: nn.Module, scale: int, multiple: int) -> None:
        super().__init__()
        self.inner, self.scale, self.multiple = inner, scale, multiple

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 3, scale·H, scale·W)."""
        height, width = x.shape[2:]
        y = self.inner(self._padded(self._padded(x, 2), 3))
        return self._first(self._first(y, self.scale * height, 2), self.scale * width, 3)

    def _padded(self, x: Tensor, dim: int) -> Tensor:
        length = x.shape[dim]
        total = (length + self.multiple - 1) // self.multiple * self.multiple
        last = length - 1
        return x.index_select(dim, last - (last - torch.arange(total, device=x.device)).abs())

    def _first(self, x: Tensor, length: int, dim: int) -> Tensor:
        return x.index_select(dim, torch.arange(length, device=x.device))


def load_foreign(path: Path) -> tuple[nn.Module, Network]:
    """Recognise and build the network whose weights ``path`` holds.

    Returns:
        The network, (N, 3, H, W) float32 RGB in [0, 1] to (N, 3, scale·H, scale·W), and its description. spandrel does
        not say how far a network looks: it is tiled with caution.

    Raises:
        UserError: spandrel is missing, the file is unreadable, or what it holds is no super-resolution of RGB.
    """
    state = read_state(path)
    spandrel = _spandrel()
    try:
        found = spandrel.ModelLoader(device="cpu").load_from_state_dict(spandrel.canonicalize_state_dict(state))
    except spandrel.UnsupportedModelError as error:
        raise UserError(f"{path} holds no network that spandrel recognises.") from error
    except Exception as error:  # a loader that was sure of itself, and met weights of another shape
        raise UserError(
            f"{path} looks like a network that spandrel knows, but does not load: {_line(error)}"
        ) from error
    name, needs = found.architecture.name, found.size_requirements
    if found.purpose != "SR" or (found.input_channels, found.output_channels) != (3, 3) or needs.square:
        raise UserError(
            f"{path} holds {name}, for {found.purpose} from {found.input_channels} to {found.output_channels} channels"
            f"{', square pictures only' if needs.square else ''}: only super-resolution of RGB can be measured here."
        )
    model: nn.Module = found.model.eval().float()
    _fuse_once(model)
    if needs.multiple_of > 1:
        model = Padded(model, found.scale, needs.multiple_of)
    return model, Network(
        name=path.stem,
        scale=found.scale,
        builder="",
        minimum_size=max(16, needs.minimum, needs.multiple_of),
        tiling="approximate",
        receptive_radius=64,
        source=f"{name}, recognised by spandrel {spandrel.__version__}",
    )


def _fuse_once(model: nn.Module) -> None:
    """Let branches that are merged anew at every inference (SPAN and its kin) be merged now and stay so.

    The result is the same; but their merging would be counted and timed, and the exporter dies of it.
    """
    for module in model.modules():
        merge = getattr(module, "update_params", None)
        if callable(merge) and hasattr(module, "eval_conv"):
            with torch.no_grad():
                merge()
            module.update_params = _nothing  # type: ignore[assignment]  # in place of the method, on this object only
            module.conv = module.sk = nn.Identity()  # the branches: they are in eval_conv now


def _nothing() -> None:
    """Merged already."""


def _spandrel() -> Any:
    try:
        import spandrel
    except ImportError as error:
        if error.name and error.name.partition(".")[0] == "spandrel":
            raise UserError("Networks of others need spandrel: pip install 'gmin-edge[spandrel]'.") from error
        raise UserError(
            f"spandrel does not start, for it needs {error.name or error}: pip install 'gmin-edge[spandrel]'."
        ) from error
    return spandrel


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
