"""Statistics and ranges: mathematics with known answers."""

import numpy as np
import pytest

from quantize.calibration import BINS, TensorStatistics
from quantize.ranges import METHODS, choose_range, scale_and_zero_point


def gathered(*arrays: np.ndarray) -> TensorStatistics:
    statistics = TensorStatistics()
    for values in arrays:
        statistics.add(values.astype(np.float32))
    return statistics


def test_histogram_is_that_of_all_values_at_once() -> None:
    random = np.random.default_rng(0)
    parts = [random.normal(0, 10.0**i, 5000) for i in range(-2, 3)]
    streamed, reverse = gathered(*parts), gathered(*parts[::-1])
    assert streamed.counts.sum() == 25_000
    assert (streamed.low, streamed.high) == (reverse.low, reverse.high)
    assert streamed.reach == reverse.reach
    whole = np.histogram(np.concatenate(parts).astype(np.float32), BINS, (-streamed.reach, streamed.reach))[0]
    # values on an edge may fall on either side of it
    assert np.abs(np.cumsum(streamed.counts) - np.cumsum(whole)).max() <= 2


def test_infinite_values_are_named() -> None:
    with pytest.raises(ValueError, match="relu_3 takes infinite"):
        TensorStatistics().add(np.array([1.0, np.inf], np.float32), "relu_3")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_ranges_contain_zero_and_lie_within_the_extremes(method: str, symmetric: bool) -> None:
    statistics = gathered(np.random.default_rng(1).gamma(2.0, 2.0, 100_000) + 0.5)
    low, high = choose_range(statistics, method, symmetric=symmetric)  # type: ignore[arg-type]
    assert low <= 0 <= high <= statistics.high
    if symmetric:
        assert low == -high
    else:
        assert low == 0


def test_mse_clips_a_lone_outlier_and_minmax_does_not() -> None:
    statistics = gathered(np.random.default_rng(2).normal(0, 1, 1_000_000), np.array([40.0]))
    assert choose_range(statistics, "minmax", symmetric=False)[1] == 40
    assert 3 < choose_range(statistics, "mse", symmetric=False)[1] < 25
    assert 3 < choose_range(statistics, "percentile", symmetric=False)[1] < 5


def test_mse_is_no_worse_than_minmax_in_squared_error() -> None:
    values = np.random.default_rng(3).standard_t(4, 200_000).astype(np.float32)
    errors = {}
    for method in ("minmax", "mse"):
        scale, zero = scale_and_zero_point(*choose_range(gathered(values), method, symmetric=False), "uint8")  # type: ignore[arg-type]
        restored = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
        errors[method] = np.mean((values - restored) ** 2)
    assert errors["mse"] < 0.8 * errors["minmax"]


def test_scales_represent_zero_exactly() -> None:
    assert scale_and_zero_point(-2.0, 2.0, "int8") == (np.float32(2 / 127), 0)
    scale, zero = scale_and_zero_point(-1.0, 3.0, "uint8")
    assert zero == round(1 / scale)
    assert scale_and_zero_point(0.0, 0.0, "uint8")[0] > 0, "a tensor that is always 0 still has a valid scale"
