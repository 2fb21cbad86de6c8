"""ONNX Runtime: the engine that runs everywhere."""

from __future__ import annotations

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
from runtime.errors import UserError

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
"""Provider by the name of a device. Which are present is up to the build of the library; "auto" takes CUDA or the CPU,
the only two that we have measured."""


class OrtEngine:
    """An ``.onnx`` file in ONNX Runtime."""

    info: EngineInfo

    def __init__(self, path: Path, *, device: str = "auto", threads: int | None = None) -> None:
        """Open ``path``.

        Args:
            path: the file.
            device: one of ``PROVIDERS``, or "auto" for CUDA where it is present, else the CPU. What a provider cannot
                run, the library gives to the CPU.
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
        wanted = device if device != "auto" else "cuda" if PROVIDERS["cuda"] in present else "cpu"
        if PROVIDERS.get(wanted) not in present:
            here = ", ".join(key for key, provider in PROVIDERS.items() if provider in present)
            raise UserError(f"ONNX Runtime here has no {wanted} provider; present: {here}.")
        providers = [PROVIDERS[wanted]] if wanted == "cpu" else [PROVIDERS[wanted], PROVIDERS["cpu"]]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads:
            options.intra_op_num_threads = threads
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
            self._open = partial(
                onnxruntime.InferenceSession, sess_options=options, providers=providers, enable_fallback=0
            )
        except Exception as error:  # the library raises its own kinds, which share no base
            raise UserError(f"ONNX Runtime cannot load {path}: {_first_line(error)}.") from error
        if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
            raise UserError(f"{path} is no super-resolution network: it has not one input and one output.")
        used = session.get_providers()[0]
        if device != "auto" and used != PROVIDERS[wanted]:
            raise UserError(
                f"ONNX Runtime cannot start its {wanted} provider here and would use {used}; name --device."
            )
        self._session: Any = session
        self._input = session.get_inputs()[0]
        self._takes_pixels = self._input.type == "tensor(uint8)"
        self.path = path
        metadata = session.get_modelmeta().custom_metadata_map
        self.info = info_from_metadata(
            path,
            metadata,
            backend=f"ONNX Runtime {onnxruntime.__version__}",
            device=used,
            scale=recorded(path, metadata, "gmin.scale", 1, range(1, 17))
            if "gmin.scale" in metadata
            else self._probe(),
        )

        if self._takes_pixels:
            self.info = replace(self.info, pixels="uint8")

    def infer(self, batch: Batch) -> Batch:
        """(N, 3, H, W) to (N, 3, scale·H, scale·W), unclamped."""
        if self._takes_pixels:
            return through_pixels(self.infer_pixels, batch)
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
        """Load a part of this file from memory, on the same provider and threads."""
        session = self._open(content)
        first = session.get_inputs()[0].name

        def run(feeds: Feeds) -> NDArray[np.float32]:
            return np.asarray(session.run(None, {name or first: value for name, value in feeds.items()})[0], np.float32)

        return run

    def close(self) -> None:
        """Free the session."""
        self._session = None

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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
