"""What a machine tells of itself, and machines that tell otherwise."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from runtime import environment
from runtime.environment import ProcessorTime

ARM = """\
processor\t: 0
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes asimdhp asimddp
"""


def test_this_machine() -> None:
    here = environment.environment(threads=3)
    assert here.threads == 3
    assert here.processor
    assert here.cores >= 1
    assert here.libraries["numpy"]
    assert here.date.endswith("+00:00")


def test_an_arm_board(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/cpuinfo": ARM, "/proc/device-tree/model": "NVIDIA Jetson Orin Nano\0"}
    files["/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"] = "1510400"
    monkeypatch.setattr(environment, "_text", files.get)
    monkeypatch.setattr(environment, "_output", lambda *_: "NV Power Mode: 15W\n0\n")
    board = environment.environment(threads=6)
    assert board.processor == "NVIDIA Jetson Orin Nano"
    assert board.features == ["asimd", "asimdhp", "asimddp"]
    assert board.clock_mhz == pytest.approx(1510.4)
    assert board.power_mode == "15W"


def test_a_gpu_as_a_fake_nvml_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def refused(*_):
        raise NVMLError

    fake_nvml = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda _: b"A fake GPU",
        nvmlSystemGetDriverVersion=lambda: "1.2",
        nvmlDeviceGetClockInfo=lambda _, kind: 1000 * kind,
        nvmlDeviceGetPowerManagementLimit=refused,
        nvmlDeviceGetTemperature=lambda *_: 40,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml)
    (gpu,) = environment.accelerators()
    assert gpu == {
        "name": "A fake GPU",
        "driver": "1.2",
        "clock_mhz": 1000.0,
        "memory_clock_mhz": 2000.0,
        "power_limit_w": None,
        "temperature_c": 40.0,
    }
    fake_nvml.nvmlInit = refused
    assert environment.accelerators() == []


def test_what_others_took() -> None:
    before = ProcessorTime(own=1.0, busy=10.0, total=100.0)
    assert ProcessorTime(own=3.0, busy=14.0, total=110.0).taken_by_others_since(before) == pytest.approx(0.2)
    assert ProcessorTime(own=9.0, busy=10.0, total=110.0).taken_by_others_since(before) == 0.0
    assert before.taken_by_others_since(before) == 0.0


@pytest.mark.parametrize(
    ("flags", "overflow"),
    [("sse4_1 avx2 fma", True), ("avx2 avx512f", True), ("avx2 avx_vnni", False), ("avx2 avx512f avx512_vnni", False)],
)
def test_sums_of_8_bit_products_overflow_without_vnni(
    monkeypatch: pytest.MonkeyPatch, flags: str, overflow: bool
) -> None:
    monkeypatch.setattr(environment, "_text", {"/proc/cpuinfo": f"processor\t: 0\nflags\t\t: {flags}\n"}.get)
    assert environment.sums_overflow() is overflow


@pytest.mark.parametrize(("flags", "has"), [("avx2 avx512f avx512_bf16", True), ("avx2 avx512f", False)])
def test_bfloat16_products_are_an_instruction_of_their_own(
    monkeypatch: pytest.MonkeyPatch, flags: str, has: bool
) -> None:
    monkeypatch.setattr(environment, "_text", {"/proc/cpuinfo": f"processor\t: 0\nflags\t\t: {flags}\n"}.get)
    assert environment.multiplies_bfloat16() is has


def test_an_arm_board_has_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_text", {"/proc/cpuinfo": ARM}.get)
    assert not environment.sums_overflow()
