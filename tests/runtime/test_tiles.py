"""Tiles: they cover, they blend to 1, and a network that sees far enough into its tile gives the untiled picture."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines.contract import Batch, EngineInfo
from runtime.errors import UserError
from runtime.images import Picture
from runtime.tiles import plan_tiles, ramps
from runtime.upscale import upscale


@given(st.integers(1, 400), st.integers(2, 90), st.data())
def test_tiles_cover_and_overlap(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    tiling = plan_tiles(length, 1, tile=tile, overlap=overlap)
    starts, size = tiling.rows, tiling.height
    assert starts[0] == 0
    assert starts[-1] + size == length
    assert all(0 < b - a <= size - overlap for a, b in itertools.pairwise(starts))
    total = np.zeros(length * 3)
    for start, weight in zip(starts, ramps(starts, size, 3), strict=True):
        assert weight.min() >= 0
        total[start * 3 : (start + size) * 3] += weight
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_an_overlap_of_a_whole_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves nothing"):
        plan_tiles(100, 100, tile=16, overlap=16)


class Blur:
    """A stand-in network: a box blur of known radius, then each pixel twice. No engine; tests geometry only."""

    def __init__(self, radius: int) -> None:
        self.radius = radius
        self.shapes: set[tuple[int, ...]] = set()
        self.info = EngineInfo("blur", "numpy", "cpu", 2, "blur", "exact", radius, 1, "fp32")

    def infer(self, batch: Batch) -> Batch:
        self.shapes.add(batch.shape)
        r = self.radius
        padded = np.pad(batch, ((0, 0), (0, 0), (r, r), (r, r)))
        height, width = batch.shape[2:]
        total = sum(
            padded[:, :, i : i + height, j : j + width] for i in range(2 * r + 1) for j in range(2 * r + 1)
        ) / np.float32((2 * r + 1) ** 2)
        return np.asarray(total, np.float32).repeat(2, axis=2).repeat(2, axis=3)

    def close(self) -> None: ...


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(50, 70), (33, 64), (31, 20), (100, 32)])
def test_tiled_equals_whole_where_the_overlap_suffices(dtype: type, size: tuple[int, int]) -> None:
    peak = np.iinfo(dtype).max
    picture = Picture(np.random.default_rng(0).integers(0, peak + 1, (*size, 3), dtype=dtype))
    engine = Blur(2)
    whole = upscale(engine, picture, tile=0)
    engine.shapes.clear()
    tiled = upscale(engine, picture, tile=32, overlap=8)
    assert whole.exact
    assert tiled.exact
    assert tiled.picture.colour.shape == (2 * size[0], 2 * size[1], 3)
    assert tiled.picture.colour.dtype == dtype
    difference = tiled.picture.colour.astype(int) - whole.picture.colour.astype(int)
    assert np.abs(difference).max() <= 1  # float sums of two tiles may round apart
    assert len(engine.shapes) == 1, "all tiles must have one shape"


def test_a_short_overlap_is_not_called_exact() -> None:
    picture = Picture(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    engine = Blur(6)
    tiled, whole = upscale(engine, picture, tile=32, overlap=8), upscale(engine, picture, tile=0)
    assert not tiled.exact
    assert np.abs(tiled.picture.colour.astype(int) - whole.picture.colour.astype(int)).max() > 1
    engine.info = dataclasses.replace(engine.info, tiling="approximate", receptive_radius=1)
    assert not upscale(engine, picture, tile=32, overlap=8).exact, "a global network is never exact by tiles"


def test_alpha_and_grey() -> None:
    grey = np.random.default_rng(1).integers(0, 256, (20, 24), dtype=np.uint8)
    picture = Picture(np.dstack([grey] * 3), np.full((20, 24), 200, np.uint8), grey=True)
    result = upscale(Blur(1), picture).picture
    assert result.alpha is not None
    assert result.alpha.shape == (40, 48)
    assert (result.alpha == 200).all()
    assert (result.colour[..., 0] == result.colour[..., 2]).all()


def test_a_picture_smaller_than_the_network_takes() -> None:
    engine = Blur(1)
    engine.info = dataclasses.replace(engine.info, minimum_size=16)
    result = upscale(engine, Picture(np.full((3, 5, 3), 90, np.uint8)))
    assert result.picture.colour.shape == (6, 10, 3)
    assert engine.shapes == {(1, 3, 16, 16)}


def test_values_that_are_not_finite_are_an_error_and_no_black_picture() -> None:
    class Overflowing(Blur):
        def infer(self, batch: Batch) -> Batch:
            result = super().infer(batch)
            result[0, 0, 3, 3] = np.inf
            return result

    with pytest.raises(UserError, match="infinite or undefined"):
        upscale(Overflowing(1), Picture(np.zeros((8, 8, 3), np.uint8)))
