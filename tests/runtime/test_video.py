"""Videos: what a player needs is still there, read back by PyAV; a run that is stopped goes on with the same bytes."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av", reason="needs the extra video")

from benchmarks.interruptions import cubic_engine, interrupt_video
from runtime import video
from runtime.engines.contract import Batch, EngineInfo
from runtime.errors import UserError
from runtime.steps import Options
from runtime.video import upscale_video
from tests.conftest import ROOT, Script

TIMES = [0, 3003, 6006, 12012, 13013, 20020, 21021, 27027, 30030, 31031]  # of 1/90000 s: a variable frame rate
RED = (200, 40, 90)


class Doubling:
    """A stand-in network: each pixel twice. It counts; ``stop_after`` frames it is interrupted. No engine."""

    info = EngineInfo("doubling", "numpy", "cpu", 2, "doubling", "exact", 0, 1, "fp32")

    def __init__(self, stop_after: int | None = None) -> None:
        self.frames, self.stop_after = 0, stop_after

    def infer(self, batch: Batch) -> Batch:
        if self.frames == self.stop_after:
            raise KeyboardInterrupt
        self.frames += 1
        return batch.repeat(2, axis=2).repeat(2, axis=3)

    def close(self) -> None: ...


def clip(path: Path, *, transfer: int = 1, space: int = 1, subtitles: bool = False, pix_fmt: str = "yuv420p") -> Path:
    """Ten frames of one red at uneven times in BT.709, with sound in German."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 64, 48, pix_fmt
        context = video.codec_context
        video.time_base = context.time_base = Fraction(1, 90000)
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = space, 1, transfer, 1
        audio = container.add_stream("aac", rate=48000)
        audio.metadata["language"] = "deu"
        container.metadata["title"] = "a clip"
        for i, pts in enumerate(TIMES):
            pixels = np.full((48, 64, 3), RED, np.uint8)
            pixels[:, : 4 * i] = 128
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=1 if space == 1 else 5, dst_color_range=1)
            frame.pts, frame.time_base = pts, Fraction(1, 90000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for i in range(16):
            noise = np.random.default_rng(i).integers(-999, 999, (1, 2048)).astype(np.int16)
            sound = av.AudioFrame.from_ndarray(noise, format="s16", layout="stereo")
            sound.sample_rate, sound.pts, sound.time_base = 48000, i * 1024, Fraction(1, 48000)
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    return path


def with_subtitles(source: Path, target: Path) -> Path:
    """The clip in Matroska with a line of text, from an SRT file."""
    lines = target.with_suffix(".srt")
    lines.write_text("1\n00:00:00,050 --> 00:00:00,250\nGuten Tag\n\n")
    with av.open(str(source)) as clip, av.open(str(lines)) as text, av.open(str(target), "w") as result:
        streams = [[result.add_stream_from_template(stream) for stream in c.streams] for c in (clip, text)]
        streams[1][0].metadata["language"] = "deu"
        for container, copies in zip((clip, text), streams, strict=True):
            for packet in container.demux():
                if packet.dts is not None:
                    packet.stream = copies[packet.stream.index]
                    result.mux(packet)
    return target


def chaptered(source: Path, target: Path) -> Path:
    """The streams of a clip in another container, with two chapters."""
    parts = [
        {"id": i, "start": start, "end": end, "time_base": Fraction(1, 1000), "metadata": {"title": title}}
        for i, (start, end, title) in enumerate([(0, 200, "Anfang"), (200, 340, "Ende")], 1)
    ]
    with av.open(str(source)) as clip, av.open(str(target), "w") as result:
        copies = {s.index: result.add_stream_from_template(s) for s in clip.streams}
        result.metadata.update(clip.metadata)
        result.set_chapters(parts)
        for packet in clip.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                result.mux(packet)
    return target


def turned(path: Path, degrees: int, mirrored: bool) -> tuple[Path, np.ndarray]:
    """Three frames that ask to be turned, counter-clockwise, then mirrored; and how they are to be shown."""
    pixels = np.full((48, 64, 3), 128, np.uint8)
    pixels[:16, :24], pixels[-16:, :24], pixels[:16, -24:] = (220, 30, 30), (30, 200, 30), (40, 40, 220)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        context = video.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 1, 1, 1, 1
        video.set_display_rotation(degrees, hflip=mirrored)
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(video.encode(frame.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1)))
        container.mux(video.encode(None))
    shown = np.rot90(pixels, degrees // 90)
    return path, shown[:, ::-1] if mirrored else shown


def packets(path: Path, kind: str) -> list[bytes]:
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams if s.type == kind)
        return [bytes(p) for p in container.demux(stream) if p.size]


def test_everything_but_the_size_stays(tmp_path: Path) -> None:
    source, target = clip(tmp_path / "clip.mp4"), tmp_path / "clip_x2.mp4"
    before = source.read_bytes()
    result = upscale_video(source, target, Doubling(), Options(), options_sha256="", encoder="libx264")
    assert (result["frames"], result["width"], result["height"]) == (10, 128, 96)
    with av.open(str(target)) as container:
        video, context = container.streams.video[0], container.streams.video[0].codec_context
        assert (context.width, context.height) == (128, 96)
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        frames = list(container.decode(video))
        assert [float(f.pts * f.time_base) for f in frames] == pytest.approx([t / 90000 for t in TIMES], abs=1e-9)
        colour = frames[0].to_ndarray(format="rgb24")[48, 100].astype(int)
        assert np.abs(colour - RED).max() <= 3, "BT.709 must not be taken for BT.601"
        assert container.metadata["title"] == "a clip"
        assert container.streams.audio[0].metadata["language"] == "deu"
    assert packets(target, "audio") == packets(source, "audio"), "sound is copied, not encoded again"
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "clip_x2.mp4"]


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_the_display_matrix_is_applied(tmp_path: Path, degrees: int, mirrored: bool, ending: str) -> None:
    source, shown = turned(tmp_path / f"a.{ending}", degrees, mirrored)
    target = tmp_path / f"b.{ending}"
    result = upscale_video(source, target, Doubling(), Options(), options_sha256="", encoder="libx264")
    height, width = shown.shape[:2]
    assert (result["width"], result["height"]) == (2 * width, 2 * height)
    assert result["notes"] == []
    with av.open(str(target)) as container:
        frame = next(container.decode(video=0))
        assert not len(frame.side_data) or frame.rotation == 0, "a player would turn it once more"
        back = frame.to_ndarray(format="rgb24")
    assert np.abs(back.astype(int) - shown.repeat(2, axis=0).repeat(2, axis=1)).mean() < 6


def test_an_odd_angle_is_told(tmp_path: Path) -> None:
    source, _ = turned(tmp_path / "a.mp4", 30, False)
    result = upscale_video(source, tmp_path / "b.mp4", Doubling(), Options(), options_sha256="", encoder="libx264")
    assert [note for note in result["notes"] if "odd angle" in note]


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "m4v"])
def test_chapters_are_kept(tmp_path: Path, ending: str) -> None:
    source, target = chaptered(clip(tmp_path / "clip.mp4"), tmp_path / f"a.{ending}"), tmp_path / f"b.{ending}"
    result = upscale_video(source, target, Doubling(), Options(), options_sha256="", encoder="libx264")
    assert result["notes"] == []

    def kept(path: Path) -> list[tuple[Fraction, Fraction, str]]:
        with av.open(str(path)) as container:
            return [
                (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"]["title"])
                for c in container.chapters()
            ]

    second = Fraction(1, 1000)
    assert kept(target) == kept(source) == [
        (0, 200 * second, "Anfang"), (200 * second, 340 * second, "Ende"),
    ]  # fmt: skip
    assert packets(target, "audio") == packets(source, "audio")


@pytest.mark.parametrize("ending", ["mov", "mkv"])
def test_time_codes_and_attachments(tmp_path: Path, ending: str) -> None:
    """A track of time codes, as cameras write, cannot be copied: it is left out with a word, and stops nothing."""
    source, target = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt, video.codec_context.colorspace = 64, 48, "yuv420p", 1
        video.metadata["timecode"] = "01:00:00:00"
        if ending == "mkv":
            container.add_attachment("type.ttf", "application/x-truetype-font", b"no real font")
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    result = upscale_video(source, target, Doubling(), Options(), options_sha256="", encoder="libx264")
    with av.open(str(target)) as container:
        assert ("TIMECODE" in container.streams[0].metadata) == (ending == "mkv")
        assert [s.type for s in container.streams] == (["video"] if ending == "mov" else ["video", "attachment"])
    assert [note for note in result["notes"] if "time code" in note] == (
        ["the time code is left out; Matroska keeps it"] if ending == "mov" else []
    )


def test_subtitles_are_kept_in_matroska(tmp_path: Path) -> None:
    source = with_subtitles(clip(tmp_path / "clip.mp4"), tmp_path / "clip.mkv")
    result = upscale_video(source, tmp_path / "out.mkv", Doubling(), Options(), options_sha256="", encoder="libx264")
    assert result["notes"] == []
    assert packets(tmp_path / "out.mkv", "subtitle") == packets(source, "subtitle") == [b"Guten Tag"]
    assert packets(tmp_path / "out.mkv", "audio") == packets(source, "audio")
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert container.streams.subtitles[0].metadata["language"] == "deu"


def test_a_run_that_is_stopped_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    source, whole, cut = clip(tmp_path / "clip.mp4"), tmp_path / "whole.mp4", tmp_path / "cut.mp4"

    def run(target: Path, engine: Doubling, sum_of_options: str = "") -> dict[str, Any]:
        return upscale_video(
            source, target, engine, Options(), options_sha256=sum_of_options, encoder="libx264", segment_frames=3
        )

    run(whole, Doubling())
    for stop in (1, 5):
        with pytest.raises(KeyboardInterrupt):
            run(cut, Doubling(stop))
        assert not cut.exists()
    parts = tmp_path / "cut.mp4.parts"
    assert sorted(p.name for p in parts.iterdir()) == ["000000.nut", "gmin-manifest.jsonl"]
    (parts / ".000001.abcdefgh.part.nut").write_bytes(b"what kill -9 leaves")
    engine = Doubling()
    result = run(cut, engine)
    assert (result["segments_done_before"], engine.frames) == (1, 7)
    assert cut.read_bytes() == whole.read_bytes()
    assert not parts.exists()
    with pytest.raises(KeyboardInterrupt):
        run(cut, Doubling(7))
    engine = Doubling()
    run(cut, engine, "other options")
    assert engine.frames == 10


def test_what_a_kill_left_of_the_result_is_removed(tmp_path: Path) -> None:
    """The result is put together beside the segments, and not under a name in the user's own folder."""
    source, target = clip(tmp_path / "clip.mp4"), tmp_path / "out.mp4"
    parts = tmp_path / "out.mp4.parts"
    parts.mkdir()
    (parts / ".joined.abcdefgh.part.mp4").write_bytes(b"what kill -9 leaves")
    seen: set[str] = set()

    class Watching(Doubling):
        def infer(self, batch: Batch) -> Batch:
            seen.update(path.name for path in parts.iterdir())
            return super().infer(batch)

    upscale_video(source, target, Watching(), Options(), options_sha256="", encoder="libx264")
    assert ".joined.abcdefgh.part.mp4" not in seen
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out.mp4"]


def test_killed_runs_end_with_the_same_bytes(tmp_path: Path) -> None:
    """The small form of ``benchmarks/interruptions.py --kills 100 --video``; the first kill meets the joining."""
    report = interrupt_video(tmp_path, kills=3, frames=500, seed=2)
    assert (report["kills"], report["segments"]) == (3, 3)
    assert report["kills_at_work"] >= 1
    assert (report["sets_that_differ"], report["sets_whose_frames_differ"]) == (0, 0)
    assert (report["temporary_files_left"], report["sources_touched"]) == (0, 0)


def test_untagged_colours_are_tagged_as_they_were_shown(tmp_path: Path) -> None:
    source = clip(tmp_path / "clip.mp4", space=2)
    result = upscale_video(
        source, tmp_path / "out.mp4", Doubling(), Options(fit=(1280, 720)), options_sha256="", encoder="libx264"
    )
    assert "does not say its colours" in result["notes"][0]
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.colorspace == 6, (
            "a player would take untagged 720 lines for 709"
        )
        assert (result["width"], result["height"]) == (960, 720)


def test_ten_bits_stay_ten(tmp_path: Path) -> None:
    source = clip(tmp_path / "clip.mp4", pix_fmt="yuv420p10le")
    result = upscale_video(source, tmp_path / "out.mp4", Doubling(), Options(), options_sha256="")
    assert result["encoder"] == "libx264"
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p10le"


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused_with_a_word(tmp_path: Path, transfer: int, name: str) -> None:
    source = clip(tmp_path / "clip.mp4", transfer=transfer)
    with pytest.raises(UserError, match=f"is HDR .{name}."):
        upscale_video(source, tmp_path / "out.mp4", Doubling(), Options(), options_sha256="")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_bad_videos_and_options_leave_nothing(tmp_path: Path) -> None:
    good = clip(tmp_path / "good.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "list.mkv").write_text(f"ffconcat version 1.0\nfile {good}\n")  # a playlist would be followed
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:300])
    cases: list[tuple[str, dict[str, Any], Options, str]] = [
        ("text.mp4", {}, Options(), "cannot be read as a video"),
        ("list.mkv", {}, Options(), "cannot be read as a video"),
        ("cut.mp4", {}, Options(), "cannot be read as a video"),
        ("good.mp4", {"encoder": "nothing"}, Options(), "not part of this FFmpeg"),
        ("good.mp4", {}, Options(budget_bytes=1000), "more than the budget"),
    ]
    for name, arguments, options, message in cases:
        with pytest.raises(UserError, match=message):
            upscale_video(tmp_path / name, tmp_path / "out.mp4", Doubling(), options, options_sha256="", **arguments)
    assert not list(tmp_path.glob("out*"))


def test_what_describes_the_video_can_be_left_out(tmp_path: Path) -> None:
    source = clip(tmp_path / "a.mp4")
    with av.open(str(source)) as plain, av.open(str(tmp_path / "b.mp4"), "w") as placed:
        placed.metadata.update({"title": "a clip", "location": "+48.2082+016.3738/"})
        copies = {stream.index: placed.add_stream_from_template(stream) for stream in plain.streams}
        copies[1].metadata["language"] = "deu"
        for packet in plain.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                placed.mux(packet)
    found = {}
    for strip in (False, True):
        upscale_video(tmp_path / "b.mp4", tmp_path / "c.mp4", Doubling(), Options(strip_metadata=strip),
                      options_sha256="", encoder="libx264")  # fmt: skip
        with av.open(str(tmp_path / "c.mp4")) as container:
            found[strip] = dict(container.metadata)
            assert container.streams.audio[0].metadata["language"] == "deu"
    assert found[False]["location"] == "+48.2082+016.3738/"
    assert not {"location", "title"} & set(found[True])


def test_frames_are_resized_once_to_the_even_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64x48 fill 68x51 of 68x90, an encoder takes 68x50, and into 68x50 the same frame would go as 67x50."""
    seen = set()
    plain = video._encodable

    def noted(pyav: Any, pixels: np.ndarray, *others: Any) -> Any:
        seen.add(pixels.shape)
        return plain(pyav, pixels, *others)

    monkeypatch.setattr(video, "_encodable", noted)
    source = clip(tmp_path / "a.mp4")
    options = Options(fit=(68, 90))
    result = upscale_video(source, tmp_path / "b.mp4", Doubling(), options, options_sha256="", encoder="libx264")
    assert (result["width"], result["height"]) == (68, 50)
    assert {(50, 68, 3)} == seen


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video._Segments, "close", full)
    source = clip(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"Cannot write into .*b.mp4.parts: no space left"):
        upscale_video(source, tmp_path / "b.mp4", Doubling(), Options(), options_sha256="", encoder="libx264")
    assert not (tmp_path / "b.mp4").exists()


def test_the_command_takes_videos(script: Script, tmp_path: Path) -> None:
    import json

    cubic_engine(tmp_path / "cubic.onnx")
    source = clip(tmp_path / "clip.mp4")
    engine = f"ort:{tmp_path / 'cubic.onnx'}"
    done = script("runtime/infer.py", source, "--engine", engine, "--scale", 2, "--encoder", "libx264", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["output"] == str(tmp_path / "clip_x2.mp4")
    refused = script("runtime/infer.py", source, ROOT / "data/chelsea.png", "--engine", engine)
    assert refused.returncode == 2
    assert "two commands" in refused.stderr
