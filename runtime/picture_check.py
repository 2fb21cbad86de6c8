"""Pictures checked before a decoder sees them, for what decoders were found to take on trust."""

from __future__ import annotations

import struct


def png_fault(content: bytes) -> str | None:
    """Why a PNG cannot be whole, or None: its chunks must lie in the file.

    OpenCV 5.0.0 allocates whatever length a chunk states before it reads it: 212 bytes cost it 4.2 GB and 3 seconds
    (found by ``tests/fuzz``). Trailing bytes after IEND are left alone, as decoders leave them.
    """
    position = 8
    while position < len(content):
        if len(content) - position < 8:
            return "it ends in the middle of a chunk"
        (length,) = struct.unpack_from(">I", content, position)
        if length > len(content) - position - 12:
            return "a chunk is longer than the file"
        if content[position + 4 : position + 8] == b"IEND":
            return None
        position += 12 + length
    return "it ends before its last chunk"
