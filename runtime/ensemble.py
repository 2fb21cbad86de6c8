"""Geometric self-ensemble: the mean of a network's answers to the eight turns and mirrors of a picture.

Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", 2017, call it "+". It is eight
times the work.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np

from runtime.engines.contract import Batch, Engine, EngineInfo, ShapedEngine, infer_each
from runtime.errors import UserError


class SelfEnsemble:
    """An engine that asks another one eight times."""

    info: EngineInfo

    def __init__(self, engine: Engine) -> None:
        """Wrap ``engine``, which stays the caller's to close through this one.

        Raises:
            UserError: the engine takes one size that is no square, and turned pictures are of another.
        """
        self.engine = engine
        accepts = engine.info.accepts
        if accepts is not None:  # every size is wanted turned too
            (low, high) = accepts
            accepts = (max(low), max(low)), (min(high), min(high))
            if max(low) > min(high):
                raise UserError(f"{engine.info.engine} takes no square pictures, which --x8 needs: build it for some.")
        self.info = replace(engine.info, name=f"{engine.info.name}+x8", accepts=accepts)

    def infer(self, batch: Batch) -> Batch:
        """(N, 3, H, W) to (N, 3, scale·H, scale·W), unclamped: the mean of eight answers, each turned back."""
        turns = [(transposed, axes) for transposed in (False, True) for axes in ((), (2,), (3,), (2, 3))]
        # the four of one shape in a row: engines may prepare for a shape
        batches = (
            np.ascontiguousarray(np.flip(batch.swapaxes(2, 3) if transposed else batch, axes))
            for transposed, axes in turns
        )
        total: Batch | None = None
        with closing(infer_each(self.engine, batches)) as answers:
            for (transposed, axes), result in zip(turns, answers, strict=True):
                answer = np.flip(result, axes)
                answer = answer.swapaxes(2, 3) if transposed else answer
                total = np.array(answer, np.float32) if total is None else np.add(total, answer, out=total)
        assert total is not None
        total /= np.float32(8)
        return total

    def expect(self, shape: tuple[int, ...] | None) -> None:
        """Hand on what shape will come most often, where the engine wants to know."""
        if isinstance(self.engine, ShapedEngine):
            self.engine.expect(shape)

    def close(self) -> None:
        """Close the engine within."""
        self.engine.close()
