"""Our files before the eyes of others: exiftool, which also wrote the metadata, and FFmpeg's own programs."""

import json
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.images import Picture, read_picture, write_picture
from runtime.steps import Options
from tests.runtime.test_images import PIXELS, rgb_profile

needs_exiftool = pytest.mark.skipif(not shutil.which("exiftool"), reason="needs the program exiftool on the PATH")
needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffprobe") and shutil.which("ffmpeg")), reason="needs the programs ffprobe and ffmpeg on the PATH"
)

WRITTEN = {
    "Model": "Some Camera", "ImageDescription": "Größe", "DateTimeOriginal": "2026:11:24 10:11:12",
    "ExposureTime": 0.004, "GPSLatitude": 48.858, "GPSLongitude": 2.294, "Creator": "Anna", "UserComment": "hallo",
    "XResolution": 300,
}  # fmt: skip
OF_THE_SOURCE = ("Missing required", "is not allowed in TIFF", "OffsetTime")
"""Complaints about what the source lacks or has: descriptions are copied, and not put in order."""


def exiftool(*arguments: object) -> str:
    done = subprocess.run(["exiftool", *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def described(path: Path, orientation: int = 6) -> Path:
    """A picture with a profile, and with EXIF, GPS and XMP by exiftool's own hand."""
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(PIXELS).save(path, icc_profile=rgb_profile(), **lossless)
    tags = [f"-{name}={value}" for name, value in WRITTEN.items()]
    exiftool("-q", "-overwrite_original", f"-Orientation#={orientation}", "-GPSLatitudeRef=N", "-GPSLongitudeRef=E",
             *tags, path)  # fmt: skip
    return path


@needs_exiftool
@pytest.mark.parametrize("source", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff"])
def test_exiftool_finds_all_that_it_wrote(tmp_path: Path, source: str, ending: str) -> None:
    target = tmp_path / f"b.{ending}"
    write_picture(target, read_picture(described(tmp_path / f"a.{source}")))
    (found,) = json.loads(exiftool("-j", "-n", "-a", target))
    assert {name: found.get(name) for name in WRITTEN} == WRITTEN
    assert found.get("Orientation", 1) == 1
    assert (found["ImageWidth"], found["ImageHeight"]) == PIXELS.shape[:2], "it was turned"
    assert found["ProfileDescription"] == "sRGB built-in"
    complaints = exiftool("-validate", "-warning", "-error", "-a", "-s3", target).splitlines()[1:]
    assert [line for line in complaints if not any(known in line for known in OF_THE_SOURCE)] == []


@needs_exiftool
@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_exiftool_sees_16_bits_and_alpha(tmp_path: Path, ending: str) -> None:
    deep = PIXELS.astype(np.uint16) * 257
    write_picture(tmp_path / f"a.{ending}", Picture(deep, deep[..., 0], metadata=[(2, rgb_profile())]))
    (found,) = json.loads(exiftool("-j", "-n", tmp_path / f"a.{ending}"))
    assert str(found.get("BitDepth", found.get("BitsPerSample"))) in ("16", "16 16 16 16")
    assert found.get("ColorType", found.get("SamplesPerPixel")) in (6, 4)
    assert exiftool("-validate", "-warning", "-error", "-s3", tmp_path / f"a.{ending}").split() == ["OK"] or (
        ending == "tiff"
    )


def probe(path: Path) -> dict[str, Any]:
    done = subprocess.run(
        ["ffprobe", "-v", "error", "-show_streams", "-show_chapters", "-show_format", "-of", "json", str(path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def frames_by_ffmpeg(path: Path) -> np.ndarray:
    """All frames as ffmpeg shows them, turned upright, (N, H, W, 3); that it complains about nothing is asserted."""
    command = ["ffmpeg", "-v", "error", "-xerror", "-i", str(path), "-fps_mode", "passthrough",
               "-enc_time_base", "-1", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, timeout=60)
    assert (shown.returncode, shown.stderr) == (0, b"")
    first = subprocess.run(
        [*command[:-9], "-frames:v", "1", "-c:v", "ppm", "-f", "image2pipe", "-"], capture_output=True, timeout=60
    )
    width, height = map(int, first.stdout.split()[1:3])
    return np.frombuffer(shown.stdout, np.uint8).reshape(-1, height, width, 3)


@needs_ffmpeg
@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
def test_ffprobe_finds_the_video_as_it_was(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("av", reason="needs the extra video")
    from runtime.video import upscale_video
    from tests.runtime.test_video import TIMES, Doubling, chaptered, clip

    source, target = chaptered(clip(tmp_path / "clip.mp4"), tmp_path / f"a.{ending}"), tmp_path / f"b.{ending}"
    result = upscale_video(source, target, Doubling(), Options(), options_sha256="", encoder="libx264")
    assert result["notes"] == []
    before, after = probe(source), probe(target)
    video, old = after["streams"][0], before["streams"][0]
    assert (video["width"], video["height"], video["codec_name"]) == (128, 96, "h264")
    for key in ("color_range", "color_space", "color_transfer", "color_primaries", "start_time"):
        assert video[key] == old[key], key
    assert [s["codec_type"] for s in after["streams"]] == [s["codec_type"] for s in before["streams"]]
    for key in ("codec_name", "sample_rate", "channels", "duration_ts"):
        assert after["streams"][1].get(key) == before["streams"][1].get(key), key
    kept = [(c["start_time"], c["end_time"], c["tags"]["title"]) for c in after["chapters"]]
    assert kept == [(c["start_time"], c["end_time"], c["tags"]["title"]) for c in before["chapters"]]
    assert len(kept) == 2
    assert after["format"]["tags"]["title"] == "a clip"
    assert len(frames_by_ffmpeg(target)) == len(TIMES)


@needs_ffmpeg
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_ffmpeg_shows_a_turned_video_as_it_showed_the_source(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    pytest.importorskip("av", reason="needs the extra video")
    from runtime.video import upscale_video
    from tests.runtime.test_video import Doubling, turned

    source, _ = turned(tmp_path / "a.mp4", degrees, mirrored)
    upscale_video(source, tmp_path / "b.mp4", Doubling(), Options(), options_sha256="", encoder="libx264")
    shown, expected = frames_by_ffmpeg(tmp_path / "b.mp4"), frames_by_ffmpeg(source)
    doubled = expected.repeat(2, axis=1).repeat(2, axis=2)
    assert shown.shape == doubled.shape
    assert np.abs(shown.astype(int) - doubled).mean() < 6
    assert not [data for s in probe(tmp_path / "b.mp4")["streams"] for data in s.get("side_data_list", ())]


@needs_ffmpeg
def test_ffprobe_sees_times_that_are_uneven(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs the extra video")
    from runtime.video import upscale_video
    from tests.runtime.test_video import TIMES, Doubling, clip

    upscale_video(clip(tmp_path / "a.mp4"), tmp_path / "b.mp4", Doubling(), Options(), options_sha256="",
                  encoder="libx264", segment_frames=3)  # fmt: skip
    done = subprocess.run(
        ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "packet=pts_time", "-of", "csv=p=0",
         str(tmp_path / "b.mp4")], capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert [Fraction(line.strip(",")) for line in done.stdout.split()] == [
        pytest.approx(t / 90000, abs=1e-6) for t in TIMES
    ]
