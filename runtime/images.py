"""Picture files in and out: 8 and 16 bit, grey, colour and alpha, upright, with their metadata.

PNG, JPEG, WebP, TIFF and BMP, told by their first bytes and by nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import UserError
from runtime.files import replacing
from runtime.picture_check import png_fault

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

WRITABLE = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WebP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"),
    (b"II*\x00", "TIFF"), (b"MM\x00*", "TIFF"), (b"BM", "BMP"),
)  # fmt: skip
_DEEP = {"PNG", "TIFF"}  # hold 16 bits
_ALPHA = {"PNG", "TIFF", "WebP"}
_ORIENTATION, _PHOTOMETRIC, _SEPARATED = 0x0112, 0x0106, 5


@dataclass(frozen=True)
class Picture:
    """A picture as people see it, upright.

    ``colour`` is (H, W, 3) RGB and ``alpha`` (H, W) or None, both uint8 or both uint16. ``grey`` says that the file
    had one channel. ``metadata`` is what the file carried, by OpenCV's kind (EXIF, XMP, ICC profile).
    """

    colour: Pixels
    alpha: Pixels | None = None
    grey: bool = False
    metadata: Sequence[tuple[int, bytes]] = field(default_factory=tuple)


def read_picture(path: Path) -> Picture:
    """Read a picture.

    Raises:
        UserError: missing, empty, not of the five formats, damaged, CMYK TIFF, or neither 8 nor 16 bit.
    """
    import cv2

    if not path.is_file():
        raise UserError(f"There is no picture at {path}.")
    content = path.read_bytes()
    if not content:
        raise UserError(f"{path} is empty (0 bytes).")
    kind = _format(content)
    if kind is None:
        raise UserError(f"{path} is not a PNG, JPEG, WebP, TIFF or BMP picture.")
    fault = png_fault(content) if kind == "PNG" else None
    if fault:
        raise UserError(f"{path} cannot be decoded: {fault}.")
    try:
        pixels, kinds, blobs = cv2.imdecodeWithMetadata(np.frombuffer(content, np.uint8), flags=cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise UserError(f"{path} cannot be decoded: the {kind} file is damaged or too large.") from error
    if pixels is None or pixels.size == 0:
        raise UserError(f"{path} cannot be decoded: the {kind} file is damaged or of an unusual kind.")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path} has {pixels.dtype} samples; only 8- and 16-bit pictures are read.")
    if kind == "TIFF" and _tiff_tag(content, _PHOTOMETRIC) == _SEPARATED:
        raise UserError(f"{path} is a CMYK picture; convert it to RGB first.")
    metadata = [(int(k), bytes(np.asarray(blob).tobytes())) for k, blob in zip(kinds, blobs, strict=True)]
    exif = content if kind == "TIFF" else next((b for k, b in metadata if k == cv2.IMAGE_METADATA_EXIF), b"")
    pixels = _orient(pixels, _tiff_tag(exif, _ORIENTATION) or 1)
    metadata = [(k, _upright(blob) if k == cv2.IMAGE_METADATA_EXIF else blob) for k, blob in metadata]
    if pixels.ndim == 2:
        return Picture(np.dstack([pixels] * 3), None, grey=True, metadata=metadata)
    alpha = np.ascontiguousarray(pixels[..., 3]) if pixels.shape[2] == 4 else None
    return Picture(pixels[..., 2::-1], alpha, metadata=metadata)  # a view: RGB of OpenCV's BGR(A)


def write_picture(path: Path, picture: Picture) -> None:
    """Write a picture in the format of the path's ending, whole or not at all. 16 bits become 8 where need be.

    Raises:
        UserError: unknown ending, transparency in a format that has none, or the file cannot be written.
    """
    import cv2

    kind = check_output_format(path, alpha=picture.alpha is not None)
    pixels: Any = picture.colour[..., ::-1]
    if picture.grey and picture.alpha is None:
        pixels = np.ascontiguousarray(pixels[..., 0])
    if picture.alpha is not None:
        pixels = np.dstack((pixels, picture.alpha))
    if pixels.dtype == np.uint16 and kind not in _DEEP:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    options = {"JPEG": [cv2.IMWRITE_JPEG_QUALITY, 95], "WebP": [cv2.IMWRITE_WEBP_QUALITY, 101]}.get(kind, [])
    metadata = picture.metadata if kind in ("PNG", "JPEG", "WebP") else ()
    pixels = np.ascontiguousarray(pixels)
    kinds, blobs = [k for k, _ in metadata], [np.frombuffer(blob, np.uint8) for _, blob in metadata]
    with replacing(path) as temporary:
        try:
            written = (
                cv2.imwriteWithMetadata(str(temporary), pixels, kinds, blobs, options)
                if kinds
                else cv2.imwrite(str(temporary), pixels, options)
            )
        except cv2.error as error:
            raise UserError(f"Cannot write {path}: {error.err or error}.") from error
        if not written:
            raise UserError(f"Cannot write {path}: the {kind} encoder refused {pixels.shape[1]}x{pixels.shape[0]}.")


def check_output_format(path: Path, *, alpha: bool = False) -> str:
    """The format that a path's ending means.

    Raises:
        UserError: unknown ending, or ``alpha`` in a format without transparency.
    """
    kind = WRITABLE.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path} must end in {', '.join(WRITABLE)}.")
    if alpha and kind not in _ALPHA:
        raise UserError(f"{path} would lose the transparency of the picture; write a .png, .webp or .tiff.")
    return kind


def _format(content: bytes) -> str | None:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WebP"
    return next((kind for signature, kind in _SIGNATURES if content.startswith(signature)), None)


def _orient(pixels: Any, orientation: int) -> Any:
    """Turn a picture upright by its EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _tiff_tag(content: bytes, tag: int) -> int | None:
    """A SHORT tag of the first directory of a TIFF structure, which EXIF is too; None where it is not there."""
    found = _tiff_tag_offset(content, tag)
    return struct.unpack_from(found[0] + "H", content, found[1])[0] if found else None


def _tiff_tag_offset(content: bytes, tag: int) -> tuple[str, int] | None:
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None or len(content) < 8:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", content, 4)
        (entries,) = struct.unpack_from(order + "H", content, start)
        for i in range(entries):
            offset = start + 2 + 12 * i
            if struct.unpack_from(order + "H", content, offset)[0] == tag:
                struct.unpack_from(order + "H", content, offset + 8)
                return order, offset + 8
    except struct.error:  # points outside: no such tag
        return None
    return None


def _upright(exif: bytes) -> bytes:
    """EXIF with its orientation set to 1, since the pixels have been turned."""
    found = _tiff_tag_offset(exif, _ORIENTATION)
    if found is None:
        return exif
    changed = bytearray(exif)
    struct.pack_into(found[0] + "H", changed, found[1], 1)
    return bytes(changed)
