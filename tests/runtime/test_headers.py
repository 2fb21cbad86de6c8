"""Sizes from the first bytes, against Pillow; and refusals that cost nothing, whatever a header claims."""

import io
import struct
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from runtime.errors import UserError
from runtime.headers import picture_kind, read_header
from runtime.images import decode_picture
from runtime.tiff_tags import exif_of, read_directory, set_upright

PIXELS = np.random.default_rng(0).integers(0, 256, (14, 22, 4), dtype=np.uint8)


def encoded(kind: str, mode: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode", "samples", "options"),
    [
        ("PNG", "RGB", 3, {}), ("PNG", "RGBA", 4, {}), ("PNG", "L", 1, {}), ("PNG", "LA", 2, {}), ("PNG", "P", 3, {}),
        ("JPEG", "RGB", 3, {}), ("JPEG", "L", 1, {}), ("JPEG", "CMYK", 4, {}),
        ("JPEG", "RGB", 3, {"progressive": True}),
        ("JPEG", "RGB", 3, {"icc_profile": bytes(100_000)}),
        ("WEBP", "RGB", 3, {}), ("WEBP", "RGB", 3, {"lossless": True}), ("WEBP", "RGBA", 4, {"lossless": True}),
        ("WEBP", "RGB", 3, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}), ("WEBP", "RGBA", 4, {}),
        ("TIFF", "RGB", 3, {}), ("TIFF", "L", 1, {}), ("TIFF", "RGBA", 4, {"compression": "tiff_lzw"}),
        ("TIFF", "1", 1, {}), ("TIFF", "P", 3, {}), ("BMP", "RGB", 3, {}), ("BMP", "RGBA", 4, {}),
    ],
)  # fmt: skip
def test_a_header_is_what_pillow_says(kind: str, mode: str, samples: int, options: dict[str, object]) -> None:
    header = read_header(encoded(kind, mode, **options))
    assert header is not None
    assert (header.width, header.height, header.samples) == (22, 14, samples)
    assert header.kind.upper() == kind
    assert header.cmyk == (mode == "CMYK")


def liars() -> dict[str, bytes]:
    """Small files that claim to be enormous."""
    png = bytearray(encoded("PNG", "RGB"))
    struct.pack_into(">II", png, 16, 2**31 - 1, 2**31 - 1)
    jpeg = bytearray(encoded("JPEG", "RGB"))
    at = jpeg.index(b"\xff\xc0")
    struct.pack_into(">HH", jpeg, at + 5, 65_535, 65_535)
    webp = bytearray(encoded("WEBP", "RGB", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"))
    webp[24:30] = b"\xff" * 6
    bmp = bytearray(encoded("BMP", "RGB"))
    struct.pack_into("<ii", bmp, 18, 2**31 - 1, -(2**31 - 1))
    tiff = bytearray(encoded("TIFF", "RGB"))
    (start,) = struct.unpack_from("<I", tiff, 4)
    for i in range(2):
        struct.pack_into("<HHII", tiff, start + 2 + 12 * i, 256 + i, 4, 1, 2**32 - 1)
    return {"png": bytes(png), "jpeg": bytes(jpeg), "webp": bytes(webp), "bmp": bytes(bmp), "tiff": bytes(tiff)}


@pytest.mark.parametrize("kind", sorted(liars()))
def test_an_enormous_claim_is_refused_before_anything_is_decoded(kind: str) -> None:
    started = time.perf_counter()
    with pytest.raises(UserError, match="more than the budget of"):
        decode_picture(liars()[kind], "liar", scale=4)
    assert time.perf_counter() - started < 1


def test_the_budget_counts_the_result(tmp_path: Path) -> None:
    content = encoded("PNG", "RGB")
    needed = 22 * 14 * 3 * (1 + 16)
    assert decode_picture(content, "a", scale=4, budget_bytes=needed).colour.shape == (14, 22, 3)
    with pytest.raises(UserError, match="22x14 pixels"):
        decode_picture(content, "a", scale=4, budget_bytes=needed - 1)


def test_the_budget_counts_what_the_result_is_resized_to() -> None:
    """As large as the box lets it, whichever way the picture is turned."""
    content = encoded("PNG", "RGB")
    whole = 22 * 14 * (1 + 4) + 2200 * 1400
    assert decode_picture(content, "a", scale=2, fit=(2200, 1400), budget_bytes=3 * whole + 1).colour.size
    with pytest.raises(UserError, match="with its result in 2200x1400"):
        decode_picture(content, "a", scale=2, fit=(2200, 1400), budget_bytes=3 * whole - 3)
    with pytest.raises(UserError, match="more than the budget"):
        decode_picture(content, "a", scale=2, fit=(1400, 2200), budget_bytes=3 * whole - 3)


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP"]), st.data())
def test_spoiled_headers_are_refused_or_read_and_nothing_else(kind: str, data: st.DataObject) -> None:
    content = bytearray(encoded(kind, "RGB"))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(200, len(content)) - 1))] = data.draw(st.integers(0, 255))
    spoiled = bytes(content[: data.draw(st.integers(0, len(content)))])
    read_header(spoiled)
    with suppress(UserError):  # the one exception that may come
        assert decode_picture(spoiled, "spoiled", budget_bytes=1 << 20).colour.ndim == 3


@given(st.binary(max_size=300), st.sampled_from([b"II*\0", b"MM\0*"]))
def test_any_bytes_are_no_danger_to_the_tags(content: bytes, start: bytes) -> None:
    directory = read_directory(start + content)
    if directory is not None:
        exif_of(directory)
    set_upright(start + content)


def test_other_content_has_no_kind() -> None:
    for content in (b"", b"RIFF", b"GIF89a" + bytes(20), b"\0\0\0\x18ftypmp42"):
        assert picture_kind(content) is None
        assert read_header(content) is None
