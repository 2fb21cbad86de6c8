"""On what a time was measured: processor, its features and clocks, power mode, accelerator, libraries, date."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_FEATURES = (
    *("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""What decides how fast INT8, bf16 and FP16 are, as Linux spells it; ``asimddp`` is ARM's dot product."""
_LIBRARIES = (
    *("gmin-edge", "numpy", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("tensorrt", "tensorrt_rtx", "cuda-python", "pycuda", "opencv-python-headless", "spandrel"),
)


@dataclass(frozen=True)
class Environment:
    """All of it, ready for JSON; None is what this machine does not tell."""

    date: str
    """UTC."""
    processor: str
    features: list[str]
    cores: int
    """That this process may use."""
    threads: int
    clock_mhz: float | None
    """Mean over the cores, now."""
    highest_clock_mhz: float | None
    governor: str | None
    """How Linux sets the clock, such as "performance"."""
    power_mode: str | None
    """Of a Jetson, as nvpmodel says it."""
    accelerators: list[dict[str, Any]]
    memory_gb: float | None
    system: str
    python: str
    libraries: dict[str, str]


def environment(threads: int) -> Environment:
    """Look at this machine."""
    lines = _cpuinfo()
    return Environment(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        processor=_processor(lines),
        features=_features(lines),
        cores=available_cores(),
        threads=threads,
        clock_mhz=_clock(lines),
        highest_clock_mhz=_number("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", 1e-3),
        governor=_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        power_mode=_power_mode(),
        accelerators=accelerators(),
        memory_gb=_memory(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        libraries=_versions(),
    )


def processor() -> str:
    """The processor's own name; empty where the system does not tell."""
    return _processor(_cpuinfo())


def sums_overflow() -> bool:
    """Whether this is an x86 processor without VNNI, whose 8-bit products are summed in 16 bits by most libraries.

    Only Linux tells; elsewhere False.
    """
    features = _features(_cpuinfo())
    return "avx2" in features and not {"avx_vnni", "avx512_vnni", "amx_int8"} & set(features)


def multiplies_bfloat16() -> bool:
    """Whether this is an x86 processor that has bfloat16 products; others make them of slower instructions.

    Only Linux tells; elsewhere False.
    """
    return bool({"avx512_bf16", "amx_bf16"} & set(_features(_cpuinfo())))


def withheld_avx512() -> str | None:
    """The setting, ``NAME=VALUE``, that keeps oneDNN from this processor's AVX-512; None where there is none.

    Only Linux tells what the processor has; elsewhere None.
    """
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):  # the second is the older name
        limit = os.environ.get(name, "").upper()
        if limit in ("SSE41", "AVX") or limit.startswith("AVX2"):
            return f"{name}={limit}" if "avx512f" in _features(_cpuinfo()) else None
    return None


@dataclass(frozen=True)
class ProcessorTime:
    """Seconds of processor time since the start: of this process, of all, and those that the hypervisor kept."""

    own: float
    busy: float
    total: float

    def taken_by_others_since(self, earlier: ProcessorTime) -> float:
        """Share of this machine's processors, in [0, 1], that others used between two looks."""
        total = self.total - earlier.total
        others = (self.busy - earlier.busy) - (self.own - earlier.own)
        return min(1.0, max(0.0, others / total)) if total > 0 else 0.0


def processor_time() -> ProcessorTime | None:
    """Look at the clocks of Linux's scheduler; None elsewhere."""
    fields = (_text("/proc/stat") or "").partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None
    user, nice, system, idle, waiting, interrupt, soft, stolen = (
        int(field) / os.sysconf("SC_CLK_TCK") for field in fields[1:9]
    )
    busy = user + nice + system + interrupt + soft + stolen
    times = os.times()
    return ProcessorTime(own=times.user + times.system, busy=busy, total=busy + idle + waiting)


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def accelerators() -> list[dict[str, Any]]:
    """NVIDIA GPUs through NVML where its binding and a driver are present, else none."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # the binding without a driver
        return []
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            found.append(
                {
                    "name": _string(pynvml.nvmlDeviceGetName(device)),
                    "driver": _string(pynvml.nvmlSystemGetDriverVersion()),
                    **{key: _asked(pynvml, reader, device) for key, reader in _readers(pynvml).items()},
                }
            )
        return found
    finally:
        pynvml.nvmlShutdown()


_JETPACKS = {"35": "5", "36": "6", "38": "7", "39": "7"}
"""By the major number of the Linux for Tegra release."""


def jetpack() -> str | None:
    """JetPack of a Jetson with its Linux for Tegra release, such as "6.2.1 (L4T R36.4.4)"; None elsewhere."""
    release = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", _text("/etc/nv_tegra_release") or "")
    if release is None:
        return None
    exact = _output("dpkg-query", "--showformat=${Version}", "--show", "nvidia-jetpack").partition("+")[0]
    about = f"about {_JETPACKS[release[1]]}" if release[1] in _JETPACKS else "of unknown version"
    return f"{exact or about} (L4T R{release[1]}.{release[2]})"


def _readers(nvml: Any) -> dict[str, Any]:
    return {
        "clock_mhz": lambda device: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda device: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM),
        "power_limit_w": lambda device: nvml.nvmlDeviceGetPowerManagementLimit(device) / 1e3,
        "temperature_c": lambda device: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU),
    }


def _asked(nvml: Any, reader: Any, device: Any) -> float | None:
    try:
        return float(reader(device))
    except nvml.NVMLError:  # Jetsons and virtual GPUs do not answer every question
        return None


def _string(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _cpuinfo() -> dict[str, list[str]]:
    """Linux's list of processors: values by key, one for each core."""
    entries: dict[str, list[str]] = {}
    for line in (_text("/proc/cpuinfo") or "").splitlines():
        key, separator, value = line.partition(":")
        if separator:
            entries.setdefault(key.strip(), []).append(value.strip())
    return entries


def _processor(lines: dict[str, list[str]]) -> str:
    board = (_text("/proc/device-tree/model") or "").strip("\0")  # ARM boards say who they are here
    if board or "model name" in lines:
        return board or lines["model name"][0]
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return platform.processor() or platform.machine()


def _features(lines: dict[str, list[str]]) -> list[str]:
    present = set((lines.get("flags") or lines.get("Features") or [""])[0].split())
    return [feature for feature in _FEATURES if feature in present]


def _clock(lines: dict[str, list[str]]) -> float | None:
    clocks = [float(value) for value in lines.get("cpu MHz", [])]
    if clocks:
        return round(sum(clocks) / len(clocks), 1)
    return _number("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", 1e-3)


def _power_mode() -> str | None:
    """Asked of nvpmodel, which every Jetson has; jtop would ask the same program."""
    for line in _output("nvpmodel", "-q").splitlines():
        label, separator, value = line.partition("NV Power Mode:")
        if separator and not label.strip():
            return value.strip()
    return None


def _output(program: str, *arguments: str) -> str:
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=5)  # noqa: S603 - fixed names
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _memory() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)


def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _number(path: str, factor: float) -> float | None:
    text = _text(path)
    return float(text) * factor if text and text.isdecimal() else None
