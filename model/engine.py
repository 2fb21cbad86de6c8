"""Networks as engines, in PyTorch: the reference that files are held against."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from data.assets import located
from model.registry import Network, describe
from runtime.engines.contract import Batch, EngineInfo

_OURS = Path(__file__).with_name("weights")


def weights_path(name: str) -> Path:
    """The released weights of a registered network: ours, or an asset.

    Raises:
        UserError: there are none, or they are neither on the disk nor to be fetched.
    """
    from runtime.errors import UserError

    network = describe(name)
    if network.weights is None:
        raise UserError(f"No weights of {name} are released; train them, or export a checkpoint with --ckpt.")
    if (_OURS / network.weights).is_file():
        return _OURS / network.weights
    return located(f"weights/{network.weights}")


class TorchEngine:
    """A network in eager FP32, on the CPU or CUDA."""

    info: EngineInfo

    def __init__(
        self,
        model: nn.Module,
        network: Network,
        *,
        engine: str | None = None,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        """Take ``model``, which ``network`` describes; ``engine`` is what the user called it.

        ``threads`` holds for all of PyTorch in this process.
        """
        if threads:
            torch.set_num_threads(threads)
        wanted = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(wanted)
        self._model = model.to(self._device).eval()
        self.info = EngineInfo(
            engine=engine or network.name,
            backend=f"PyTorch {torch.__version__}",
            device=wanted,
            scale=network.scale,
            name=network.name,
            tiling=network.tiling,
            receptive_radius=network.receptive_radius,
            minimum_size=network.minimum_size,
            precision="fp32",
        )

    def infer(self, batch: Batch) -> Batch:
        """(N, 3, H, W) to (N, 3, scale·H, scale·W), unclamped."""
        with torch.inference_mode():
            result: Batch = self._model(torch.from_numpy(batch).to(self._device)).cpu().numpy()
        return result

    def close(self) -> None:
        """Free the network."""
        del self._model
