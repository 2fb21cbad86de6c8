"""The bookkeeping of times, with engines and a clock that only pretend; and the script, with real ones."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from benchmarks import exported
from benchmarks.latency import Contestant, joined, measure
from benchmarks.memory import peak_memory_mb
from benchmarks.protocol import RANDOM, Size
from runtime.engines.contract import EngineInfo, StageTimes, TimedEngine
from runtime.errors import UserError
from tests.conftest import ROOT, Script


@dataclass
class Clock:
    """Stands still until an engine pretends to work."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeEngine:
    """Takes the listed milliseconds, one after another, and writes down when it ran."""

    name: str
    clock: Clock
    milliseconds: list[float]
    log: list[str] = field(default_factory=list)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(self.name, "fake", "cpu", 4, self.name, "exact", 0, 1, "fp32")

    def infer(self, batch: np.ndarray) -> np.ndarray:
        self.log.append(self.name)
        self.clock.now += self.milliseconds.pop(0) / 1e3
        return batch

    def close(self) -> None:
        """Nothing is held."""


class FakeTimedEngine(FakeEngine):
    """Pretends to be an accelerator that tells its stages."""

    last_times = StageTimes(1.0, 6.0, 3.0)


def test_engines_take_turns_and_the_ratio_is_of_the_same_round() -> None:
    clock, log = Clock(), []
    slow = [10.0, 10, 20, 40]  # the machine slows down while both run; the ratio does not notice
    first = FakeEngine("first", clock, [99.0, *slow], log)
    second = FakeEngine("second", clock, [99.0, *(2 * t for t in slow)], log)
    contestants = [Contestant(first, "A"), Contestant(second, "B", RANDOM, 12.5)]
    a, b = measure(contestants, Size(10, 5), threads=2, rounds=4, warm_up=1, clock=clock)
    assert log == ["first", "second"] * 5
    assert (a.ratio, b.ratio) == pytest.approx((1.0, 2.0))
    assert (a.median_ms, a.min_ms, a.rounds) == (pytest.approx(15), pytest.approx(10), 4)
    assert a.p90_ms == pytest.approx(np.percentile(slow, 90))
    assert a.p99_ms == pytest.approx(np.percentile(slow, 99))
    assert a.output_megapixels_per_s == pytest.approx(40 * 20 / 15e-3 / 1e6)
    assert a.noisy
    assert (b.network, b.weights, b.peak_memory_mb, b.compute_ms) == ("B", RANDOM, 12.5, None)


def test_a_quiet_machine_is_not_called_noisy_and_stages_are_taken_where_they_are_told() -> None:
    clock = Clock()
    engine = FakeTimedEngine("gpu", clock, [10.0] * 5)
    assert isinstance(engine, TimedEngine)
    (row,) = measure([Contestant(engine, "GPU")], Size(4, 4), threads=1, rounds=3, warm_up=2, clock=clock)
    assert not row.noisy
    assert (row.host_to_device_ms, row.compute_ms, row.device_to_host_ms) == (1.0, 6.0, 3.0)


def test_what_did_not_run_together_is_not_compared() -> None:
    one, other = {"run": "a", "results": [1]}, {"run": "b", "results": [2]}
    assert joined(one, {"run": "a", "results": [2]}) == [1, 2]
    for pair in ((one, other), (one, {"results": []}), ({"results": []},)):
        with pytest.raises(UserError, match="not measured in one run"):
            joined(*pair)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of a process")
def test_peak_memory_is_that_of_the_engine_alone() -> None:
    ballast = np.ones(400_000_000, np.uint8)  # what this process holds must not count
    small = peak_memory_mb(f"ort:{ROOT}/runtime/models/gmin_x4.onnx", Size(48, 48), threads=1)
    assert small is not None
    assert 10 < small < 300
    assert ballast.any()


def test_a_network_is_exported_once_and_again_when_its_weights_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def fake_export(_model: object, path: Path, network: object) -> None:
        made.append(path.name)
        path.write_bytes(b"a fake file")

    weights: list[Path | None] = [None]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda _name: tmp_path)
    monkeypatch.setattr("export.to_onnx.export_onnx", fake_export)
    monkeypatch.setattr(exported, "_weights", lambda _name: weights[0])
    path, label = exported.exported("smfanet_x4")
    assert (path.parent, label) == (tmp_path / "exported", RANDOM)
    assert exported.exported("smfanet_x4") == (path, label)
    weights[0] = ROOT / "model/weights/gmin_x4.safetensors"
    monkeypatch.setattr(exported, "_with_weights", lambda _name: (None, "released"))
    assert exported.exported("smfanet_x4")[1] == "released"
    assert len(made) == len(set(made)) == 2


def test_a_network_without_weights_is_timed_in_pytorch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "_weights", lambda _name: None)
    timed = exported.open_timed("torch:smfanet_x4", threads=1)
    assert timed.weights == RANDOM
    assert timed.engine.info.engine == "torch:smfanet_x4"
    assert timed.engine.infer(np.zeros((1, 3, 24, 24), np.float32)).shape == (1, 3, 96, 96)
    timed.engine.close()


def test_script(script: Script) -> None:
    arguments = ["ort:runtime/models/gmin_x4.onnx", "bicubic", "--size", "32x24", "--size", "24x24", "--rounds", "2"]
    done = script("benchmarks/latency.py", *arguments, "--threads", "1", "--no-memory", "--json", "-")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["schema"] == 1
    assert len(content["run"]) == 32
    assert [(r["network"], r["input"], r["rounds"]) for r in content["results"]] == [
        ("gmin_x4", "32x24", 2),
        ("bicubic", "32x24", 2),
        ("gmin_x4", "24x24", 2),
        ("bicubic", "24x24", 2),
    ]
    assert content["results"][0]["ratio"] == 1.0
    assert content["environment"]["threads"] == 1
    assert content["environment"]["libraries"]["onnxruntime"]
    assert "median ms" in done.stderr


def test_mistakes(script: Script) -> None:
    done = script("benchmarks/latency.py", "bicubic", "--size", "big")
    assert done.returncode == 2
    assert done.stderr == "error: 'big' is no size; write width x height in pixels, such as 320x180.\n"
