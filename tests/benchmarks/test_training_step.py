"""The clock of a training step."""

from __future__ import annotations

from benchmarks.training_step import time_steps


def test_every_kind_is_timed() -> None:
    times = time_steps("gmin_sau_none_x2", batch=1, patch=8, rounds=1)
    assert [time.cpu_kernels for time in times] == ["torch", "fp32", "bf16"]
    assert all(time.wall_s > 0 and time.cpu_s > 0 for time in times)
