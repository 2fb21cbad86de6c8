"""Picture files in and out: 8 and 16 bit, grey, colour and alpha, upright, with their metadata.

PNG, JPEG, WebP, TIFF, BMP, and HEIF where its library is there; told by their first bytes and by nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from runtime.errors import UserError
from runtime.files import replacing
from runtime.headers import DEFAULT_BUDGET, Header, check_budget, picture_kind, read_header
from runtime.picture_check import png_fault
from runtime.png_file import png_parts
from runtime.tiff_tags import (
    EXTRA_SAMPLES,
    ICC_PROFILE,
    ORIENTATION,
    PHOTOMETRIC,
    PLANAR,
    XMP,
    add_tags,
    exif_of,
    read_directory,
    set_upright,
    with_number,
)

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

WRITABLE = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WebP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
READABLE_ENDINGS = {*WRITABLE, ".heic", ".heif"}
"""Files of a folder that are taken for pictures. What they are is told by their content."""
QUALITIES = {"JPEG": 95, "WebP": 101}
"""Formats that have a quality, 1 to 100, and ours by default; WebP's 101 is its lossless mode."""
_DEEP = {"PNG", "TIFF"}  # hold 16 bits
_ALPHA = {"PNG", "TIFF", "WebP"}
_XMP_IN_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
"""What stands before an XMP packet in a JPEG, and in no other format; OpenCV neither takes it off nor puts it on."""
_JPEG_METADATA_BYTES = 65_527
_ASSOCIATED = 1
"""Of a TIFF's extra sample: alpha that the colours were multiplied by."""
_EXIF, _XMP, _ICC = 0, 1, 2  # OpenCV's kinds of metadata (cv2.IMAGE_METADATA_*)


@dataclass(frozen=True)
class Picture:
    """A picture as people see it, upright.

    ``colour`` is (H, W, 3) RGB and ``alpha`` (H, W) or None, both uint8 or both uint16. ``grey`` says that the file
    had one channel. ``metadata`` is what the file carried, by OpenCV's kind (EXIF, XMP, ICC profile). ``notes`` are
    sentences on what of the file is not here.
    """

    colour: Pixels
    alpha: Pixels | None = None
    grey: bool = False
    metadata: Sequence[tuple[int, bytes]] = field(default_factory=tuple)
    notes: tuple[str, ...] = ()


def read_picture(
    path: Path, *, scale: int = 1, fit: tuple[int, int] | None = None, budget_bytes: int = DEFAULT_BUDGET
) -> Picture:
    """Read a picture; arguments as of ``decode_picture``.

    Raises:
        UserError: missing, or as ``decode_picture``.
    """
    if not path.is_file():
        raise UserError(f"There is no picture at {path}.")
    try:
        size = path.stat().st_size
        if size > budget_bytes:
            raise UserError(f"{path} has {size} bytes, more than the budget of {budget_bytes} (--budget).")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    return decode_picture(content, str(path), scale=scale, fit=fit, budget_bytes=budget_bytes)


def decode_picture(
    content: bytes,
    name: str,
    *,
    scale: int = 1,
    fit: tuple[int, int] | None = None,
    budget_bytes: int = DEFAULT_BUDGET,
) -> Picture:
    """Decode the content of a picture file, after a look at its header.

    Args:
        content: the whole file.
        name: what to call it in messages.
        scale: by how much it will be upscaled, which the budget counts.
        fit: (width, height) that it will then be resized to fill, which the budget counts too.
        budget_bytes: the most that the picture and its result may take decoded.

    Raises:
        UserError: empty, not of the formats, over the budget, damaged, CMYK, or neither 8 nor 16 bit.
    """
    if not content:
        raise UserError(f"{name} is empty (0 bytes).")
    kind = picture_kind(content)
    if kind is None:
        raise UserError(f"{name} is not a PNG, JPEG, WebP, TIFF, BMP or HEIF picture.")
    if kind == "HEIF":
        return _decode_heif(content, name, scale, fit, budget_bytes)
    header = read_header(content)
    if header is None:
        raise UserError(f"{name} cannot be decoded: the header of the {kind} file is damaged.")
    if header.cmyk:
        raise UserError(f"{name} is a CMYK picture; convert it to RGB first, with its own colour profile.")
    if kind == "TIFF" and header.samples == 2:
        raise UserError(f"{name} is a grey TIFF with transparency, which is not read; save it as RGBA or PNG.")
    check_budget(header, name, scale=scale, fit=fit, budget_bytes=budget_bytes)
    fault = png_fault(content) if kind == "PNG" else None
    if fault:
        raise UserError(f"{name} cannot be decoded: {fault}.")
    return _decode_by_opencv(content, name, header)


def _decode_by_opencv(content: bytes, name: str, header: Header) -> Picture:
    import cv2

    directory = read_directory(content) if header.kind == "TIFF" else None
    extra = directory.number(EXTRA_SAMPLES) if directory is not None else None
    if directory is not None:
        content = set_upright(content)  # OpenCV would turn these, and these alone, by itself
        content = with_number(content, EXTRA_SAMPLES, 0)  # and multiply colours by alpha where that is said to be alpha
        if directory.number(PLANAR) == 2 and header.bits > 8 and header.samples > 1:
            raise UserError(
                f"{name} has {header.bits} bits in separate planes, which is not read; save it interleaved."
            )
    try:
        pixels, kinds, blobs = cv2.imdecodeWithMetadata(np.frombuffer(content, np.uint8), flags=cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise UserError(f"{name} cannot be decoded: the {header.kind} file is damaged or too large.") from error
    if pixels is None or pixels.size == 0:
        raise UserError(f"{name} cannot be decoded: the {header.kind} file is damaged or of an unusual kind.")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{name} has {pixels.dtype} samples; only 8- and 16-bit pictures are read.")
    if directory is not None and directory.number(PHOTOMETRIC) == 0 and header.bits > 8:
        pixels = cast(Pixels, np.iinfo(np.uint16).max - pixels)  # OpenCV turns white that is 0 round with 8 bits only
    if extra == _ASSOCIATED and pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = _divided_by_alpha(pixels)
    found = {int(k): np.asarray(blob).tobytes() for k, blob in zip(kinds, blobs, strict=True)}
    found[_EXIF] = found.get(_EXIF, b"").removeprefix(b"Exif\0\0")
    found[_XMP] = found.get(_XMP, b"").removeprefix(_XMP_IN_JPEG)
    if header.kind == "PNG":  # OpenCV gives a byte or two more, of whatever lay behind
        found[_XMP] = found[_XMP][: found[_XMP].rfind(b">") + 1]
    if directory is None:
        directory = read_directory(found[_EXIF])
    else:
        found = {k: directory.tags.get(tag, (0, b""))[1] for k, tag in ((_ICC, ICC_PROFILE), (_XMP, XMP))}
        found[_EXIF] = exif_of(directory)
    pixels = _orient(pixels, (directory.number(ORIENTATION) if directory else None) or 1)
    found[_EXIF] = set_upright(found[_EXIF])
    metadata = [(k, blob) for k, blob in sorted(found.items()) if blob]
    notes = _notes(header.frames)
    if pixels.ndim == 2:
        return Picture(np.dstack([pixels] * 3), None, grey=True, metadata=metadata, notes=notes)
    alpha = np.ascontiguousarray(pixels[..., 3]) if pixels.shape[2] == 4 else None
    return Picture(pixels[..., 2::-1], alpha, metadata=metadata, notes=notes)  # a view: RGB of OpenCV's BGR(A)


def _divided_by_alpha(pixels: Any) -> Any:
    """(H, W, 4) whose colours were multiplied by alpha, as they were before that."""
    alpha, peak = pixels[..., 3:].astype(np.float64), np.iinfo(pixels.dtype).max
    straight = np.rint(pixels[..., :3] * (peak / np.maximum(alpha, 1))).clip(0, peak)
    return np.dstack((straight.astype(pixels.dtype), pixels[..., 3]))


def _decode_heif(content: bytes, name: str, scale: int, fit: tuple[int, int] | None, budget_bytes: int) -> Picture:
    try:
        import pillow_heif
    except ImportError as error:
        raise UserError(f"{name} is a HEIF picture, which needs pillow-heif: pip install 'gmin-edge[heif]'.") from error
    try:
        file = pillow_heif.open_heif(content, convert_hdr_to_8bit=False)  # reads the header, decodes nothing yet
        deep, (width, height) = file.mode.endswith(";16"), file.size
        header = Header("HEIF", width, height, 4 if file.has_alpha else 3, 16 if deep else 8)
        check_budget(header, name, scale=scale, fit=fit, budget_bytes=budget_bytes)
        pixels = np.asarray(file)
    except (ValueError, RuntimeError, EOFError, OSError, SyntaxError) as error:
        raise UserError(f"{name} cannot be decoded: the HEIF file is damaged or of an unusual kind.") from error
    grey = pixels.ndim == 2
    colour = np.dstack([pixels] * 3) if grey else pixels[..., :3]
    found = ((_EXIF, "exif"), (_XMP, "xmp"), (_ICC, "icc_profile"))
    metadata = [(k, bytes(file.info[key])) for k, key in found if file.info.get(key)]
    metadata = [(k, set_upright(blob.removeprefix(b"Exif\0\0")) if k == _EXIF else blob) for k, blob in metadata]
    alpha = np.ascontiguousarray(pixels[..., 3]) if file.has_alpha and not grey else None
    notes = _notes(len(file))
    return Picture(cast(Pixels, np.ascontiguousarray(colour)), alpha, grey=grey, metadata=metadata, notes=notes)


def _notes(frames: int) -> tuple[str, ...]:
    return ("only the first frame or page of the file is taken",) if frames > 1 else ()


def write_picture(path: Path, picture: Picture, *, quality: int | None = None) -> None:
    """Write a picture in the format of the path's ending, whole or not at all. 16 bits become 8 where need be.

    Args:
        path: the file; its ending is one of ``WRITABLE``.
        picture: what to write, with its metadata (BMP holds none).
        quality: 1 to 100 for JPEG and WebP; None for 95, and for WebP without loss.

    Raises:
        UserError: unknown ending, transparency in a format that has none, or the file cannot be written.
    """
    kind = check_output_format(path, alpha=picture.alpha is not None)
    pixels: Any = picture.colour
    if picture.grey and picture.alpha is None:
        pixels = pixels[..., 0]
    if picture.alpha is not None:
        pixels = np.dstack((pixels, picture.alpha))
    if pixels.dtype == np.uint16 and kind not in _DEEP:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    metadata = dict(picture.metadata)
    if _ICC in metadata and (metadata[_ICC][16:20] == b"GRAY") != (pixels.ndim == 2):
        del metadata[_ICC]  # a profile for grey on colour pixels, or the reverse, makes a file that readers refuse
    with replacing(path) as temporary:
        try:
            if kind == "PNG":
                blobs = {
                    name: metadata.get(part, b"") for part, name in ((_EXIF, "exif"), (_ICC, "icc"), (_XMP, "xmp"))
                }
                with temporary.open("wb") as stream:
                    stream.writelines(png_parts(pixels, **blobs))
            else:
                _write_by_opencv(temporary, pixels, kind, metadata, quality, path)
        except OSError as error:
            raise UserError(f"Cannot write {path}: {(error.strerror or str(error)).lower()}.") from error


def _write_by_opencv(
    file: Path, pixels: Any, kind: str, metadata: dict[int, bytes], quality: int | None, shown: Path
) -> None:
    """Write grey, RGB or RGBA pixels; ``shown`` is the path that messages name.

    Raises:
        UserError: JPEG has no room for the metadata, or the encoder refuses.
    """
    import cv2

    flag = {"JPEG": cv2.IMWRITE_JPEG_QUALITY, "WebP": cv2.IMWRITE_WEBP_QUALITY}.get(kind)
    options = [] if flag is None else [flag, quality or QUALITIES[kind]]
    inside = dict(metadata) if kind in ("JPEG", "WebP") else {}
    if kind == "JPEG" and _XMP in inside:
        inside[_XMP] = _XMP_IN_JPEG + inside[_XMP]
    for part, name in ((_EXIF, "EXIF"), (_XMP, "XMP")):
        if kind == "JPEG" and len(inside.get(part, b"")) > _JPEG_METADATA_BYTES:
            raise UserError(
                f"{shown} cannot hold the {len(inside[part])} bytes of {name} of the source, a JPEG has room for 64 kB:"
                " write another format, or leave them out with --strip-metadata."
            )
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    pixels = np.ascontiguousarray(pixels)
    try:
        if inside:
            blobs = [np.frombuffer(blob, np.uint8) for blob in inside.values()]
            written, encoded = cv2.imencodeWithMetadata(file.suffix, pixels, list(inside), blobs, options)
        else:
            written, encoded = cv2.imencode(file.suffix, pixels, options)
    except cv2.error as error:
        raise UserError(f"Cannot write {shown}: {error.err or error}.") from error
    if not written:
        raise UserError(f"Cannot write {shown}: the {kind} encoder refused {pixels.shape[1]}x{pixels.shape[0]}.")
    file.write_bytes(encoded.tobytes())  # OpenCV itself dies at a name that is no UTF-8
    if kind == "TIFF" and metadata:
        add_tags(file, exif=metadata.get(_EXIF, b""), icc=metadata.get(_ICC, b""), xmp=metadata.get(_XMP, b""))


def without_metadata(picture: Picture) -> Picture:
    """The picture without EXIF and XMP. Its ICC profile stays: without it the colours would be others."""
    return replace(picture, metadata=tuple((k, blob) for k, blob in picture.metadata if k == _ICC))


def fill_hidden(picture: Picture) -> Picture:
    """Give fully transparent pixels the colour of the nearest visible one, so that none of theirs bleeds over edges."""
    import cv2

    if picture.alpha is None or picture.alpha.all() or not picture.alpha.any():
        return picture
    hidden = (picture.alpha == 0).astype(np.uint8)
    _, labels = cv2.distanceTransformWithLabels(hidden, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    rows, columns = np.nonzero(hidden == 0)
    nearest = np.zeros(labels.max() + 1, np.intp)
    nearest[labels[rows, columns]] = np.arange(rows.size)
    colour = np.array(picture.colour)
    holes = np.nonzero(hidden)
    seeds = nearest[labels[holes]]
    colour[holes] = colour[rows[seeds], columns[seeds]]
    return replace(picture, colour=cast(Pixels, colour))


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


def same_ending(path: Path) -> str:
    """The ending for a result in the format of its source: its own, or .png for what is read and not written (HEIF)."""
    return path.suffix if path.suffix.lower() in WRITABLE else ".png"


def _orient(pixels: Any, orientation: int) -> Any:
    """Turn a picture upright by its EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
