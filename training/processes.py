"""This process among those that train together: one alone, or several that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc


@dataclass(frozen=True)
class Process:
    """One of ``world`` processes, each with its device."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        return self._sum(value) / self.world

    def any(self, value: bool) -> bool:
        """Whether ``value`` is true in any process."""
        return self._sum(float(value)) > 0

    def wait(self) -> None:
        """Until all processes are here."""
        self._sum(0.0)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over all processes."""
        if self.world == 1:
            return model
        import warnings

        from torch.nn.parallel import DistributedDataParallel

        # a gain of (1, C, 1, 1) lies in memory in the same way whichever layout its strides name
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")

        return DistributedDataParallel(model, device_ids=[self.device] if self.device.startswith("cuda") else None)

    def _sum(self, value: float) -> float:
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return float(total)


def keep_freed_memory() -> None:
    """Have the C library keep the memory of freed tensors for the next step, which asks for the same again.

    Given back to the system, each page is cleared and mapped anew every time: a seventh of a step of GMIN. Where the
    library is not glibc, nothing changes.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the highest it takes: larger blocks are mapped on their own
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 1 << 30)


@contextmanager
def joined() -> Iterator[Process]:
    """Join the processes that torchrun started, or be alone; a GPU each where there are any."""
    cuda = torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Process(device="cuda" if cuda else "cpu")
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Process(
            torch.distributed.get_rank(), torch.distributed.get_world_size(), f"cuda:{local}" if cuda else "cpu"
        )
    finally:
        torch.distributed.destroy_process_group()
