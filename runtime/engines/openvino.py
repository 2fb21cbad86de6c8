"""OpenVINO: on x86 the faster CPU engine, from the same files."""

from __future__ import annotations

from collections.abc import Callable
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
from runtime.engines.openvino_check import check_eight_bits
from runtime.environment import withheld_avx512
from runtime.errors import UserError
from runtime.ir_check import check_ir

COMPILED_OPERATIONS = 300
"""How many compiled operations the network for any size keeps. GMIN needs about 16 for each size of picture, 1 MB
together; with the library's own 5000, a process grew from 208 to 642 MB over 500 pictures of varying size.
"""


class OpenVinoEngine:
    """An ``.onnx`` or ``.xml`` file in OpenVINO."""

    info: EngineInfo

    def __init__(
        self, path: Path, *, device: str = "auto", threads: int | None = None, precision: str | None = None
    ) -> None:
        """Open ``path``.

        Args:
            path: the file.
            device: "cpu" or "auto", which is the CPU too.
            threads: threads of one inference; None leaves the choice to the library.
            precision: arithmetic of what is not quantized, "f32" or "bf16". The library's own default depends on the
                processor, and so would the result: ours is "f32" everywhere.

        Raises:
            UserError: the file is no super-resolution network, the device is not one that OpenVINO drives here, the
                file is quantized in a way that OpenVINO computes wrongly on this processor, or its bf16 would crash.
        """
        try:
            import openvino
        except ImportError as error:
            raise UserError("OpenVINO is not installed: pip install 'gmin-edge[openvino]'.") from error
        if device not in ("auto", "cpu"):
            raise UserError(f"OpenVINO runs on the CPU here, not on {device}.")
        check_model_file(path, ".onnx", ".xml")
        checked = check_ir(path) if path.suffix.lower() == ".xml" else None
        precision = precision or "f32"
        if precision == "bf16" and (setting := withheld_avx512()) is not None:
            raise UserError(
                f"OpenVINO's bf16 ends the process where {setting} withholds AVX-512: unset it, or use openvino:."
            )
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "CPU_RUNTIME_CACHE_CAPACITY": COMPILED_OPERATIONS,
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        core: Any = openvino.Core()
        try:
            # an IR from memory, as it was checked: a path would be read again
            model = core.read_model(checked.xml, checked.weights) if checked else core.read_model(path)
            check_eight_bits(path, model)
            compiled = core.compile_model(model, "CPU", settings)
            request = compiled.create_infer_request()
        except UserError:
            raise
        except Exception as error:  # the library raises RuntimeError and its own kinds
            reason = next((line for line in reversed(str(error).strip().splitlines()) if line.strip()), "unknown")
            raise UserError(f"OpenVINO cannot load {path}: {reason.strip().rstrip('.')}.") from error
        if len(compiled.inputs) != 1 or len(compiled.outputs) != 1:
            raise UserError(f"{path} is no super-resolution network: it has not one input and one output.")
        self._core, self._settings = core, settings
        self._model: Any = model
        self._any_size = request
        self._one_size: Any = None
        self._one_shape: tuple[int, ...] = ()
        self._last_shape: tuple[int, ...] = ()
        self._expected: tuple[int, ...] | None = None
        self._told = False
        self.path = path
        self._takes_pixels = compiled.input(0).element_type.get_type_name() == "u8"
        metadata, shape = _metadata(model), compiled.input(0).partial_shape
        self.info = info_from_metadata(
            path,
            metadata,
            backend=f"OpenVINO {openvino.__version__.split('-')[0]}",
            device=f"CPU ({precision})",
            scale=recorded(path, metadata, "gmin.scale", 1, range(1, 17))
            if "gmin.scale" in metadata
            else self._probe(compiled),
            shape=[] if shape.rank.is_dynamic else [None if n.is_dynamic else n.get_length() for n in shape],
            pixels="uint8" if self._takes_pixels else "float",
        )

    def infer(self, batch: Batch) -> Batch:
        """(N, 3, H, W) to (N, 3, scale·H, scale·W), unclamped."""
        if self._takes_pixels:
            return through_pixels(self.infer_pixels, batch)
        request = self._request(batch.shape)
        return np.array(request.infer({0: batch}, share_outputs=True)[0], np.float32)  # the request owns its output

    def infer_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(N, H, W, 3) to (N, scale·H, scale·W, 3), for a file that holds the pre- and post-processing."""
        request = self._request(pixels.shape)
        return np.array(request.infer({0: pixels}, share_outputs=True)[0], np.uint8)

    def open_part(self, content: bytes, shape: tuple[int, ...]) -> Callable[[Feeds], NDArray[np.float32]]:
        """Load a part of this file from memory, compiled for pictures of ``shape``."""
        model = self._core.read_model(content)
        first = model.inputs[0].any_name
        model.reshape({first: list(shape)})
        request = self._core.compile_model(model, "CPU", self._settings).create_infer_request()

        def run(feeds: Feeds) -> NDArray[np.float32]:
            return np.array(
                request.infer({name or first: value for name, value in feeds.items()}, share_outputs=True)[0],
                np.float32,
            )

        return run

    def expect(self, shape: tuple[int, ...] | None) -> None:
        """Compile for this shape, when it first comes, and for no other: results then do not depend on what ran before.

        The two compiled networks differ in the last bits: by 0.016 of 1 in bf16, by 0.005 in INT8.
        """
        self._expected, self._told = shape, True
        if shape != self._one_shape:
            self._one_size, self._one_shape = None, ()

    def close(self) -> None:
        """Free the compiled networks."""
        self._any_size = self._one_size = self._model = None

    def _request(self, shape: tuple[int, ...]) -> Any:
        """A request compiled for this very shape once it comes twice in a row (tiles, frames), else for any shape.

        The INT8 file took 180 ms compiled for any shape and 149 ms for its own (320×180, two threads); compiling takes
        0.7 s, which one picture does not earn back.
        """
        often = shape == self._expected if self._told else shape == self._last_shape
        if often and shape != self._one_shape and self._model.is_dynamic():
            fixed = self._model.clone()
            fixed.reshape(list(shape))
            compiled = self._core.compile_model(fixed, "CPU", self._settings)
            self._one_size, self._one_shape = compiled.create_infer_request(), shape
        self._last_shape = shape
        return self._one_size if shape == self._one_shape else self._any_size

    def _probe(self, compiled: Any) -> int:
        shape, kind = compiled.input(0).partial_shape, compiled.input(0).element_type.get_type_name()
        if shape.rank.is_dynamic or shape.rank.get_length() != 4 or kind != "f32":
            raise UserError(
                f"{self.path} is no super-resolution network: its input is {kind} {shape}, "
                "not float pictures of N x 3 x H x W."
            )
        size = tuple(d if n.is_dynamic else n.get_length() for n, d in zip(shape, (1, 3, 32, 32), strict=True))
        try:
            result = self.infer(np.zeros(size, np.float32))
        except Exception as error:
            raise UserError(f"{self.path} does not run on a picture: {str(error).strip().splitlines()[0]}") from error
        return scale_from_shapes(self.path, size, result.shape)


def _metadata(model: Any) -> dict[str, str]:
    """What the ONNX front end kept of the file's metadata."""
    try:
        framework = model.get_rt_info(["framework"]).value
    except RuntimeError:  # a file without any
        return {}
    return {key: str(getattr(value, "value", value)) for key, value in framework.items() if key.startswith("gmin.")}
