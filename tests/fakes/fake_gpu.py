"""A FAKE GPU: memory with bounds, streams that do nothing until they are waited for, captures, errors on demand.

Broken rules that the real CUDA would punish with corrupt memory or a crash raise ``BrokenRule``; errors that CUDA would
report are reported. ``FAKE_GPU_*`` in the environment sets what it is, so that child processes see the same.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

SUCCESS, OUT_OF_MEMORY, CAPTURE_UNSUPPORTED, ILLEGAL_ADDRESS, NO_DEVICE = 0, 2, 900, 700, 100


class BrokenRule(AssertionError):
    """Our code did what no correct program may do."""


class Work(NamedTuple):
    """Something asked of a stream, and the memory that it will touch."""

    do: Callable[[], None]
    uses: frozenset[int] = frozenset()


class Gpu:
    """State of the device."""

    def __init__(self) -> None:
        self.name = os.environ.get("FAKE_GPU_NAME", "Fake Orin")
        self.capability = tuple(map(int, os.environ.get("FAKE_GPU_CAPABILITY", "8.7").split(".")))
        self.count = int(os.environ.get("FAKE_GPU_COUNT", "1"))
        self.bytes_free = 1 << 30
        self.memory: dict[int, np.ndarray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.streams: dict[int, list[Work]] = {}
        self.captures: dict[int, list[Work]] = {}
        self.spoilt: set[int] = set()
        self.events: dict[int, bool] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.calls: list[str] = []
        self.failing: dict[str, tuple[int, int]] = {}
        self.most_in_flight = 0
        self._next = 0x7000_0000_0000

    def handle(self) -> int:
        self._next += 1 << 20
        return self._next

    def fail(self, call: str, error: int, *, after: int = 0) -> None:
        """Report ``error`` at a call of this name, after ``after`` good ones."""
        self.failing[call] = (error, after)

    def called(self, call: str) -> int:
        """Note a call; the error that it shall report."""
        self.calls.append(call)
        error, after = self.failing.get(call, (0, 0))
        if not error:
            return SUCCESS
        if after:
            self.failing[call] = (error, after - 1)
            return SUCCESS
        return error

    def allocate(self, size: int) -> int | None:
        if size > self.bytes_free:
            return None
        self.bytes_free -= size
        address = self.handle()
        self.memory[address] = np.full(size, 0xAA, np.uint8)
        return address

    def free(self, address: int) -> None:
        self.check_unused(address)
        if address not in self.memory:
            raise BrokenRule("freed what is not allocated, or twice")
        self.bytes_free += self.memory.pop(address).size

    def check_unused(self, address: int) -> None:
        if any(address in work.uses for queue in self.streams.values() for work in queue):
            raise BrokenRule("memory was freed that a stream was still to use")

    def device(self, address: int, size: int) -> np.ndarray | None:
        """The bytes at an address, or None where that is no (large enough) allocation."""
        memory = self.memory.get(int(address))
        return memory[:size] if memory is not None and size <= memory.size else None

    def host(self, pointer: int, size: int) -> np.ndarray:
        for base, array in self.pinned.items():
            if base <= pointer and pointer + size <= base + array.size:
                return array[pointer - base : pointer - base + size]
        raise BrokenRule("an asynchronous copy from or to host memory that is not pinned, or beyond its end")

    def enqueue(self, stream: int, do: Callable[[], None], *uses: int) -> None:
        work = Work(do, frozenset(uses))
        if stream in self.captures:
            self.captures[stream].append(work)
            return
        if stream not in self.streams:
            raise BrokenRule("work for a stream that does not exist")
        self.streams[stream].append(work)
        self.most_in_flight = max(self.most_in_flight, sum(bool(queue) for queue in self.streams.values()))

    def synchronize(self, stream: int) -> int:
        if stream not in self.streams:
            raise BrokenRule("waited for a stream that does not exist")
        if self.captures:
            self.spoilt |= set(self.captures)
            return CAPTURE_UNSUPPORTED
        queue, self.streams[stream] = self.streams[stream], []
        try:
            for work in queue:
                work.do()
        except MemoryError:
            return ILLEGAL_ADDRESS
        return SUCCESS

    def leaks(self) -> dict[str, int]:
        """What was never freed."""
        kinds = {"memory": self.memory, "pinned": self.pinned, "streams": self.streams}
        kinds |= {"events": self.events, "graphs": self.graphs}
        return {kind: len(held) for kind, held in kinds.items() if held}


gpu = Gpu()


def reset() -> Gpu:
    """A fresh device."""
    gpu.__init__()  # type: ignore[misc]
    return gpu


def pin(size: int) -> np.ndarray:
    array = np.full(size, 0xAA, np.uint8)
    gpu.pinned[array.ctypes.data] = array
    return array


def move(target: np.ndarray | None, source: np.ndarray | None) -> None:
    if target is None or source is None:
        raise MemoryError
    ctypes.memmove(target.ctypes.data, source.ctypes.data, source.size)
