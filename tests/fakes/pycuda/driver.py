"""A FAKE of ``pycuda.driver``: objects and exceptions where the other binding has integers and codes."""

from __future__ import annotations

from typing import Any

import fake_gpu
import numpy as np
from cuda.bindings import runtime
from fake_gpu import gpu


class Error(Exception):
    pass


class MemoryError(Error):
    pass


class stream_flags:
    NON_BLOCKING = 1


def _checked(result: tuple[Any, ...]) -> Any:
    error, *values = result
    if error:
        raise (MemoryError if error == 2 else Error)(f"{error.name}: fake reason")
    return values[0] if values else None


def init() -> None:
    if not gpu.count:
        raise Error("cuInit failed: no CUDA-capable device is detected")


def get_driver_version() -> int:
    return 12060


class Context:
    depth = 0

    def push(self) -> None:
        Context.depth += 1

    @staticmethod
    def pop() -> None:
        Context.depth -= 1

    def detach(self) -> None:
        if Context.depth:
            raise fake_gpu.BrokenRule("a context was given back while it was current")


class Device:
    def __init__(self, index: int) -> None:
        pass

    @staticmethod
    def count() -> int:
        return gpu.count

    def name(self) -> str:
        return gpu.name

    def compute_capability(self) -> tuple[int, ...]:
        return gpu.capability

    def retain_primary_context(self) -> Context:
        return Context()


class Allocation:
    def __init__(self, size: int) -> None:
        self.address = _checked(runtime.cudaMalloc(size))

    def __int__(self) -> int:
        return int(self.address)

    def free(self) -> None:
        _checked(runtime.cudaFree(self.address))


mem_alloc = Allocation


class PagelockedHostAllocation:
    def __init__(self, size: int) -> None:
        self.array = fake_gpu.pin(size)
        self.__array_interface__ = self.array.__array_interface__

    def free(self) -> None:
        _checked(runtime.cudaFreeHost(self.array.ctypes.data))


def pagelocked_empty(shape: int, dtype: Any) -> np.ndarray:
    if gpu.called("cudaMallocHost"):
        raise MemoryError("fake reason")
    return np.asarray(PagelockedHostAllocation(shape))


class Stream:
    def __init__(self, flags: int = 0) -> None:
        self.handle = _checked(runtime.cudaStreamCreateWithFlags(flags))

    def synchronize(self) -> None:
        _checked(runtime.cudaStreamSynchronize(self.handle))

    def __del__(self) -> None:
        runtime.cudaStreamDestroy(self.handle)


def memcpy_htod_async(target: int, source: np.ndarray, stream: Stream) -> None:
    kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
    _checked(runtime.cudaMemcpyAsync(int(target), source.ctypes.data, source.nbytes, kind, stream.handle))


def memcpy_dtoh_async(target: np.ndarray, source: int, stream: Stream) -> None:
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
    _checked(runtime.cudaMemcpyAsync(target.ctypes.data, int(source), target.nbytes, kind, stream.handle))


class Event:
    def __init__(self) -> None:
        self.handle = _checked(runtime.cudaEventCreate())

    def record(self, stream: Stream) -> None:
        _checked(runtime.cudaEventRecord(self.handle, stream.handle))

    def time_till(self, other: Event) -> float:
        return _checked(runtime.cudaEventElapsedTime(self.handle, other.handle))

    def __del__(self) -> None:
        runtime.cudaEventDestroy(self.handle)
