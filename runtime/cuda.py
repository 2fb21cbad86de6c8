"""GPU memory, streams and graphs: all of CUDA that an engine needs, over ``cuda-python`` or, by GMIN_CUDA, ``pycuda``.

Addresses and streams are integers, as TensorRT takes them. Whatever is asked of a stream happens later, in order; only
``wait`` says that it has happened. Host buffers must be pinned, or a copy that is called asynchronous is not.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import UserError

Host = NDArray[np.uint8]
"""Page-locked memory of the host, flat."""


@dataclass(frozen=True)
class Gpu:
    """The GPU that computes."""

    name: str
    compute_capability: str
    """Such as "8.7"."""
    driver: str
    """Highest CUDA version that the driver speaks, such as "12.6"."""


class Cuda(Protocol):
    """What both bindings give. Every method raises ``UserError`` with CUDA's own reason."""

    binding: str
    """Library and version."""
    gpu: Gpu
    graphs: bool
    """Whether launches can be recorded and replayed."""

    def allocate(self, size_bytes: int) -> int:
        """Memory of the device; its address."""
        ...

    def free(self, address: int) -> None:
        """Give device memory back."""
        ...

    def pin(self, size_bytes: int) -> Host:
        """Page-locked memory of the host."""
        ...

    def unpin(self, host: Host) -> None:
        """Give it back; nobody may touch the array afterwards."""
        ...

    def open_stream(self) -> int:
        """A stream that does not wait for others."""
        ...

    def close_stream(self, stream: int) -> None:
        """Free a stream."""
        ...

    def copy_in(self, address: int, host: Host, size_bytes: int, stream: int) -> None:
        """Host to device, asynchronously."""
        ...

    def copy_out(self, host: Host, address: int, size_bytes: int, stream: int) -> None:
        """Device to host, asynchronously."""
        ...

    def wait(self, stream: int) -> None:
        """Until everything asked of the stream has happened."""
        ...

    def open_event(self) -> Any:
        """A point in a stream."""
        ...

    def record(self, event: Any, stream: int) -> None:
        """Set the event at this point of the stream."""
        ...

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two recorded events whose stream was waited for."""
        ...

    def close_event(self, event: Any) -> None:
        """Free an event."""
        ...

    def begin_capture(self, stream: int) -> None:
        """Record what is asked of the stream from now on instead of doing it."""
        ...

    def end_capture(self, stream: int) -> Any:
        """The recording, ready to be launched."""
        ...

    def launch(self, graph: Any, stream: int) -> None:
        """Do what was recorded."""
        ...

    def close_graph(self, graph: Any) -> None:
        """Free a recording."""
        ...

    def close(self) -> None:
        """Free the context where the binding made one."""
        ...


def open_cuda() -> Cuda:
    """The first GPU, through the binding that GMIN_CUDA names: ``cuda-python`` (the default) or ``pycuda``.

    Raises:
        UserError: no such binding, no driver, or no GPU.
    """
    wanted = os.environ.get("GMIN_CUDA") or "cuda-python"
    if wanted not in BINDINGS:
        raise UserError(f"GMIN_CUDA is '{wanted}'; it must be one of {', '.join(BINDINGS)}.")
    return BINDINGS[wanted]()


class CudaPython:
    """NVIDIA's own binding: functions return (error, values…) and never raise."""

    graphs = True

    def __init__(self) -> None:
        self._runtime = _cuda_runtime()
        self.binding = f"cuda-python {_version('cuda-bindings', 'cuda-python')}"
        runtime = self._runtime
        count = self._call("cudaGetDeviceCount", doing="look for a GPU")
        if not count:
            raise UserError("CUDA sees no NVIDIA GPU here: check nvidia-smi, or run the container with --gpus all.")
        self._call("cudaSetDevice", 0, doing="use the GPU")
        attribute = runtime.cudaDeviceAttr
        numbers = [
            self._call("cudaDeviceGetAttribute", kind, 0, doing="ask what the GPU is")
            for kind in (attribute.cudaDevAttrComputeCapabilityMajor, attribute.cudaDevAttrComputeCapabilityMinor)
        ]
        name = self._call("cudaGetDeviceProperties", 0, doing="ask what the GPU is").name
        driver = self._call("cudaDriverGetVersion", doing="ask for the driver's version")
        text = name.decode() if isinstance(name, bytes) else str(name)
        self.gpu = Gpu(text.rstrip("\0"), "{}.{}".format(*numbers), dotted(int(driver)))

    def allocate(self, size_bytes: int) -> int:
        """As in ``Cuda``."""
        return int(self._call("cudaMalloc", size_bytes, doing=f"reserve {size_bytes / 1e6:.0f} MB on the GPU"))

    def free(self, address: int) -> None:
        """As in ``Cuda``."""
        self._call("cudaFree", address, doing="free GPU memory")

    def pin(self, size_bytes: int) -> Host:
        """As in ``Cuda``."""
        address = int(self._call("cudaMallocHost", size_bytes, doing=f"pin {size_bytes / 1e6:.0f} MB of the host"))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def unpin(self, host: Host) -> None:
        """As in ``Cuda``."""
        self._call("cudaFreeHost", host.ctypes.data, doing="free pinned memory")

    def open_stream(self) -> int:
        """As in ``Cuda``."""
        flag = self._runtime.cudaStreamNonBlocking
        return int(self._call("cudaStreamCreateWithFlags", flag, doing="make a stream"))

    def close_stream(self, stream: int) -> None:
        """As in ``Cuda``."""
        self._call("cudaStreamDestroy", stream, doing="free a stream")

    def copy_in(self, address: int, host: Host, size_bytes: int, stream: int) -> None:
        """As in ``Cuda``."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(
            "cudaMemcpyAsync", address, host.ctypes.data, size_bytes, kind, stream, doing="copy a picture to the GPU"
        )

    def copy_out(self, host: Host, address: int, size_bytes: int, stream: int) -> None:
        """As in ``Cuda``."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(
            "cudaMemcpyAsync", host.ctypes.data, address, size_bytes, kind, stream, doing="copy a result from the GPU"
        )

    def wait(self, stream: int) -> None:
        """As in ``Cuda``."""
        self._call("cudaStreamSynchronize", stream, doing="compute")

    def open_event(self) -> Any:
        """As in ``Cuda``."""
        return self._call("cudaEventCreate", doing="make an event")

    def record(self, event: Any, stream: int) -> None:
        """As in ``Cuda``."""
        self._call("cudaEventRecord", event, stream, doing="record an event")

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """As in ``Cuda``."""
        return float(self._call("cudaEventElapsedTime", start, end, doing="read the time"))

    def close_event(self, event: Any) -> None:
        """As in ``Cuda``."""
        self._call("cudaEventDestroy", event, doing="free an event")

    def begin_capture(self, stream: int) -> None:
        """As in ``Cuda``."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode, doing="record a CUDA graph")

    def end_capture(self, stream: int) -> Any:
        """As in ``Cuda``."""
        graph = self._call("cudaStreamEndCapture", stream, doing="record a CUDA graph")
        try:
            return self._call("cudaGraphInstantiate", graph, 0, doing="prepare a CUDA graph")
        finally:
            self._call("cudaGraphDestroy", graph, doing="free a CUDA graph")

    def launch(self, graph: Any, stream: int) -> None:
        """As in ``Cuda``."""
        self._call("cudaGraphLaunch", graph, stream, doing="launch a CUDA graph")

    def close_graph(self, graph: Any) -> None:
        """As in ``Cuda``."""
        self._call("cudaGraphExecDestroy", graph, doing="free a CUDA graph")

    def close(self) -> None:
        """The runtime's context belongs to the process."""

    def _call(self, name: str, *arguments: Any, doing: str) -> Any:
        """Call a function of the runtime; its value without the error code."""
        error, *values = getattr(self._runtime, name)(*arguments)
        if int(error):
            raise _refusal(doing, self._reason(error), getattr(error, "name", str(error)))
        return values[0] if values else None

    def _reason(self, error: Any) -> str:
        _, text = self._runtime.cudaGetErrorString(error)
        return text.decode() if isinstance(text, bytes) else str(text)


class PyCuda:
    """The older binding, still what many Jetsons have. It has no CUDA graphs."""

    graphs = False

    def __init__(self) -> None:
        try:
            import pycuda.driver as driver
        except ImportError as error:
            raise UserError(f"GMIN_CUDA is pycuda, which does not import ({error}): pip install pycuda.") from error
        self._driver: Any = driver
        self.binding = f"pycuda {_version('pycuda')}"
        self._streams: dict[int, Any] = {}
        self._memory: dict[int, Any] = {}
        with self._reporting("look for a GPU"):
            driver.init()
            if not driver.Device.count():
                raise UserError("CUDA sees no NVIDIA GPU here: check nvidia-smi, or run the container with --gpus all.")
            device = driver.Device(0)
            self._context = device.retain_primary_context()  # the one that TensorRT uses too
            self._context.push()
            self.gpu = Gpu(
                device.name(), "{}.{}".format(*device.compute_capability()), dotted(driver.get_driver_version())
            )

    def allocate(self, size_bytes: int) -> int:
        """As in ``Cuda``."""
        with self._reporting(f"reserve {size_bytes / 1e6:.0f} MB on the GPU"):
            memory = self._driver.mem_alloc(size_bytes)
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        """As in ``Cuda``."""
        with self._reporting("free GPU memory"):
            self._memory.pop(address).free()

    def pin(self, size_bytes: int) -> Host:
        """As in ``Cuda``."""
        with self._reporting(f"pin {size_bytes / 1e6:.0f} MB of the host"):
            host: Host = self._driver.pagelocked_empty(size_bytes, np.uint8)
        return host

    def unpin(self, host: Host) -> None:
        """As in ``Cuda``."""
        with self._reporting("free pinned memory"):
            host.base.free()  # type: ignore[union-attr]  # its base is pycuda's allocation

    def open_stream(self) -> int:
        """As in ``Cuda``."""
        with self._reporting("make a stream"):
            stream = self._driver.Stream(self._driver.stream_flags.NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def close_stream(self, stream: int) -> None:
        """As in ``Cuda``."""
        del self._streams[stream]  # freed with its last reference

    def copy_in(self, address: int, host: Host, size_bytes: int, stream: int) -> None:
        """As in ``Cuda``."""
        with self._reporting("copy a picture to the GPU"):
            self._driver.memcpy_htod_async(address, host[:size_bytes], self._streams[stream])

    def copy_out(self, host: Host, address: int, size_bytes: int, stream: int) -> None:
        """As in ``Cuda``."""
        with self._reporting("copy a result from the GPU"):
            self._driver.memcpy_dtoh_async(host[:size_bytes], address, self._streams[stream])

    def wait(self, stream: int) -> None:
        """As in ``Cuda``."""
        with self._reporting("compute"):
            self._streams[stream].synchronize()

    def open_event(self) -> Any:
        """As in ``Cuda``."""
        with self._reporting("make an event"):
            return self._driver.Event()

    def record(self, event: Any, stream: int) -> None:
        """As in ``Cuda``."""
        with self._reporting("record an event"):
            event.record(self._streams[stream])

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """As in ``Cuda``."""
        with self._reporting("read the time"):
            return float(start.time_till(end))

    def close_event(self, event: Any) -> None:
        """Freed with its last reference."""

    def begin_capture(self, stream: int) -> None:  # noqa: ARG002 - it refuses
        """Not in this binding."""
        raise UserError("pycuda records no CUDA graphs: unset GMIN_CUDA to use cuda-python.")

    def end_capture(self, stream: int) -> Any:  # noqa: ARG002 - it refuses
        """Not in this binding."""
        raise UserError("pycuda records no CUDA graphs: unset GMIN_CUDA to use cuda-python.")

    def launch(self, graph: Any, stream: int) -> None:  # noqa: ARG002 - it refuses
        """Not in this binding."""
        raise UserError("pycuda records no CUDA graphs: unset GMIN_CUDA to use cuda-python.")

    def close_graph(self, graph: Any) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """As in ``Cuda``."""
        self._context.pop()
        self._context.detach()

    def _reporting(self, doing: str) -> _Reporting:
        return _Reporting(self._driver.Error, doing)


class _Reporting:
    """Turns the exceptions of pycuda into one sentence."""

    def __init__(self, kind: type[Exception], doing: str) -> None:
        self._kind, self._doing = kind, doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, self._kind):
            raise _refusal(self._doing, str(error), type(error).__name__) from error


BINDINGS: dict[str, type[CudaPython] | type[PyCuda]] = {"cuda-python": CudaPython, "pycuda": PyCuda}


def dotted(number: int) -> str:
    """CUDA's way of writing versions, 12060, as 12.6."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _cuda_runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError:
        try:
            from cuda import cudart  # where releases before 12.6.1 kept it
        except ImportError as error:
            raise UserError("cuda-python is not installed: pip install 'gmin-edge[tensorrt]'.") from error
        return cudart
    return runtime


def _version(*distributions: str) -> str:
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "of unknown version"


def _refusal(doing: str, reason: str, name: str) -> UserError:
    text = f"{name} {reason}"
    if "InsufficientDriver" in name or "NoDevice" in name or "no CUDA-capable device" in reason:
        return UserError(
            f"There is no usable NVIDIA driver or GPU here ({reason}): check nvidia-smi, or run the container with "
            "--gpus all."
        )
    if "MemoryAllocation" in name or "out of memory" in text or "MemoryError" in name:
        return UserError(f"The GPU is out of memory (could not {doing}): use smaller tiles, such as --tile 128.")
    return UserError(f"CUDA could not {doing}: {reason.rstrip('.')} ({name}).")
