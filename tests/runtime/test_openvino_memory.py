"""A folder of many sizes must not fill the memory with code that is compiled for each of them."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from benchmarks.memory import resident_mb
from runtime.engines.opening import open_engine

MODEL = Path(__file__).resolve().parents[2] / "runtime/models/gmin_x4.onnx"


@pytest.mark.skipif(resident_mb("VmRSS") is None, reason="needs /proc")
def test_memory_does_not_grow_with_the_number_of_sizes() -> None:
    sizes = [(height, width) for width in range(24, 34) for height in range(16, 26)]  # 100 of them
    with closing(open_engine(f"openvino:{MODEL}", threads=1)) as engine:

        def resident_after(some: list[tuple[int, int]]) -> float:
            for height, width in some:
                engine.infer(np.zeros((1, 3, height, width), np.float32))
            return resident_mb("VmRSS") or 0.0

        before = resident_after([*sizes[:40], (26, 34)])
        assert resident_after(sizes[40:]) - before < 40  # 1 MB for each size where all are kept
