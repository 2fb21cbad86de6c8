"""Pictures in and out, checked by Pillow, an independent reader."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import UserError
from runtime.images import Picture, read_picture, write_picture

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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "maker"
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    picture = read_picture(tmp_path / "a.png")
    assert np.array_equal(picture.colour, upright)
    write_picture(tmp_path / "b.png", picture)
    back = Image.open(tmp_path / "b.png")
    assert np.array_equal(np.asarray(back), upright)
    assert back.getexif().get(0x0112, 1) == 1, "turned pixels must not be turned again"
    assert back.getexif()[0x010F] == "maker"


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_the_icc_profile_is_kept(tmp_path: Path, ending: str) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(PIXELS).save(tmp_path / "a.png", icc_profile=profile)
    write_picture(tmp_path / f"b.{ending}", read_picture(tmp_path / "a.png"))
    assert Image.open(tmp_path / f"b.{ending}").info["icc_profile"] == profile


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
    with pytest.raises(UserError, match="CMYK"):
        read_picture(tmp_path / "cmyk.tiff")
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
