"""How large a picture is, from the first bytes of its file: nothing is decoded, so that a lie costs nothing."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from runtime.errors import UserError
from runtime.tiff_tags import read_directory

DEFAULT_BUDGET = 8 << 30
"""Bytes that the decoded picture and its result may take together."""
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"hevc"}


@dataclass(frozen=True)
class Header:
    """What a file says of itself. ``samples`` a pixel, ``bits`` a sample; ``frames`` is 2 where there are several."""

    kind: str
    width: int
    height: int
    samples: int
    bits: int
    cmyk: bool = False
    frames: int = 1


def picture_kind(content: bytes) -> str | None:
    """The format that the first bytes tell, or None."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WebP"
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
        return "HEIF"
    signatures = (
        (b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"),
        (b"II*\x00", "TIFF"), (b"MM\x00*", "TIFF"), (b"BM", "BMP"),
    )  # fmt: skip
    return next((kind for signature, kind in signatures if content.startswith(signature)), None)


def read_header(content: bytes) -> Header | None:
    """Read the header of a PNG, JPEG, WebP, TIFF or BMP file; None where it is damaged or of another kind.

    HEIF is left to its own library, which reads the header first.
    """
    reader = {"PNG": _png, "JPEG": _jpeg, "WebP": _webp, "TIFF": _tiff, "BMP": _bmp}.get(picture_kind(content) or "")
    try:
        return reader(content) if reader else None
    except (struct.error, IndexError):  # the file ends before its header does
        return None


def check_budget(
    header: Header, name: str, *, scale: int, budget_bytes: int, fit: tuple[int, int] | None = None
) -> None:
    """Refuse a picture that would not fit, decoded and upscaled, into ``budget_bytes``.

    Args:
        header: of the picture.
        name: what to call it.
        scale: by which it is upscaled.
        budget_bytes: for it and its result, decoded.
        fit: (width, height) of the box that its result is resized to, in the direction that takes more: the header
            does not say whether the picture is turned.

    Raises:
        UserError: it would not, or a side is zero.
    """
    if header.width < 1 or header.height < 1:
        raise UserError(f"{name} is damaged: it claims {header.width}x{header.height} pixels.")
    samples = max(3, header.samples)
    pixels: float = header.width * header.height * (1 + scale**2)
    result = f"at x{scale}"
    if fit is not None:
        sides = (header.width, header.height), (header.height, header.width)
        pixels += max(min(fit[0] / width, fit[1] / height) ** 2 * width * height for width, height in sides)
        result = f"in {fit[0]}x{fit[1]}"
    needed = pixels * samples * (2 if header.bits > 8 else 1)
    if needed > budget_bytes:
        raise UserError(
            f"{name} claims {header.width}x{header.height} pixels: with its result {result} that takes "
            f"{needed / 1e9:.1f} GB decoded, more than the budget of {budget_bytes / 1e9:.1f} GB (--budget)."
        )


def _png(content: bytes) -> Header | None:
    if content[12:16] != b"IHDR":
        return None
    width, height, bits, colour = struct.unpack_from(">IIBB", content, 16)
    samples = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(colour)
    if samples is None:
        return None
    animated = b"acTL" in content[: content.find(b"IDAT") + 1]
    return Header("PNG", width, height, samples, 8 if colour == 3 else bits, frames=2 if animated else 1)


def _jpeg(content: bytes) -> Header | None:
    at = 2
    while at + 4 <= len(content):
        if content[at] != 0xFF:
            return None
        marker = content[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        (length,) = struct.unpack_from(">H", content, at + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, samples = struct.unpack_from(">BHHB", content, at + 4)
            return Header("JPEG", width, height, samples, bits, cmyk=samples == 4)
        if length < 2 or marker in (0xD9, 0xDA):
            return None
        at += 2 + length
    return None


def _webp(content: bytes) -> Header | None:
    chunk = content[12:16]
    if chunk == b"VP8X":
        width, height = (int.from_bytes(content[at : at + 3], "little") + 1 for at in (24, 27))
        flags = content[20]
        return Header("WebP", width, height, 4 if flags & 0x10 else 3, 8, frames=2 if flags & 0x02 else 1)
    if chunk == b"VP8L" and content[20] == 0x2F:
        (packed,) = struct.unpack_from("<I", content, 21)
        return Header("WebP", (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1, 4 if packed >> 28 & 1 else 3, 8)
    if chunk == b"VP8 " and content[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", content, 26)
        return Header("WebP", width & 0x3FFF, height & 0x3FFF, 3, 8)
    return None


def _tiff(content: bytes) -> Header | None:
    directory = read_directory(content)
    if directory is None:
        return None
    width, height = directory.number(256), directory.number(257)
    if width is None or height is None:
        return None
    photometric = directory.number(262)
    samples = directory.number(277) or 1
    return Header(
        "TIFF", width, height, 3 if photometric == 3 else samples, directory.number(258) or 1,
        cmyk=photometric == 5, frames=2 if directory.next else 1,
    )  # fmt: skip


def _bmp(content: bytes) -> Header | None:
    (size,) = struct.unpack_from("<I", content, 14)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", content, 18)
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", content, 18)
    return Header("BMP", abs(width), abs(height), 4 if bits == 32 else 3, 8)
