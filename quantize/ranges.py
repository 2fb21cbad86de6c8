"""From what values a tensor takes to the interval that 8 bits should cover. Pure mathematics, no engine.

``minmax`` covers everything; ``percentile`` leaves out a share of the extremes; ``mse`` and ``entropy`` choose the
interval whose 256 levels give the least squared error, or the least Kullback-Leibler divergence. For asymmetric types
both ends are searched apart: the activations of super-resolution networks are skewed (dual clipping, Tu et al., CVPR
2023).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from quantize.calibration import TensorStatistics

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)
PERCENTILE = 99.99
_SHRINK = np.concatenate((np.arange(1.0, 0.5, -0.02), np.arange(0.5, 0.05, -0.05)))


def choose_range(statistics: TensorStatistics, method: Method, *, symmetric: bool) -> tuple[float, float]:
    """The interval [low, high] to cover; it contains 0, and is centred on it where ``symmetric``."""
    low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
    if method == "percentile":
        low, high = _percentile(statistics, low, high)
    elif method in ("mse", "entropy"):
        low, high = _search(statistics, low, high, method, symmetric)
    if symmetric:
        high = max(-low, high)
        low = -high
    return low, high


def scale_and_zero_point(low: float, high: float, dtype: Literal["int8", "uint8"]) -> tuple[np.float32, int]:
    """Scale and zero point of ``dtype`` (int8 or uint8) for [low, high]; 0 is represented exactly.

    A centred interval gives int8 the zero point 0 and the levels -127…127.
    """
    if dtype == "int8":
        return np.float32(max(max(-low, high) / 127, np.finfo(np.float32).tiny)), 0
    scale = np.float32(max((high - low) / 255, np.finfo(np.float32).tiny))
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))


def _percentile(statistics: TensorStatistics, low: float, high: float) -> tuple[float, float]:
    cumulative = np.cumsum(statistics.counts) / statistics.counts.sum()
    tail = (1 - PERCENTILE / 100) / 2
    centres = statistics.centres()
    below = centres[np.searchsorted(cumulative, tail)]
    above = centres[np.searchsorted(cumulative, 1 - tail).clip(max=len(centres) - 1)]
    return max(low, min(float(below), 0.0)), min(high, max(float(above), 0.0))


def _search(
    statistics: TensorStatistics, low: float, high: float, method: Method, symmetric: bool
) -> tuple[float, float]:
    used = statistics.counts > 0
    centres, counts = statistics.centres()[used], statistics.counts[used].astype(np.float64)
    cost = _squared_error if method == "mse" else _divergence

    def total(low: float, high: float) -> float:
        return cost(centres, counts, low, high)

    if symmetric:
        reach = max(-low, high)
        best = min(_SHRINK, key=lambda k: total(-k * reach, k * reach))
        return -best * reach, best * reach
    for _ in range(2):  # the ends depend on each other but weakly: two rounds settle
        high = high * min(_SHRINK, key=lambda k: total(low, k * high))
        low = low * min(_SHRINK, key=lambda k: total(k * low, high))
    return low, high


def _levels(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    return np.rint((values.clip(low, high) - low) / max((high - low) / 255, 1e-30))


def _squared_error(values: NDArray[np.float64], counts: NDArray[np.float64], low: float, high: float) -> float:
    step = max((high - low) / 255, 1e-30)
    restored = _levels(values, low, high) * step + low
    return float((values - restored) ** 2 @ counts)


def _divergence(values: NDArray[np.float64], counts: NDArray[np.float64], low: float, high: float) -> float:
    """KL(P ‖ Q): Q spreads what each of the 256 levels holds evenly over the bins that the level covers."""
    levels = _levels(values, low, high).astype(np.int64)
    inside = (values >= low) & (values <= high)
    mass = np.bincount(levels, counts, 256)  # clipped values fall on the outer levels
    share = np.bincount(levels[inside], minlength=256)
    q = np.where(inside, mass[levels] / np.maximum(share[levels], 1), 1e-12 * counts.sum())
    p = counts / counts.sum()
    return float(p @ np.log(p / (q / q.sum())))
