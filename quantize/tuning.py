"""Tuning of an INT8 graph against its own FP32 network: ranges, rounding and biases by gradient, no labels.

The target is the FP32 network's output on the calibration pictures; ``quantize/simulation.py`` says what is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data.sets import to_batch
from quantize.plan import Plan
from quantize.search import open_session
from runtime.errors import UserError

if TYPE_CHECKING:
    from quantize.patches import Patches

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, loss)."""

_RATE = 2e-3


def tune(
    plan: Plan,
    floats: Collection[str],
    patches: Patches,
    *,
    steps: int = 200,
    batch: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """A plan with tuned ranges, weights and biases, for the layers that are quantized when ``floats`` stay float.

    Args:
        plan: as calibrated; left unchanged.
        floats: units that stay float.
        patches: the pictures to learn from, with their mirror images and quarter turns.
        steps: of Adam; the rates fall linearly to zero.
        batch: pictures a step.
        seed: of the order of the pictures.
        progress: told after each step.

    Raises:
        UserError: PyTorch is missing, or the graph has an operation that cannot be simulated.
    """
    try:
        import torch

        from quantize.simulation import SimulatedGraph
    except ImportError as error:
        raise UserError("Tuning needs PyTorch: pip install 'gmin-edge[torch]', or use --effort fast.") from error
    graph = SimulatedGraph(plan, floats)
    teacher = open_session(plan.model)
    (graph_input,) = teacher.get_inputs()
    draw = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(graph.parameters(), lr=_RATE, betas=(0.9, 0.99))
    fall = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)

    def drawn() -> NDArray[np.float32]:  # read each time: memory does not grow with the number of pictures
        path = patches.calibration[int(draw.integers(len(patches.calibration)))]
        return _turned(to_batch(patches.pair(path).lr)[0], int(draw.integers(8)))

    for step in range(steps):
        chosen = [drawn() for _ in range(batch)]
        side = min(min(picture.shape[1:]) for picture in chosen)
        lr = np.ascontiguousarray(np.stack([picture[:, :side, :side] for picture in chosen]))
        answers = [teacher.run(None, {graph_input.name: one[None]})[0] for one in lr]  # files take one picture
        expected = torch.from_numpy(np.concatenate(answers))
        loss = torch.nn.functional.mse_loss(graph(torch.from_numpy(lr)), expected)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        fall.step()
        if progress is not None:
            progress(step + 1, steps, float(loss.detach()))
    return graph.learnt()


def _turned(picture: NDArray[np.float32], symmetry: int) -> NDArray[np.float32]:
    """One of the eight symmetries of the square; (C, H, W)."""
    picture = np.rot90(picture, symmetry % 4, axes=(1, 2))
    return picture[..., ::-1] if symmetry >= 4 else picture
