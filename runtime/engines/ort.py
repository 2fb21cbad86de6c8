"""ONNX Runtime: the engine that runs everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.engines.contract import (
    Batch,
    EngineInfo,
    Feeds,
    check_model_file,
    info_from_metadata,
    recorded,
    scale_from_shapes,
    through_pixels,
)
from runtime.environment import sums_overflow
from runtime.errors import UserError
from runtime.files import cache_folder, private_folder

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nvtensorrtrtx": "NvTensorRTRTXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}
"""Provider by the name of a device. Which are present is up to the build of the library; "auto" takes CUDA or the
CPU."""
_NEXT = {"cuda": ("cpu",), "tensorrt": ("cuda", "cpu")}
"""Devices that take over, and are said to, where one of these fails to start; any other is refused then."""
_ON_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")


class OrtEngine:
    """An ``.onnx`` file in ONNX Runtime."""

    info: EngineInfo

    def __init__(self, path: Path, *, device: str = "auto", threads: int | None = None) -> None:
        """Open ``path``.

        Args:
            path: the file.
            device: one of ``PROVIDERS``, or "auto" for CUDA where it is present, else the CPU. CUDA and TensorRT are
                replaced by the next where they are present and do not start, and ``info`` says so. What a provider
                cannot run, the library gives to the CPU.
            threads: threads of one inference; None leaves the choice to the library.

        Raises:
            UserError: the file is no super-resolution network, or the device is not there.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("ONNX Runtime is not installed: pip install 'gmin-edge[ort]'.") from error
        check_model_file(path, ".onnx")
        present = onnxruntime.get_available_providers()
        wanted = device if device != "auto" else "cuda" if PROVIDERS["cuda"] in present else "cpu"
        if PROVIDERS.get(wanted) not in present:
            here = ", ".join(key for key, provider in PROVIDERS.items() if provider in present)
            raise UserError(f"ONNX Runtime here has no {wanted} provider; present: {here}.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if sums_overflow():  # elsewhere the same bytes come out of these kernels in up to 1.4 times the time
            options.add_session_config_entry("session.x64quantprecision", "1")
        if threads:
            options.intra_op_num_threads = threads
        providers = [
            (name, _tensorrt_options(path, onnxruntime.__version__) if name == "TensorrtExecutionProvider" else {})
            for name in dict.fromkeys(PROVIDERS[key] for key in (wanted, *_NEXT.get(wanted, ("cpu",))))
            if name in present
        ]
        # by itself the library would start again on another provider and say so on standard output
        alone = {} if wanted in _NEXT else {"enable_fallback": 0}
        self._open = partial(onnxruntime.InferenceSession, sess_options=options, providers=providers, **alone)
        try:
            session = self._open(str(path))
        except Exception as error:  # the library raises its own kinds, which share no base
            raise UserError(f"ONNX Runtime cannot load {path}: {_first_line(error)}.") from error
        if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
            raise UserError(f"{path} is no super-resolution network: it has not one input and one output.")
        used, missed = session.get_providers()[0], PROVIDERS[wanted]
        if used != missed and wanted not in _NEXT:
            raise UserError(
                f"ONNX Runtime cannot start its {wanted} provider here and would use {used}; name another --device."
            )
        self._session: Any = session
        self._input = session.get_inputs()[0]
        self._takes_pixels = self._input.type == "tensor(uint8)"
        self.path = path
        metadata = session.get_modelmeta().custom_metadata_map
        bound = used in _ON_GPU and not self._takes_pixels
        self._binding = _Binding(session, onnxruntime.OrtValue, "cuda") if bound else None
        info = info_from_metadata(
            path,
            metadata,
            backend=f"ONNX Runtime {onnxruntime.__version__}",
            device=used,
            scale=recorded(path, metadata, "gmin.scale", 1, range(1, 17))
            if "gmin.scale" in metadata
            else self._probe(),
            shape=self._input.shape,
            pixels="uint8" if self._takes_pixels else "float",
        )
        fallback = None if used == missed else f"{missed} did not start, {used} runs: see the messages of ONNX Runtime"
        self.info = replace(info, fallback=fallback)

    def infer(self, batch: Batch) -> Batch:
        """(N, 3, H, W) to (N, 3, scale·H, scale·W), unclamped."""
        if self._takes_pixels:
            return through_pixels(self.infer_pixels, batch)
        if self._binding is not None:
            return self._binding.run(batch)
        (result,) = self._session.run(None, {self._input.name: batch})
        return np.asarray(result, np.float32)

    def infer_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(N, H, W, 3) to (N, scale·H, scale·W, 3), for a file that holds the pre- and post-processing."""
        return np.asarray(self._session.run(None, {self._input.name: pixels})[0], np.uint8)

    def open_part(
        self,
        content: bytes,
        shape: tuple[int, ...],  # noqa: ARG002 -- this library plans for any shape
    ) -> Callable[[Feeds], NDArray[np.float32]]:
        """Load a part of this file from memory, on the same providers and threads."""
        session = self._open(content)
        first = session.get_inputs()[0].name

        def run(feeds: Feeds) -> NDArray[np.float32]:
            return np.asarray(session.run(None, {name or first: value for name, value in feeds.items()})[0], np.float32)

        return run

    def close(self) -> None:
        """Free the session."""
        self._session = self._binding = None

    def _probe(self) -> int:
        shape = self._input.shape
        if self._input.type != "tensor(float)" or len(shape) != 4 or shape[1] not in (3, "channels", None):
            raise UserError(
                f"{self.path} is no super-resolution network: its input is {self._input.type} {shape}, "
                "not float pictures of N x 3 x H x W."
            )
        size = tuple(n if isinstance(n, int) else d for n, d in zip(shape, (1, 3, 32, 32), strict=True))
        try:
            result = self.infer(np.zeros(size, np.float32))
        except Exception as error:
            raise UserError(f"{self.path} does not run on a picture: {_first_line(error)}.") from error
        return scale_from_shapes(self.path, size, result.shape)


class _Binding:
    """Input and output kept on the device: one copy in, one out, and no memory reserved for a size seen before."""

    def __init__(self, session: Any, values: Any, device: str) -> None:
        self._session, self._values, self._device = session, values, device
        self._binding = session.io_binding()
        self._input: Any = None
        self._shape: tuple[int, ...] = ()

    def run(self, batch: Batch) -> Batch:
        """As ``OrtEngine.infer``."""
        contiguous = np.ascontiguousarray(batch, np.float32)
        if batch.shape == self._shape:
            self._input.update_inplace(contiguous)
        else:
            self._input = self._values.ortvalue_from_numpy(contiguous, self._device, 0)
            self._shape = batch.shape
            self._binding.bind_ortvalue_input(self._session.get_inputs()[0].name, self._input)
            self._binding.clear_binding_outputs()  # that of the last size
            self._binding.bind_output(self._session.get_outputs()[0].name, self._device)
        self._session.run_with_iobinding(self._binding)
        (result,) = self._binding.copy_outputs_to_cpu()
        return np.array(result, np.float32)


def _tensorrt_options(path: Path, version: str) -> dict[str, str]:
    """Options of the TensorRT provider: engines are cached, in a private folder for they are native code.

    The flags of precision only matter to TensorRT 10, which types weakly there; 11 reads precision from the file.
    """
    content = path.read_bytes()
    key = hashlib.sha256(content + version.encode()).hexdigest()[:32]
    folder = str(private_folder(cache_folder() / "ort-tensorrt" / key))
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": folder,
        "trt_int8_enable": str(b"DequantizeLinear" in content),
        "trt_fp16_enable": str(b"gmin.precision" in content and b"fp16" in content),
    }


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
