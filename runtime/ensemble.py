"""Geometric self-ensemble: the mean of a network's answers to the eight turns and mirrors of a picture.

Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", 2017, call it "+". It is eight
times the work.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from runtime.engines.contract import Batch, Engine, EngineInfo


class SelfEnsemble:
    """An engine that asks another one eight times."""

    info: EngineInfo

    def __init__(self, engine: Engine) -> None:
        """Wrap ``engine``, which stays the caller's to close through this one."""
        self.engine = engine
        self.info = replace(engine.info, name=f"{engine.info.name}+x8")

    def infer(self, batch: Batch) -> Batch:
        """(N, 3, H, W) to (N, 3, scale·H, scale·W), unclamped: the mean of eight answers, each turned back."""
        total: Batch | None = None
        for transposed in (False, True):  # the four of one shape in a row: engines may prepare for a shape
            turned = batch.swapaxes(2, 3) if transposed else batch
            for axes in ((), (2,), (3,), (2, 3)):
                answer = np.flip(self.engine.infer(np.ascontiguousarray(np.flip(turned, axes))), axes)
                answer = answer.swapaxes(2, 3) if transposed else answer
                total = np.array(answer, np.float32) if total is None else np.add(total, answer, out=total)
        assert total is not None
        total /= np.float32(8)
        return total

    def expect(self, shape: tuple[int, ...] | None) -> None:
        """Hand on what shape will come most often, where the engine wants to know."""
        from runtime.engines.contract import ShapedEngine

        if isinstance(self.engine, ShapedEngine):
            self.engine.expect(shape)

    def close(self) -> None:
        """Close the engine within."""
        self.engine.close()
