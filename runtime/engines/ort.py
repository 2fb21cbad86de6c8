"""ONNX Runtime: the engine that runs everywhere."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.engines.contract import Batch, EngineInfo, check_model_file, info_from_metadata, scale_from_shapes
from runtime.errors import UserError
from runtime.files import cache_folder, private_folder

_PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""By device, best first; ONNX Runtime itself goes on to the next where one fails to start."""
_ON_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")


class OrtEngine:
    """An ``.onnx`` file in ONNX Runtime."""

    info: EngineInfo

    def __init__(self, path: Path, *, device: str = "auto", threads: int | None = None) -> None:
        """Open ``path``.

        Args:
            path: the file.
            device: "cpu", "cuda", "tensorrt" for ONNX Runtime's TensorRT provider, or "auto" for CUDA where it is
                present, else the CPU. A provider that is present and does not start is replaced by the next; ``info``
                says so.
            threads: threads of one inference; None leaves the choice to the library.

        Raises:
            UserError: the file is no super-resolution network, or the device is not there.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("ONNX Runtime is not installed: pip install 'gmin-edge[ort]'.") from error
        check_model_file(path)
        present = onnxruntime.get_available_providers()
        wanted = device if device != "auto" else "cuda" if _PROVIDERS["cuda"][0] in present else "cpu"
        if _PROVIDERS[wanted][0] not in present:
            raise UserError(f"ONNX Runtime here has no {wanted} provider; present: {', '.join(present)}.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads:
            options.intra_op_num_threads = threads
        providers = [
            (name, _tensorrt_options(path, onnxruntime.__version__) if name == "TensorrtExecutionProvider" else {})
            for name in _PROVIDERS[wanted]
            if name in present
        ]
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # the library raises its own kinds, which share no base
            raise UserError(f"ONNX Runtime cannot load {path}: {_first_line(error)}.") from error
        if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
            raise UserError(f"{path} is no super-resolution network: it has not one input and one output.")
        self._session: Any = session
        self._input = session.get_inputs()[0]
        self._path = path
        metadata = session.get_modelmeta().custom_metadata_map
        used = session.get_providers()[0]
        self._binding = _Binding(session, onnxruntime.OrtValue, "cuda") if used in _ON_GPU else None
        missed = _PROVIDERS[wanted][0]
        fallback = None if used == missed else f"{missed} did not start, {used} runs: see the messages of ONNX Runtime"
        info = info_from_metadata(
            path,
            metadata,
            backend=f"ONNX Runtime {onnxruntime.__version__}",
            device=used,
            scale=int(metadata["gmin.scale"]) if "gmin.scale" in metadata else self._probe(),
        )
        self.info = replace(info, fallback=fallback)

    def infer(self, batch: Batch) -> Batch:
        """(N, 3, H, W) to (N, 3, scale·H, scale·W), unclamped."""
        if self._binding is not None:
            return self._binding.run(batch)
        (result,) = self._session.run(None, {self._input.name: batch})
        return np.asarray(result, np.float32)

    def close(self) -> None:
        """Free the session."""
        self._session = self._binding = None

    def _probe(self) -> int:
        shape = self._input.shape
        if self._input.type != "tensor(float)" or len(shape) != 4 or shape[1] not in (3, "channels", None):
            raise UserError(
                f"{self._path} is no super-resolution network: its input is {self._input.type} {shape}, "
                "not float pictures of N x 3 x H x W."
            )
        size = tuple(n if isinstance(n, int) else d for n, d in zip(shape, (1, 3, 32, 32), strict=True))
        try:
            result = self.infer(np.zeros(size, np.float32))
        except Exception as error:
            raise UserError(f"{self._path} does not run on a picture: {_first_line(error)}.") from error
        return scale_from_shapes(self._path, size, result.shape)


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
    return str(error).strip().splitlines()[0].rstrip(".")
