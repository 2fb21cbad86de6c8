"""A FAKE of ``cuda.bindings.runtime``: the functions that the project uses, returning (error, values…) as it does."""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any

import fake_gpu
from fake_gpu import gpu


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


cudaStreamNonBlocking = 1
_OK = cudaError_t.cudaSuccess


def _error(call: str) -> cudaError_t:
    return cudaError_t(gpu.called(call))


def cudaGetErrorString(error: cudaError_t) -> tuple[Any, bytes]:
    return _OK, f"fake reason {int(error)}".encode()


def cudaGetDeviceCount() -> tuple[Any, Any]:
    if not gpu.count:
        return cudaError_t.cudaErrorNoDevice, None
    return _error("cudaGetDeviceCount"), gpu.count


def cudaSetDevice(index: int) -> tuple[Any]:
    return (_error("cudaSetDevice"),)


def cudaDeviceGetAttribute(kind: cudaDeviceAttr, index: int) -> tuple[Any, int]:
    return _error("cudaDeviceGetAttribute"), gpu.capability[kind - 75]


def cudaGetDeviceProperties(index: int) -> tuple[Any, Any]:
    return _error("cudaGetDeviceProperties"), SimpleNamespace(name=gpu.name.encode())


def cudaDriverGetVersion() -> tuple[Any, int]:
    return _OK, 12060


def cudaRuntimeGetVersion() -> tuple[Any, int]:
    return _OK, 12060


def cudaMalloc(size: int) -> tuple[Any, Any]:
    error = _error("cudaMalloc")
    if error or gpu.captures:
        gpu.spoilt |= set(gpu.captures)
        return error or cudaError_t.cudaErrorStreamCaptureUnsupported, None
    address = gpu.allocate(size)
    return (cudaError_t.cudaErrorMemoryAllocation, None) if address is None else (_OK, address)


def cudaFree(address: int) -> tuple[Any]:
    if not (error := _error("cudaFree")):
        gpu.free(address)
    return (error,)


def cudaMallocHost(size: int) -> tuple[Any, Any]:
    error = _error("cudaMallocHost")
    return (error, None) if error else (_OK, fake_gpu.pin(size).ctypes.data)


def cudaFreeHost(pointer: int) -> tuple[Any]:
    gpu.check_unused(pointer)
    del gpu.pinned[pointer]
    return (_error("cudaFreeHost"),)


def cudaStreamCreateWithFlags(flags: int) -> tuple[Any, Any]:
    if error := _error("cudaStreamCreateWithFlags"):
        return error, None
    handle = gpu.handle()
    gpu.streams[handle] = []
    return _OK, handle


def cudaStreamDestroy(stream: int) -> tuple[Any]:
    if gpu.streams.pop(stream):
        raise fake_gpu.BrokenRule("a stream was destroyed with work in it")
    return (_OK,)


def cudaStreamSynchronize(stream: int) -> tuple[Any]:
    return (_error("cudaStreamSynchronize") or cudaError_t(gpu.synchronize(stream)),)


def cudaMemcpyAsync(target: int, source: int, size: int, kind: cudaMemcpyKind, stream: int) -> tuple[Any]:
    if error := _error("cudaMemcpyAsync"):
        return (error,)
    if kind == cudaMemcpyKind.cudaMemcpyHostToDevice:
        host = gpu.host(source, size)
        gpu.enqueue(stream, lambda: fake_gpu.move(gpu.device(target, size), host), target, source)
    else:
        host = gpu.host(target, size)
        gpu.enqueue(stream, lambda: fake_gpu.move(host, gpu.device(source, size)), target, source)
    return (_OK,)


def cudaEventCreate() -> tuple[Any, int]:
    handle = gpu.handle()
    gpu.events[handle] = False
    return _error("cudaEventCreate"), handle


def cudaEventRecord(event: int, stream: int) -> tuple[Any]:
    gpu.events[event] = False
    gpu.enqueue(stream, lambda: gpu.events.__setitem__(event, True))
    return (_error("cudaEventRecord"),)


def cudaEventElapsedTime(start: int, end: int) -> tuple[Any, float]:
    if not (gpu.events[start] and gpu.events[end]):
        raise fake_gpu.BrokenRule("the time of an event that has not happened")
    return _error("cudaEventElapsedTime"), 0.25


def cudaEventDestroy(event: int) -> tuple[Any]:
    del gpu.events[event]
    return (_OK,)


def cudaStreamBeginCapture(stream: int, mode: cudaStreamCaptureMode) -> tuple[Any]:
    if not (error := _error("cudaStreamBeginCapture")):
        gpu.captures[stream] = []
    return (error,)


def cudaStreamEndCapture(stream: int) -> tuple[Any, Any]:
    work = gpu.captures.pop(stream)
    if stream in gpu.spoilt:
        gpu.spoilt.discard(stream)
        return cudaError_t.cudaErrorStreamCaptureInvalidated, None
    handle = gpu.handle()
    gpu.graphs[handle] = work
    return _error("cudaStreamEndCapture"), handle


def cudaGraphInstantiate(graph: int, flags: int) -> tuple[Any, Any]:
    if error := _error("cudaGraphInstantiate"):
        return error, None
    handle = gpu.handle()
    gpu.graphs[handle] = list(gpu.graphs[graph])
    return _OK, handle


def cudaGraphLaunch(graph: int, stream: int) -> tuple[Any]:
    if not (error := _error("cudaGraphLaunch")):
        for work in gpu.graphs[graph]:
            gpu.enqueue(stream, work.do, *work.uses)
    return (error,)


def cudaGraphExecDestroy(graph: int) -> tuple[Any]:
    del gpu.graphs[graph]
    return (_OK,)


cudaGraphDestroy = cudaGraphExecDestroy
