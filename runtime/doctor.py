"""What is installed, which engines can run here, and why the others cannot.

python runtime/doctor.py
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, write_json
from runtime.errors import UserError


@dataclass(frozen=True)
class Finding:
    """One way to run a network."""

    engine: str
    runs: bool
    detail: str
    """What it is where it runs; else why not, and what to do."""


@dataclass(frozen=True)
class Diagnosis:
    """All that a report of a fault should have with it."""

    engines: list[Finding]
    gpu: dict[str, Any] | None
    """Name, compute capability and the CUDA version of the driver; None where CUDA finds none."""
    gpu_problem: str | None
    cuda_binding: str | None
    flavours: dict[str, str]
    """By flavour of TensorRT: its version, or why it does not load."""
    jetpack: str | None
    environment: dict[str, Any]
    cache: str
    schema: int = 1


def diagnose() -> Diagnosis:
    """Look at this machine. Each library is really imported, for many a one is installed and does not load."""
    from runtime.environment import available_cores, environment, jetpack
    from runtime.files import cache_folder

    gpu, binding, problem = _gpu()
    flavours, loaded = _flavours()
    return Diagnosis(
        engines=[*_onnxruntime(problem), _openvino(), *_tensorrt(flavours, loaded, problem, gpu)],
        gpu=gpu,
        gpu_problem=problem,
        cuda_binding=binding,
        flavours=flavours,
        jetpack=jetpack(),
        environment=asdict(environment(available_cores())),
        cache=str(cache_folder()),
    )


def _gpu() -> tuple[dict[str, Any] | None, str | None, str | None]:
    from runtime.cuda import open_cuda

    try:
        cuda = open_cuda()
    except UserError as refusal:
        return None, None, str(refusal)
    try:
        return asdict(cuda.gpu), cuda.binding, None
    finally:
        cuda.close()


def _flavours() -> tuple[dict[str, str], set[str]]:
    from runtime.flavour import MODULES, load_flavour

    said: dict[str, str] = {}
    loaded: set[str] = set()
    for name in MODULES:
        try:
            said[name] = load_flavour(name).version
            loaded.add(name)
        except UserError as refusal:
            said[name] = str(refusal)
    return said, loaded


def _onnxruntime(gpu_problem: str | None) -> list[Finding]:
    try:
        import onnxruntime
    except ImportError as error:
        return [Finding("ort", False, f"ONNX Runtime does not import ({error}): pip install 'gmin-edge[ort]'.")]
    present = onnxruntime.get_available_providers()
    findings = [Finding("ort", True, f"ONNX Runtime {onnxruntime.__version__} on the CPU")]
    for device, provider in (("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")):
        name = f"ort --device {device}"
        if provider not in present:
            detail = f"this ONNX Runtime has no {provider}: pip install onnxruntime-gpu instead of onnxruntime."
            findings.append(Finding(name, False, detail))
        else:
            findings.append(Finding(name, gpu_problem is None, gpu_problem or f"{provider} is present"))
    return findings


def _openvino() -> Finding:
    try:
        import openvino
    except ImportError as error:
        return Finding("openvino", False, f"OpenVINO does not import ({error}): pip install 'gmin-edge[openvino]'.")
    return Finding("openvino", True, f"OpenVINO {openvino.__version__.split('-')[0]} on the CPU")


def _tensorrt(
    flavours: dict[str, str], loaded: set[str], gpu_problem: str | None, gpu: dict[str, Any] | None
) -> list[Finding]:
    findings = []
    for name, said in flavours.items():
        engine = f"tensorrt ({name})"
        if name not in loaded:
            findings.append(Finding(engine, False, said))
        elif gpu is None:
            only = " It builds plans for other machines all the same." if name == "rtx" else ""
            findings.append(Finding(engine, False, f"version {said} loads, but: {gpu_problem}{only}"))
        else:
            findings.append(Finding(engine, True, f"version {said} on {gpu['name']}, sm{gpu['compute_capability']}"))
    return findings


app = new_app("Say what is installed and what can run here.")


@app.command()
def main(json_target: JsonOption = None, quiet: QuietOption = False) -> None:
    """Say what is installed, which engines can run here, and why the others cannot; exit code 2 where none can."""
    diagnosis = diagnose()
    write_json(asdict(diagnosis), json_target)
    say(_report(diagnosis), quiet=quiet, json_target=json_target)
    if not any(finding.runs for finding in diagnosis.engines):
        raise UserError("No engine can run here: pip install 'gmin-edge[cpu]'.")


def _report(diagnosis: Diagnosis) -> str:
    here = diagnosis.environment
    gpu = diagnosis.gpu
    lines = {
        "processor": ", ".join([here["processor"], f"{here['cores']} cores", *here["features"]]),
        "memory": f"{here['memory_gb']} GB",
        "system": f"{here['system']}, Python {here['python']}",
        "JetPack": diagnosis.jetpack,
        "power mode": here["power_mode"],
        "GPU": f"{gpu['name']}, compute capability {gpu['compute_capability']}, CUDA {gpu['driver']}" if gpu else None,
        "GPU problem": diagnosis.gpu_problem,
        "CUDA binding": diagnosis.cuda_binding,
        "libraries": ", ".join(f"{name} {version}" for name, version in here["libraries"].items()),
        "cache": diagnosis.cache,
    }
    known = "\n".join(f"{name + ':':13} {value}" for name, value in lines.items() if value)
    rows = [
        f"{'yes' if finding.runs else 'no ':3}  {finding.engine:22} {finding.detail}" for finding in diagnosis.engines
    ]
    return "\n".join([known, "", "runs engine", *rows])


if __name__ == "__main__":
    run(app)
