"""The small form of the long run: what it reports is there and plausible."""

from pathlib import Path

import pytest

from benchmarks.interruptions import cubic_engine
from benchmarks.long_run import long_run
from benchmarks.memory import resident_mb


@pytest.mark.skipif(resident_mb("VmRSS") is None, reason="needs /proc")
def test_a_short_long_run(tmp_path: Path) -> None:
    cubic_engine(tmp_path / "cubic.onnx")
    report = long_run(tmp_path, f"ort:{tmp_path / 'cubic.onnx'}", count=120, width=40, height=30, vary=True, threads=1)
    assert len(report["resident_mb"]) == 120
    assert len(list((tmp_path / "out").glob("*.png"))) == 120
    assert report["growth_at_end"] < 0.05
    assert report["share_of_bare"] > 0
