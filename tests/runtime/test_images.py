"""Pictures in and out, checked by Pillow, an independent reader."""

import functools
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import IFDRational

from runtime.errors import UserError
from runtime.images import Picture, fill_hidden, read_picture, without_metadata, write_picture
from runtime.tiff_tags import EXTRA_SAMPLES, PHOTOMETRIC, PLANAR, read_directory, with_number

PIXELS = np.random.default_rng(0).integers(0, 256, (14, 22, 3), dtype=np.uint8)


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_round_trip(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    write_picture(path, Picture(PIXELS))
    assert np.array_equal(np.asarray(Image.open(path).convert("RGB")), PIXELS)
    assert np.array_equal(read_picture(path).colour, PIXELS)


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_16_bit_and_alpha_round_trip(tmp_path: Path, ending: str) -> None:
    deep = PIXELS.astype(np.uint16) * 257 + 3
    for alpha in (None, deep[..., 0]):
        write_picture(tmp_path / f"a.{ending}", Picture(deep, alpha))
        back = read_picture(tmp_path / f"a.{ending}")
        assert back.colour.dtype == np.uint16
        assert np.array_equal(back.colour, deep)
        assert (back.alpha is None) == (alpha is None)
        if alpha is not None:
            assert np.array_equal(back.alpha, alpha)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_packed_by_what_it_shows(tmp_path: Path, channels: int) -> None:
    """Never larger than by OpenCV's own settings, for a photograph, a drawing and 16 bits."""
    import cv2

    photo = cv2.resize(read_picture(Path(__file__).parents[2] / "data/chelsea.png").colour, None, fx=2, fy=2)
    drawing = np.full_like(photo, 240)
    cv2.putText(drawing, "GMIN", (40, 300), cv2.FONT_HERSHEY_SIMPLEX, 8, (20, 90, 200), 5, cv2.LINE_AA)
    for pixels in (photo, drawing, photo.astype(np.uint16) * 257):
        written = np.ascontiguousarray(pixels[..., :channels])
        plain = len(cv2.imencode(".png", written)[1])
        picture = Picture(np.broadcast_to(written, pixels.shape), grey=channels == 1)
        write_picture(tmp_path / "a.png", picture)
        assert np.array_equal(read_picture(tmp_path / "a.png").colour, picture.colour)
        assert (tmp_path / "a.png").stat().st_size < 1.01 * plain


def test_grey_palette_and_bilevel(tmp_path: Path) -> None:
    grey = Image.fromarray(PIXELS[..., 0])
    grey.save(tmp_path / "grey.png")
    picture = read_picture(tmp_path / "grey.png")
    assert picture.grey
    assert np.array_equal(picture.colour[..., 1], PIXELS[..., 0])
    write_picture(tmp_path / "back.png", picture)
    assert Image.open(tmp_path / "back.png").mode == "L"
    palette = Image.fromarray(PIXELS).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_picture(tmp_path / "palette.png").colour, np.asarray(palette.convert("RGB")))
    Image.fromarray(PIXELS[..., 0] > 127).save(tmp_path / "bits.png")
    assert set(np.unique(read_picture(tmp_path / "bits.png").colour)) == {0, 255}


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(tmp_path: Path, orientation: int, ending: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "maker"
    lossless = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(PIXELS).save(tmp_path / f"a.{ending}", exif=exif, **lossless)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / f"a.{ending}")))
    picture = read_picture(tmp_path / f"a.{ending}")
    assert picture.colour.shape == upright.shape
    if ending == "jpg":  # two decoders
        assert np.abs(picture.colour.astype(int) - upright).max() <= 6
        upright = picture.colour
    assert np.array_equal(picture.colour, upright)
    write_picture(tmp_path / "b.png", picture)
    back = Image.open(tmp_path / "b.png")
    assert np.array_equal(np.asarray(back), upright)
    assert back.getexif().get(0x0112, 1) == 1, "turned pixels must not be turned again"
    assert back.getexif()[0x010F] == "maker"


@pytest.mark.parametrize("source", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff"])
def test_profile_and_exif_go_from_every_format_to_every_other(tmp_path: Path, source: str, ending: str) -> None:
    profile = rgb_profile()
    exif = Image.Exif()
    exif[0x0110] = "model of a camera"
    exif.get_ifd(0x8769)[0x9003] = "2026:11:23 12:00:00"
    exif.get_ifd(0x8769)[0x829D] = IFDRational(28, 10)
    exif.get_ifd(0x8825)[1] = "N"
    if source == "tiff":  # Pillow writes no EXIF directory into a TIFF; ours is checked by the case png-tiff
        Image.fromarray(PIXELS).save(tmp_path / "a.png", icc_profile=profile, exif=exif)
        write_picture(tmp_path / "a.tiff", read_picture(tmp_path / "a.png"))
    else:
        Image.fromarray(PIXELS).save(tmp_path / f"a.{source}", icc_profile=profile, exif=exif)
    write_picture(tmp_path / f"b.{ending}", read_picture(tmp_path / f"a.{source}"))
    back = Image.open(tmp_path / f"b.{ending}")
    back.load()
    assert back.info["icc_profile"] == profile
    assert back.getexif()[0x0110] == "model of a camera"
    assert back.getexif().get_ifd(0x8769)[0x9003] == "2026:11:23 12:00:00"
    assert float(back.getexif().get_ifd(0x8769)[0x829D]) == 2.8
    assert back.getexif().get_ifd(0x8825)[1] == "N"
    write_picture(tmp_path / f"c.{ending}", without_metadata(read_picture(tmp_path / f"b.{ending}")))
    bare = Image.open(tmp_path / f"c.{ending}")
    assert bare.info["icc_profile"] == profile, "without its profile a Display P3 picture changes its colours"
    assert 0x0110 not in bare.getexif()
    assert 0x8769 not in bare.getexif()


XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'></x:xmpmeta>"


@pytest.mark.parametrize("source", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff"])
def test_xmp_goes_from_every_format_to_every_other(tmp_path: Path, source: str, ending: str) -> None:
    """In a JPEG a name stands before the packet: readers that look for it find nothing where it is missing."""
    write_picture(tmp_path / f"a.{source}", Picture(PIXELS, metadata=[(1, XMP)]))
    write_picture(tmp_path / f"b.{ending}", read_picture(tmp_path / f"a.{source}"))
    assert dict(read_picture(tmp_path / f"b.{ending}").metadata)[1] == XMP
    content = (tmp_path / f"b.{ending}").read_bytes()
    assert content.count(b"http://ns.adobe.com/xap/1.0/\0" + XMP) == (ending == "jpg")
    assert content.count(XMP) == 1


@pytest.mark.parametrize(("kind", "name"), [(0, "EXIF"), (1, "XMP")])
def test_metadata_that_no_jpeg_can_hold_is_refused_with_a_word(tmp_path: Path, kind: int, name: str) -> None:
    blob = b"II*\0\x08\0\0\0\0\0\0\0\0\0" + bytes(70_000)
    with pytest.raises(UserError, match=f"70014 bytes of {name}|70043 bytes of {name}"):
        write_picture(tmp_path / "a.jpg", Picture(PIXELS, metadata=[(kind, blob)]))
    assert not list(tmp_path.iterdir())


def test_exif_in_the_other_byte_order_reaches_a_tiff(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.endian = ">"
    exif[0x0110] = "model of a camera"
    exif.get_ifd(0x8769)[0x829D] = IFDRational(28, 10)
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    assert block[:2] == b"MM"
    write_picture(tmp_path / "a.tiff", Picture(PIXELS, metadata=[(0, block)]))
    back = Image.open(tmp_path / "a.tiff")
    assert np.array_equal(np.asarray(back), PIXELS)
    assert back.getexif()[0x0110] == "model of a camera"
    assert float(back.getexif().get_ifd(0x8769)[0x829D]) == 2.8


def test_a_grey_profile_is_not_put_on_colour(tmp_path: Path) -> None:
    profile = bytearray(rgb_profile())
    profile[16:20] = b"GRAY"
    for alpha in (None, PIXELS[..., 0]):
        write_picture(tmp_path / "a.png", Picture(PIXELS, alpha, grey=True, metadata=[(2, bytes(profile))]))
        assert ("icc_profile" in Image.open(tmp_path / "a.png").info) == (alpha is None)


def with_entry(content: bytes, old: int, new: int, value: int) -> bytes:
    """A little-endian TIFF whose entry ``old`` is ``new``, a SHORT; the order of tags does not matter to readers."""
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    entries = {struct.unpack_from("<H", content, at)[0]: at for at in range(start + 2, start + 2 + 12 * count, 12)}
    changed = bytearray(content)
    struct.pack_into("<HHIHH", changed, entries[old], new, 3, 1, value, 0)
    return bytes(changed)


@functools.cache  # it holds the second in which it was made
def rgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_transparent_palette_and_grey_with_alpha(tmp_path: Path) -> None:
    palette = Image.fromarray(PIXELS).quantize(16)
    palette.save(tmp_path / "p.png", transparency=3)
    expected = np.asarray(Image.open(tmp_path / "p.png").convert("RGBA"))
    picture = read_picture(tmp_path / "p.png")
    assert picture.alpha is not None
    assert np.array_equal(np.dstack((picture.colour, picture.alpha)), expected)
    both = Image.merge("LA", [Image.fromarray(PIXELS[..., 0]), Image.fromarray(PIXELS[..., 1])])
    both.save(tmp_path / "la.png")
    picture = read_picture(tmp_path / "la.png")
    assert np.array_equal(picture.colour[..., 1], PIXELS[..., 0])
    assert np.array_equal(picture.alpha, PIXELS[..., 1])
    both.save(tmp_path / "la.tiff")  # OpenCV would drop the alpha without a word
    with pytest.raises(UserError, match="grey TIFF with transparency"):
        read_picture(tmp_path / "la.tiff")


@pytest.mark.parametrize("deep", [False, True])
def test_colours_behind_the_alpha_of_a_tiff_are_those_of_the_file(tmp_path: Path, deep: bool) -> None:
    """Straight alpha, as Pillow says of its own; and associated alpha, whose colours the file has multiplied by it."""
    peak = 65535 if deep else 255
    colour = (PIXELS.astype(np.uint16) * 257) if deep else PIXELS
    alpha = np.linspace(peak / 2, peak, PIXELS[..., 0].size).reshape(PIXELS.shape[:2]).astype(colour.dtype)
    times_alpha = np.rint(colour * (alpha[..., None] / peak)).astype(colour.dtype)
    for kind, stored in ((2, colour), (1, times_alpha)):
        if deep:  # Pillow has no such mode; OpenCV writes no such tag: it takes the place of one with its default
            write_picture(tmp_path / "a.tiff", Picture(stored, alpha))
            content = (tmp_path / "a.tiff").read_bytes()
            content = with_entry(content, PLANAR, EXTRA_SAMPLES, kind)
        else:
            Image.fromarray(np.dstack((stored, alpha)), "RGBA").save(tmp_path / "a.tiff")
            content = with_number((tmp_path / "a.tiff").read_bytes(), EXTRA_SAMPLES, kind)
        (tmp_path / "a.tiff").write_bytes(content)
        assert read_directory(content).number(EXTRA_SAMPLES) == kind  # type: ignore[union-attr]
        picture = read_picture(tmp_path / "a.tiff")
        assert np.array_equal(picture.alpha, alpha)
        assert np.abs(picture.colour.astype(int) - colour).max() <= (kind == 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grey_tiff_whose_white_is_0_is_no_negative(tmp_path: Path, dtype: type) -> None:
    import cv2

    grey = PIXELS[..., 0].astype(dtype) * dtype(257 if dtype is np.uint16 else 1)
    encoded = cv2.imencode(".tiff", np.iinfo(dtype).max - grey)[1].tobytes()
    (tmp_path / "a.tiff").write_bytes(with_number(encoded, PHOTOMETRIC, 0))
    picture = read_picture(tmp_path / "a.tiff")
    assert picture.grey
    assert np.array_equal(picture.colour[..., 0], grey)


def test_separate_planes_of_16_bits_are_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.tiff", Picture(PIXELS.astype(np.uint16) * 257))
    (tmp_path / "a.tiff").write_bytes(with_number((tmp_path / "a.tiff").read_bytes(), PLANAR, 2))
    grey = Picture(np.dstack([PIXELS[..., 0].astype(np.uint16) * 257] * 3), grey=True)
    write_picture(tmp_path / "g.tiff", grey)  # one plane is none beside others
    (tmp_path / "g.tiff").write_bytes(with_number((tmp_path / "g.tiff").read_bytes(), PLANAR, 2))
    assert np.array_equal(read_picture(tmp_path / "g.tiff").colour, grey.colour)
    with pytest.raises(UserError, match="separate planes"):
        read_picture(tmp_path / "a.tiff")


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff", "bmp"])
def test_names_that_are_no_unicode(tmp_path: Path, ending: str) -> None:
    """Latin-1 names of old archives: OpenCV's own writer ends the process at one."""
    path = tmp_path / os.fsdecode(b"caf\xe9." + ending.encode())
    try:
        path.touch()
    except OSError:
        pytest.skip("this file system has only names that are Unicode")
    write_picture(path, Picture(PIXELS))
    assert read_picture(path).colour.shape == PIXELS.shape


def test_hidden_colours_do_not_fringe() -> None:
    colour = np.zeros((9, 12, 3), np.uint8)
    alpha = np.zeros((9, 12), np.uint8)
    colour[2:6, 3:9], alpha[2:6, 3:9] = (200, 30, 60), 255
    filled = fill_hidden(Picture(colour, alpha))
    assert (filled.colour == (200, 30, 60)).all()
    assert filled.alpha is alpha
    opaque = Picture(colour, np.full_like(alpha, 9))
    assert fill_hidden(opaque) is opaque
    empty = Picture(colour, np.zeros_like(alpha))
    assert fill_hidden(empty) is empty


def test_more_frames_than_one_are_said(tmp_path: Path) -> None:
    image, other = Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)
    for name in ("a.webp", "a.png", "a.tiff"):
        options = {"lossless": True} if name == "a.webp" else {}
        image.save(tmp_path / name, save_all=True, append_images=[other], **options)
        picture = read_picture(tmp_path / name)
        assert np.array_equal(picture.colour, PIXELS)
        assert "only the first" in picture.notes[0]


@pytest.mark.parametrize(("mode", "dtype"), [("RGB", np.uint8), ("RGBA", np.uint8), ("RGB;16", np.uint16)])
def test_heif_where_its_library_is(tmp_path: Path, mode: str, dtype: type) -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs the extra heif")
    ramp = np.linspace(0, np.iinfo(dtype).max, 64 * 48).reshape(48, 64).astype(dtype)
    pixels = np.dstack([ramp] * len(mode.split(";")[0]))
    exif = Image.Exif()
    exif[0x0110] = "model of a camera"
    file = heif.from_bytes(mode, (64, 48), pixels.tobytes())
    file.save(tmp_path / "a.heic", quality=-1, exif=exif.tobytes(), icc_profile=rgb_profile())
    picture = read_picture(tmp_path / "a.heic")
    assert (picture.colour.dtype, picture.colour.shape) == (dtype, (48, 64, 3))
    assert np.abs(picture.colour.astype(int) - pixels[..., :3]).max() <= np.iinfo(dtype).max * 0.02
    assert (picture.alpha is not None) == (mode == "RGBA")
    write_picture(tmp_path / "b.png", picture)
    back = Image.open(tmp_path / "b.png")
    assert back.getexif()[0x0110] == "model of a camera"
    assert back.info["icc_profile"] == rgb_profile()
    with pytest.raises(UserError, match="more than the budget"):
        read_picture(tmp_path / "a.heic", scale=4, budget_bytes=64 * 48 * 3)
    file.add_frombytes(mode, (64, 48), pixels.tobytes())
    file.save(tmp_path / "two.heic")
    assert "only the first" in read_picture(tmp_path / "two.heic").notes[0]
    assert picture.notes == ()
    (tmp_path / "cut.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:300])
    with pytest.raises(UserError, match="cannot be decoded"):
        read_picture(tmp_path / "cut.heic")


def content(kind: str, tmp_path: Path) -> bytes:
    path = tmp_path / f"whole.{kind}"
    Image.fromarray(np.tile(PIXELS, (8, 8, 1))).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tiff", "bmp"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
def test_a_cut_file_is_refused_whatever_it_is_called(tmp_path: Path, kind: str, share: float) -> None:
    whole = content(kind, tmp_path)
    (tmp_path / "cut.png").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"cannot be decoded|is not a PNG"):
        read_picture(tmp_path / "cut.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"hello", "is not a PNG, JPEG"), (b"GIF89a" + b"\0" * 90, "is not a PNG")],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_picture(tmp_path / "a.png")


def test_cmyk_tiff_and_float_tiff_are_refused(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "cmyk.tiff")
    Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "cmyk.jpg")
    for name in ("cmyk.tiff", "cmyk.jpg"):
        with pytest.raises(UserError, match="CMYK"):
            read_picture(tmp_path / name)
    Image.fromarray(PIXELS[..., 0].astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(UserError, match="float32 samples"):
        read_picture(tmp_path / "float.tiff")


def test_transparency_is_not_lost_silently(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lose the transparency"):
        write_picture(tmp_path / "a.jpg", Picture(PIXELS, PIXELS[..., 0]))
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_survives_a_failed_write(tmp_path: Path) -> None:
    target = tmp_path / "a.jpg"
    target.write_bytes(b"old")
    with pytest.raises(UserError, match="Cannot write"):
        write_picture(target, Picture(np.zeros((1, 70_000, 3), np.uint8)))  # wider than JPEG can hold
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]
