"""Quantizers side by side: each makes one INT8 file, in a process of its own, so that time and memory are its own.

Every setting stands here once, in words and in code. The functions import what they need when they are called:
ModelOpt runs in another environment, which has neither our other dependencies nor our patches, only an array of them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.memory import resident_mb
from runtime.errors import UserError


@dataclass(frozen=True)
class Job:
    """One quantization: the FP32 file, the file to make, and what calibrates."""

    recipe: str
    source: str
    target: str
    calib: str
    """DIV2K or a folder, as ``quantize/ptq.py`` takes it."""
    array: str
    """The calibration pictures as a .npy file, (N, 3, h, w) float32, for an environment that cannot read pictures."""
    patches: int
    scale: int
    max_drop: float
    options: tuple[str, ...] = ()
    """More options of ``quantize/ptq.py``."""


@dataclass(frozen=True)
class Recipe:
    """A quantizer at one setting."""

    label: str
    setting: str
    library: str
    """Distribution whose version is told."""
    run: Callable[[Job], None]
    suffix: str = ".onnx"
    python: str | None = None
    """Another environment's interpreter."""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """What came of a recipe. ``error`` says why there is no file; then the rest is None."""

    version: str | None = None
    seconds: float | None = None
    """Of the quantization: without starting Python and importing libraries, with reading the pictures."""
    peak_memory_mb: float | None = None
    """Highest resident memory of the process, all included, in 10^6 bytes; None where the system does not tell."""
    error: str | None = None


def _ours(job: Job) -> None:
    from quantize import ptq

    target = job.recipe.split()[0].removeprefix("ours-")
    ptq.app(
        [job.source, "-o", job.target, "--calib", job.calib, "--patches", str(job.patches), "--target", target, "-q",
         *job.options],
        standalone_mode=False,
    )  # fmt: skip


def _onnxruntime(job: Job, **settings: Any) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    batches = iter(_patches(job).batches())
    name = _input_name(job.source)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {name: batch}

    quantize_static(job.source, job.target, Reader(), **settings)


def _onnxruntime_defaults(job: Job) -> None:
    _onnxruntime(job)


def _onnxruntime_advised(job: Job, method: str = "MinMax") -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = f"{folder}/prepared.onnx"
        quant_pre_process(job.source, prepared)
        _onnxruntime(
            replace(job, source=prepared),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
        )


def _onnxruntime_percentile(job: Job) -> None:
    _onnxruntime_advised(job, "Percentile")


def _nncf(job: Job, **settings: Any) -> None:
    import nncf
    import openvino

    patches = _patches(job)
    model: Any = openvino.Core().read_model(job.source)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(list(patches.batches())),
        subset_size=len(patches.calibration),
        target_device=nncf.TargetDevice.CPU,
        **settings,
    )
    openvino.save_model(quantized, job.target, compress_to_fp16=False)


def _nncf_defaults(job: Job) -> None:
    _nncf(job)


def _nncf_accurate(job: Job) -> None:
    import nncf

    _nncf(job, preset=nncf.QuantizationPreset.MIXED, fast_bias_correction=False)


def _nncf_accuracy_control(job: Job) -> None:
    import nncf
    import openvino

    from data.metrics import psnr_y
    from data.sets import from_batch, to_batch

    patches = _patches(job)

    def validate(compiled: Any, pairs: Any) -> tuple[float, list[float]]:
        scores = [
            psnr_y(from_batch(compiled(to_batch(pair.lr))[0].clip(0, 1)), pair.hr, crop=job.scale) for pair in pairs
        ]
        return sum(scores) / len(scores), scores

    model: Any = openvino.Core().read_model(job.source)
    quantized = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(list(patches.batches())),
        nncf.Dataset(list(patches.judges()), lambda pair: to_batch(pair.lr)),
        validate,
        max_drop=job.max_drop,
        drop_type=nncf.DropType.ABSOLUTE,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(patches.calibration),
        target_device=nncf.TargetDevice.CPU,
    )
    openvino.save_model(quantized, job.target, compress_to_fp16=False)


def _modelopt(job: Job, method: str = "entropy") -> None:
    import shutil

    import numpy
    from modelopt.onnx.quantization import quantize

    pictures = numpy.load(job.array, allow_pickle=False)
    name = _input_name(job.source)
    shape = "x".join(map(str, (1, *pictures.shape[1:])))
    with tempfile.TemporaryDirectory() as folder:  # it leaves intermediate files where it was interrupted
        quantize(
            job.source,
            quantize_mode="int8",
            calibration_data={name: pictures},
            calibration_method=method,
            calibration_shapes=f"{name}:{shape}",
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=f"{folder}/made.onnx",
        )
        shutil.move(f"{folder}/made.onnx", job.target)


def _modelopt_max(job: Job) -> None:
    _modelopt(job, "max")


RECIPES: dict[str, Recipe] = {
    "ort": Recipe(
        "ONNX Runtime quantize_static",
        "defaults: Q/DQ, int8 activations and weights, per tensor, min-max, every operator",
        "onnxruntime",
        _onnxruntime_defaults,
    ),
    "ort-u8s8": Recipe(
        "ONNX Runtime quantize_static",
        "prepared by quant_pre_process; Q/DQ, uint8 activations, int8 weights per channel, min-max, every operator",
        "onnxruntime",
        _onnxruntime_advised,
    ),
    "ort-percentile": Recipe(
        "ONNX Runtime quantize_static",
        "as before, ranges by percentile (99.999, its default)",
        "onnxruntime",
        _onnxruntime_percentile,
    ),
    "nncf": Recipe(
        "NNCF quantize",
        "defaults for CPU: performance preset, fast bias correction; all calibration pictures",
        "nncf",
        _nncf_defaults,
        ".xml",
    ),
    "nncf-accurate": Recipe(
        "NNCF quantize",
        "its advice for accuracy: mixed preset, full bias correction",
        "nncf",
        _nncf_accurate,
        ".xml",
    ),
    "nncf-control": Recipe(
        "NNCF quantize_with_accuracy_control",
        "mixed preset, fast bias correction; luma PSNR on the held-out pictures, the same largest drop as asked for",
        "nncf",
        _nncf_accuracy_control,
        ".xml",
    ),
    "modelopt": Recipe(
        "ModelOpt ONNX PTQ",
        "defaults on a CPU: int8, entropy; the rest in fp32",
        "nvidia-modelopt",
        _modelopt,
    ),
    "modelopt-max": Recipe("ModelOpt ONNX PTQ", "int8, max; the rest in fp32", "nvidia-modelopt", _modelopt_max),
    "ours-cpu": Recipe("quantize/ptq.py", "--target cpu", "gmin-edge", _ours),
    "ours-openvino": Recipe("quantize/ptq.py", "--target openvino", "gmin-edge", _ours),
    "ours-tensorrt": Recipe("quantize/ptq.py", "--target tensorrt", "gmin-edge", _ours),
}
"""Every quantizer at every setting, by the name that ``--only`` takes."""


def make(recipe: Recipe, job: Job, *, limit_s: float, limit_mb: float) -> Made:
    """Run a recipe in a process of its own; whatever happens to it is told, not raised.

    Args:
        recipe: what runs.
        job: on what.
        limit_s: after so many seconds it is stopped.
        limit_mb: from so much resident memory on it is stopped, before the machine is.
    """
    command = [recipe.python or sys.executable, str(Path(__file__).resolve()), json.dumps(asdict(job))]
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(command, stdout=told, stderr=complaints)  # noqa: S603 - this file, by a Python
        started = time.monotonic()
        reason = None
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if time.monotonic() - started > limit_s:
                    reason = f"stopped after {limit_s / 60:g} minutes"
                elif (resident_mb("VmRSS", process.pid) or 0) > limit_mb:
                    reason = f"stopped when it held more than {limit_mb / 1e3:g} GB"
                if reason:
                    process.kill()
                    break
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        if reason:
            return Made(error=reason)
        told.seek(0)
        complaints.seek(0)
        lines, faults = told.read().strip().splitlines(), complaints.read().strip().splitlines()
    if process.returncode:
        last = faults[-1] if faults else f"exit code {process.returncode}"
        return Made(error=f"failed: {last[:300]}")
    return Made(**json.loads(lines[-1]))


def _patches(job: Job) -> Any:
    from quantize.patches import load_patches

    return load_patches(job.calib, job.scale, job.patches)


def _input_name(path: str) -> str:
    import onnx

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


def _import(library: str) -> str:
    """Import a library before the clock starts, and tell its version."""
    module = {"nvidia-modelopt": "modelopt.onnx.quantization", "gmin-edge": "quantize.ptq"}.get(library, library)
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{library} is not installed ({error})") from error
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:  # ours, run from the repository
        return "this repository"


def _run(job: Job) -> Made:
    recipe = RECIPES[job.recipe]
    version = _import(recipe.library)
    started = time.perf_counter()
    recipe.run(job)
    return Made(version, time.perf_counter() - started, resident_mb("VmHWM"))


if __name__ == "__main__":
    try:
        answer = _run(Job(**json.loads(sys.argv[1])))
    except UserError as problem:
        answer = Made(error=str(problem))
    sys.stdout.write("\n" + json.dumps(asdict(answer)) + "\n")
