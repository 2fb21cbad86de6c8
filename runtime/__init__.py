"""The thin runtime: engines, pictures, tiles. Imports no other folder of the project and never torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.upscaler import Upscaler

__all__ = ["Upscaler"]


def __getattr__(name: str) -> Any:
    """``Upscaler`` when it is asked for: importing the package must stay free, for every script does it."""
    if name == "Upscaler":
        from runtime.upscaler import Upscaler

        return Upscaler
    raise AttributeError(f"module 'runtime' has no attribute '{name}'")
