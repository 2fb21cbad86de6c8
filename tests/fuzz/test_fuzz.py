"""A short dose of every fuzzer, and that the fuzzers themselves would notice."""

import random
from pathlib import Path

import pytest

from tests.fuzz import fuzz


@pytest.mark.parametrize("target", sorted(fuzz.TARGETS))
def test_a_short_dose(target: str) -> None:
    assert fuzz.fuzz(target, 60 if target == "picture" else 300, seed=1) > 0  # decoders take their time


def test_every_target_has_seeds() -> None:
    for target in fuzz.TARGETS:
        assert any(len(seed) > 20 for seed in fuzz.seeds(target)), target


def test_a_crash_is_noticed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fragile() -> fuzz.Target:
        def run(content: bytes) -> None:
            if len(content) % 7 == 3:
                raise ZeroDivisionError

        return run

    monkeypatch.setitem(fuzz.TARGETS, "onnx", fragile)
    monkeypatch.setattr(fuzz, "seeds", lambda _: [bytes(28)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError):
        fuzz.fuzz("onnx", 1000)
    assert len((tmp_path / "fuzz-onnx.bin").read_bytes()) % 7 == 3


def test_mutations_are_repeatable_and_bounded() -> None:
    def some() -> list[bytes]:
        source = random.Random(5)
        return [fuzz.mutate(b"abc" * 900, [b"xyz"], source) for _ in range(200)]

    assert some() == some()
    assert len(set(some())) > 150
    assert max(map(len, some())) <= fuzz.MAX_LENGTH
