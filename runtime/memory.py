"""How much memory there is, and how large tiles may be in it."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.errors import UserError

TILE_BYTES_PER_PIXEL = 10_000
"""What an engine needs for one LR pixel of a tile. Peak resident memory of GMIN x4, tiles of 128 to 384: OpenVINO FP32
9,200 to 10,600, ONNX Runtime FP32 7,000 to 10,300, INT8 2,000 to 7,600."""
SHARE = 0.5
"""Share of the free memory that is used: the measure is rough, and others need some too."""
_SIDES = (1024, 768, 512, 384, 256, 192, 128, 96, 64)


class TooMuchMemoryError(UserError):
    """An engine could not allocate what a tile needs; a smaller tile may do."""


def free_bytes() -> int:
    """Memory that this process may still take: the system's, and its container's where that is less."""
    available = _meminfo() or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            available = min(available, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return max(available, 0)


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library's error says that it could not allocate; each has words of its own."""
    words = ("bad_alloc", "bad allocation", "failed to allocate", "out of memory", "allocate memory", "alloc failed")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def tile_that_fits(
    budget: int, *, width: int, scale: int, margin: int, overlap: int, item_bytes: int
) -> tuple[int, int] | None:
    """(height, width) of what is kept of a tile, in LR pixels, that wastes least of the work within ``budget`` bytes.

    Args:
        budget: bytes for the engine's tile and for the strip of rows.
        width: of the picture in LR pixels.
        scale: of the network.
        margin: context that exact tiles add on each side; 0 for blended tiles.
        overlap: LR pixels that blended tiles share; 0 for exact ones.
        item_bytes: of one sample of the picture, 1 or 2.

    Returns:
        None where not even the smallest tile fits.
    """
    best: tuple[float, tuple[int, int]] | None = None
    for tall in _SIDES:
        samples = width * scale * scale * 3  # of one row of the input, enlarged
        strip = tall * samples * (item_bytes + (0 if margin else 4))  # blended strips are floats
        rows = 2 * (tall + 2 * margin) * width * 3 * item_bytes
        left = budget - strip - rows
        for wide in _SIDES:
            wide = min(wide, width)
            if overlap >= min(tall, wide):
                continue
            pixels = (tall + 2 * margin) * (wide + 2 * margin)
            if pixels * (TILE_BYTES_PER_PIXEL + 12 * scale * scale) <= left:
                kept = (tall - overlap) * (wide - overlap) / pixels
                if best is None or kept > best[0]:
                    best = kept, (tall, wide)
    return best[1] if best else None


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
