"""``gmin doctor`` on this machine, and on others that are faked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime import doctor, environment, flavour
from runtime.cuda import Gpu
from runtime.errors import UserError
from tests.conftest import Script


def test_this_machine(script: Script) -> None:
    done = script("gmin.py", "doctor", "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    engines = {finding["engine"]: finding for finding in report["engines"]}
    assert engines["ort"]["runs"]
    assert engines["openvino"]["runs"]
    assert report["environment"]["processor"]
    assert set(report["flavours"]) == {"tensorrt", "rtx"}
    for finding in engines.values():
        assert finding["detail"], "each says what it is, or why not"
    if report["gpu"] is None:
        assert report["gpu_problem"]
        assert not engines["tensorrt (rtx)"]["runs"]
    assert "processor:" in done.stderr


def test_a_jetson_as_faked(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeCuda:
        binding, gpu = "cuda-python 12.6", Gpu("Orin", "8.7", "12.6")

        def close(self) -> None:
            pass

    def load(name: str) -> Any:
        if name == "rtx":
            raise UserError("tensorrt_rtx is not installed: pip install it.")
        return flavour.Flavour("tensorrt", "10.3.0", None, None)

    files = {"/etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 1, BOARD: generic"}
    monkeypatch.setattr(environment, "_text", files.get)
    monkeypatch.setattr(environment, "_output", lambda *command: "6.2.1+b38" if "nvidia-jetpack" in command else "")
    monkeypatch.setattr("runtime.cuda.open_cuda", FakeCuda)
    monkeypatch.setattr("runtime.flavour.load_flavour", load)
    found = doctor.diagnose()
    assert found.jetpack == "6.2.1 (L4T R36.4.4)"
    engines = {finding.engine: finding for finding in found.engines}
    assert engines["tensorrt (tensorrt)"].detail == "version 10.3.0 on Orin, sm8.7"
    assert not engines["tensorrt (rtx)"].runs
    assert "is not installed" in engines["tensorrt (rtx)"].detail
    monkeypatch.setattr(environment, "_output", lambda *_: "")
    assert environment.jetpack() == "about 6 (L4T R36.4.4)"
    monkeypatch.setattr(environment, "_text", {}.get)
    assert environment.jetpack() is None
