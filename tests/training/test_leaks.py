"""The leak rule."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import UserError
from training.leaks import BSD100_IDS, refuse_benchmarks, refuse_copies
from training.samples import TrainingImage


def test_bsd100_has_a_hundred_ids() -> None:
    assert len(BSD100_IDS) == 100


@pytest.mark.parametrize(
    "name", ["BSDS500/101085.jpg", "x/302003.jpg", "x/160067_HR.png", "Urban100/img_001.png", "a/set5/b.png"]
)
def test_refused_by_name(name: str) -> None:
    refuse_benchmarks([Path("BSDS500/100007.jpg")])
    with pytest.raises(UserError, match="benchmark"):
        refuse_benchmarks([Path("BSDS500/100007.jpg"), Path(name)])


def test_refused_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMIN_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    scored, other = (cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (120, 90)) for _ in range(2))
    refuse_copies([TrainingImage(Path("other"), other, other)])  # no benchmark at hand: nothing to compare with
    (tmp_path / "benchmarks" / "SetX" / "HR").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "benchmarks" / "SetX" / "HR" / "known.png"), scored)
    refuse_copies([TrainingImage(Path("other"), other, other)])
    for copy in (scored, scored[:, ::-1], cv2.resize(scored, (50, 40))):
        with pytest.raises(UserError, match=r"sneaky .*known\.png"):
            refuse_copies([TrainingImage(Path("other"), other, other), TrainingImage(Path("sneaky"), copy, copy)])
