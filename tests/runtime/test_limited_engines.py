"""Engines that take certain sizes, or get little memory, in every way that tiles are made. They are FAKES in numpy."""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from runtime.engines.contract import Batch, EngineInfo
from runtime.ensemble import SelfEnsemble
from runtime.errors import UserError
from runtime.images import Picture
from runtime.memory import TooMuchMemoryError
from runtime.steps import Loaded, Options, compute
from runtime.upscale import upscale

Sizes = tuple[tuple[int, int], tuple[int, int]]


class Local:
    """A FAKE network of one 3×3 mean, twice enlarged, that refuses sizes as a TensorRT plan does; two in flight."""

    def __init__(self, accepts: Sizes | None = None, *, most_pixels: int = 10**9) -> None:
        self.info = EngineInfo("local", "numpy", "cpu", 2, "local", "exact", 1, 1, "fp32", accepts=accepts)
        self.sizes: list[tuple[int, int]] = []
        self.most_pixels, self.ahead = most_pixels, 0

    def infer(self, batch: Batch) -> Batch:
        height, width = batch.shape[2:]
        self.sizes.append((height, width))
        if self.info.accepts is not None:
            (low, high) = self.info.accepts
            assert low[0] <= height <= high[0]
            assert low[1] <= width <= high[1]
        if height * width > self.most_pixels:
            raise MemoryError
        padded = np.pad(batch, ((0, 0), (0, 0), (1, 1), (1, 1)))
        total = sum(padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3))
        result: Batch = np.asarray(total / 9, np.float32).repeat(2, 2).repeat(2, 3)
        return result

    def infer_each(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        waiting: list[Batch] = []
        for batch in batches:
            waiting.append(self.infer(batch))
            self.ahead = max(self.ahead, len(waiting))
            if len(waiting) == 2:
                yield waiting.pop(0)
        yield from waiting

    def close(self) -> None:
        """Nothing to free."""


def picture(height: int, width: int) -> Picture:
    return Picture(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("tile", [None, 20, 200])
def test_exact_tiles_with_their_context_fit_into_a_plan(tile: int | None) -> None:
    whole = upscale(Local(), picture(90, 70), tile=0)
    engine = Local(((8, 8), (32, 40)))
    by_tiles = upscale(engine, picture(90, 70), tile=tile, tiling="exact")
    assert by_tiles.tiles > 1
    assert by_tiles.exact
    assert engine.ahead == 2, "tiles stay in flight"
    np.testing.assert_array_equal(by_tiles.picture.colour, whole.picture.colour)


def test_a_plan_that_is_smaller_than_the_context() -> None:
    engine = Local(((2, 2), (2, 2)))
    with pytest.raises(UserError, match="takes 2x2 at most: use --tiling fast"):
        upscale(engine, picture(90, 70), tiling="exact")


def test_fast_tiles_of_a_plan_of_one_size() -> None:
    engine = Local(((48, 48), (48, 48)))
    result = upscale(engine, picture(100, 40))  # narrower than the plan: padded and cut
    assert set(engine.sizes) == {(48, 48)}
    assert result.picture.colour.shape == (200, 80, 3)


def test_turned_pictures_fit_into_a_plan_too() -> None:
    ensemble = SelfEnsemble(engine := Local(((8, 16), (64, 48))))
    assert ensemble.info.accepts == ((16, 16), (48, 48))
    assert upscale(ensemble, picture(60, 100)).picture.colour.shape == (120, 200, 3)
    assert {side for size in engine.sizes for side in size} <= set(range(16, 49))
    with pytest.raises(UserError, match="takes no square pictures"):
        SelfEnsemble(Local(((16, 32), (16, 32))))


def test_only_runs_that_need_not_be_repeatable_take_smaller_tiles() -> None:
    """Tiles decide about the last bits, and a folder must have the same bytes after an interruption."""
    loaded = Loaded(picture(200, 200), 0.0)
    short = Local(most_pixels=100 * 100)
    assert compute(short, loaded, Options(), repeatable=False).upscaled.tile == 100
    with pytest.raises(TooMuchMemoryError, match="cannot get the memory for 200x200 pixels: name a smaller --tile"):
        compute(short, loaded, Options())
