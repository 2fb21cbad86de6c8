"""The runtime as a library: one object that upscales arrays, from as many threads as there are."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, cast

from runtime.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.engines.contract import EngineInfo
    from runtime.images import Pixels
    from runtime.upscale import TilingMode


class Upscaler:
    """A loaded network that upscales pictures held as arrays.

    >>> from runtime import Upscaler
    >>> with Upscaler("gmin_x4") as upscaler:
    ...     large = upscaler.upscale(small)

    Threads may share one object: calls take turns, since one inference uses all the threads that it was given. For
    inferences side by side, make one object a thread, each with ``threads=1``.
    """

    info: EngineInfo
    """What was opened: back end, device, scale, precision."""
    chosen: str
    """One sentence: why this back end."""

    def __init__(
        self,
        engine: str = "gmin_x4",
        *,
        device: str = "auto",
        threads: int | None = None,
        trust_engine: bool = False,
    ) -> None:
        """Open an engine.

        Args:
            engine: a model file, or the name of a shipped one; the fastest back end here is measured once and
                remembered. ``ort:FILE`` or ``openvino:FILE`` names the back end.
            device: "auto", "cpu", "cuda" or another that ONNX Runtime has here.
            threads: threads of one inference; None leaves the choice to the library.
            trust_engine: vouch for a TensorRT plan that was not built here: it is native code.

        Raises:
            UserError: there is no such model, it is refused, or no engine is installed.
        """
        from runtime.selection import open_fastest

        self._lock = threading.Lock()
        self._closed = False
        self._engine, self.chosen = open_fastest(engine, device=device, threads=threads, trust_engine=trust_engine)
        self.info = self._engine.info

    @property
    def scale(self) -> int:
        """How many times wider and higher a result is."""
        return self.info.scale

    def upscale(
        self,
        picture: Pixels,
        *,
        tile: int | None = None,
        overlap: int = 32,
        tiling: TilingMode = "fast",
    ) -> Pixels:
        """Upscale a picture.

        Args:
            picture: uint8 or uint16; (H, W, 3) RGB, (H, W, 4) with alpha, or (H, W) grey. It is not changed.
            tile: side of a tile in pixels of the input; 0 for one piece; None to choose by size and free memory.
            overlap: pixels of the input that neighbouring tiles share in fast mode.
            tiling: "fast", or "exact" for the pixels of one piece at several times the cost.

        Returns:
            An array of the same kind, ``scale`` times as high and wide, that belongs to the caller.

        Raises:
            UserError: the array is not one of these, the network overflowed on it, or the object is closed.
        """
        import numpy as np

        from runtime.images import Picture
        from runtime.upscale import upscale

        array: NDArray[np.generic] = np.asarray(picture)
        channels = array.shape[2] if array.ndim == 3 else 1 if array.ndim == 2 else 0
        if array.dtype not in (np.uint8, np.uint16) or channels not in (1, 3, 4) or (array.ndim == 3 and channels == 1):
            raise UserError(
                f"A picture is an (H, W, 3), (H, W, 4) or (H, W) array of uint8 or uint16, not {array.shape} "
                f"of {array.dtype}."
            )
        if not array.size:
            raise UserError(f"A picture of {array.shape[1]}x{array.shape[0]} pixels has nothing to upscale.")
        pixels = cast("Pixels", array)
        colour = cast("Pixels", np.dstack([pixels] * 3)) if channels == 1 else pixels[..., :3]
        source = Picture(colour, pixels[..., 3] if channels == 4 else None, grey=channels == 1)
        with self._lock:
            if self._closed:
                raise UserError("This Upscaler is closed.")
            result = upscale(self._engine, source, tile=tile, overlap=overlap, tiling=tiling).picture
        if channels == 1:
            return cast("Pixels", np.ascontiguousarray(result.colour[..., 0]))
        if result.alpha is not None:
            return cast("Pixels", np.dstack((result.colour, result.alpha)))
        return cast("Pixels", np.ascontiguousarray(result.colour))

    def close(self) -> None:
        """Free the network; a call that is under way ends first. Closing twice does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._engine.close()

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
