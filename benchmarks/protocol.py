"""What the comparison is made of: which networks, at which sizes, and how a size is written."""

from __future__ import annotations

import re
from dataclasses import dataclass

from runtime.errors import UserError

COMPARED = ("gmin_x4", "lkdn_x4", "bsrn_x4", "hnct_x4", "rlfn_x4", "efdn_x4", "smfanet_x4", "smfanet_plus_x4")
"""The networks of the comparison, by registered name."""


@dataclass(frozen=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


PAPER_OUTPUT = Size(1280, 720)
"""The output for which papers count multiply-accumulates."""
RANDOM = "random weights"
"""What a network is called that is timed without its weights, on which time does not depend."""
LATENCY_INPUT = Size(320, 180)
"""The input that gives that output at x4."""


def size_from_text(text: str) -> Size:
    """Read ``1280x720``, width first.

    Raises:
        UserError: it is not two positive whole numbers.
    """
    match = re.fullmatch(r"([1-9]\d{0,4})[xX×]([1-9]\d{0,4})", text.strip())
    if match is None:
        raise UserError(f"'{text}' is no size; write width x height in pixels, such as 320x180.")
    return Size(int(match[1]), int(match[2]))
