"""Videos, frame by frame: sound, subtitles, time stamps and colour tags stay as they were. Needs PyAV.

Frames are written in segments beside the result, each whole or not there. The same command, given again after it was
stopped, upscales what is missing; then the segments are joined with what else the source carried, nothing encoded anew.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np

from runtime.batch import file_sha256, overlapped
from runtime.engines.contract import Engine, ShapedEngine
from runtime.errors import UserError
from runtime.files import make_folder, replacing
from runtime.headers import Header, check_budget
from runtime.images import Picture, Pixels
from runtime.manifest import Entry, Manifest, open_manifest
from runtime.steps import Loaded, Options, compute, final_size
from runtime.upscale import default_tile
from runtime.video_files import join, open_video, pyav, reason_of

HARDWARE = ("h264_nvenc", "h264_videotoolbox", "h264_qsv", "h264_amf", "h264_v4l2m2m")
SOFTWARE = "libx264"
SEGMENT_FRAMES = 240
_HDR = {16: "PQ", 18: "HLG"}  # AVColorTransferCharacteristic
_CONVERSIONS = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # AVColorSpace to swscale's tables
_SD_HEIGHT = 720  # players take untagged video below this height for BT.601, else for BT.709

Tell = Callable[[int, int], None]
"""Called with (frames done, frames in all or 0)."""


@dataclass(frozen=True)
class Timed:
    """A frame and its time, in units of the source's time base."""

    picture: Picture
    pts: int
    duration: int


@dataclass(frozen=True)
class Turn:
    """What brings a picture upright: rows and columns exchanged first, then mirrored."""

    exchanged: bool = False
    left_right: bool = False
    top_down: bool = False

    def upright(self, pixels: Pixels) -> Pixels:
        """(H, W, C) as players show it."""
        turned = pixels.swapaxes(0, 1) if self.exchanged else pixels
        return np.ascontiguousarray(turned[:: -1 if self.top_down else 1, :: -1 if self.left_right else 1])


@dataclass(frozen=True)
class Facts:
    """What the first video stream is. Colour tags are numbers of ITU-T H.273."""

    width: int
    height: int
    frames: int
    time_base: Fraction
    rate: Fraction | None
    turn: Turn
    deep: bool
    colorspace: int
    primaries: int
    transfer: int
    full_range: bool
    pixel_aspect: Fraction | None
    notes: tuple[str, ...]


def upscale_video(
    source: Path,
    target: Path,
    engine: Engine,
    options: Options,
    *,
    options_sha256: str,
    encoder: str = "auto",
    segment_frames: int = SEGMENT_FRAMES,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Upscale the first video stream of a file and copy all others.

    Args:
        source: the video.
        target: the result, in a container of the same kind.
        engine: an open engine.
        options: as for pictures; ``quality`` 1 to 100 becomes the encoder's own measure.
        options_sha256: of ``runtime.steps.options_hash``; segments of other options are not taken over.
        encoder: a name of FFmpeg's, or "auto": the first hardware encoder that opens here, else libx264.
        segment_frames: frames of a segment, which is what is lost at most when the run is stopped.
        tell: told after each frame.

    Returns:
        What ``runtime/infer.py`` prints as JSON.

    Raises:
        UserError: PyAV is missing; no video, HDR, interlaced, over the budget, or an encoder that is not there.
    """
    av = pyav()
    with open_video(av, source) as container:
        facts = _facts(container, source)
    header = Header("video", facts.width, facts.height, 3, 16 if facts.deep else 8)
    check_budget(header, str(source), scale=engine.info.scale, fit=options.fit, budget_bytes=options.budget_bytes)
    width, height = final_size(facts.width, facts.height, options, engine.info.scale)
    size = (width - width % 2, height - height % 2)  # 4:2:0 has one colour sample for two pixels
    if min(size) < 2:
        raise UserError(f"{source} would become {width}x{height}, which no encoder takes.")
    chosen = _choose_encoder(av, encoder, size, facts, options.quality)
    if isinstance(engine, ShapedEngine):
        tile = options.tile if options.tile is not None else default_tile(facts.height, facts.width, engine.info)
        height, width = (
            max(min(n, tile) if tile else n, engine.info.minimum_size) for n in (facts.height, facts.width)
        )
        engine.expect((1, 3, height, width))
    folder = target.with_name(f"{target.name}.parts")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is in the way: the unfinished parts of the result go there; remove it.")
    make_folder(folder)
    key = hashlib.sha256(f"{options_sha256} {size} {chosen} {segment_frames}".encode()).hexdigest()
    with open_manifest(folder) as manifest:
        for half in folder.glob(".*.part.*"):  # a segment, or the result: all that a killed run leaves is in here
            half.unlink()
        segments = _Segments(av, folder, manifest, source.name, file_sha256(source), key, segment_frames)
        segments.take_over()
        before = len(segments.paths)
        frames = _frames(av, source, facts, skip=before * segment_frames)
        try:
            new = _upscale_frames(av, frames, segments, engine, options, facts, size, chosen, tell)
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"Cannot write into {folder}: {reason_of(error)}.") from error
        if not segments.paths:
            raise UserError(f"{source} has no frame that can be decoded.")
        joined = folder / f"joined{target.suffix}"
        try:
            notes = join(av, segments.paths, source, joined, facts.time_base, strip=options.strip_metadata)
            joined.replace(target)
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"Cannot write {target}: {reason_of(error)}.") from error
    shutil.rmtree(folder)
    return {
        "input": str(source),
        "output": str(target),
        "width": size[0],
        "height": size[1],
        "frames": new,
        "segments_done_before": before,
        "encoder": chosen,
        "notes": [*facts.notes, *notes],
    }


def _facts(container: Any, path: Path) -> Facts:
    if not container.streams.video:
        raise UserError(f"{path} has no video.")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None or not context.width or not context.pix_fmt:
        raise UserError(f"{path} cannot be decoded: its video is of an unknown kind.")
    transfer = int(context.color_trc)
    if transfer in _HDR:
        raise UserError(f"{path} is HDR ({_HDR[transfer]}), whose light the network was not taught; convert it to SDR.")
    if int(context.field_order) > 1:
        raise UserError(f"{path} is interlaced; deinterlace it first.")
    first = next(iter(_decoded(container, stream, path)), None)
    if first is None:
        raise UserError(f"{path} has no frame that can be decoded.")
    if first.interlaced_frame:
        raise UserError(f"{path} is interlaced; deinterlace it first.")
    turn, notes = _turn(first)
    width, height = (context.height, context.width) if turn.exchanged else (context.width, context.height)
    space = int(first.colorspace)
    if space not in _CONVERSIONS:
        space = 1 if height >= _SD_HEIGHT or width >= 1280 else 6
        notes.append(
            f"the source does not say its colours; taken for BT.{'709' if space == 1 else '601'} and tagged so"
        )
    others = len(container.streams.video) - 1
    if others:
        notes.append(f"{others} more video streams left out")
    aspect = stream.sample_aspect_ratio
    return Facts(
        width, height, stream.frames, stream.time_base, stream.average_rate, turn,
        deep=max(component.bits for component in first.format.components) > 8,
        colorspace=space,
        primaries=int(context.color_primaries),
        transfer=transfer,
        full_range=int(first.color_range) == 2,
        pixel_aspect=(1 / aspect if turn.exchanged else aspect) if aspect else None,
        notes=tuple(notes),
    )  # fmt: skip


def _turn(frame: Any) -> tuple[Turn, list[str]]:
    """From the display matrix: a point (x, y) is shown at (a·x + c·y, b·x + d·y). Mirrored ones have no mere angle."""
    from av.sidedata.sidedata import Type

    data = frame.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return Turn(), []
    a, b, _, c, d = (float(value) for value in np.frombuffer(bytes(data), np.int32)[:5])
    exchanged = abs(b) + abs(c) > abs(a) + abs(d)
    from_left, from_top = (c, b) if exchanged else (a, d)
    rest = abs(a) + abs(d) if exchanged else abs(b) + abs(c)
    notes = []
    if rest > 0.02 * (abs(from_left) + abs(from_top)):
        notes.append("the source asks players to turn it by an odd angle; it is turned to the next right one")
    return Turn(exchanged, from_left < 0, from_top < 0), notes


def _decoded(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    import av

    stream.thread_type = "AUTO"
    try:
        yield from container.decode(stream)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {reason_of(error)}.") from error


def _frames(av: Any, path: Path, facts: Facts, *, skip: int) -> Iterator[Timed]:
    """Frames upright, with their times, leaving out the first ``skip``."""
    step = round(1 / (facts.rate * facts.time_base)) if facts.rate else 1
    following = 0
    with open_video(av, path) as container:
        stream = container.streams.video[0]
        for i, frame in enumerate(_decoded(container, stream, path)):
            pts = frame.pts if frame.pts is not None else following
            following = pts + (frame.duration or step)
            if i < skip:
                continue
            if int(frame.colorspace) not in _CONVERSIONS:
                frame.colorspace = facts.colorspace
            pixels = frame.to_ndarray(format="rgb48le" if facts.deep else "rgb24")
            yield Timed(Picture(facts.turn.upright(cast(Pixels, pixels))), pts, frame.duration or 0)


def _upscale_frames(
    av: Any,
    frames: Iterator[Timed],
    segments: _Segments,
    engine: Engine,
    options: Options,
    facts: Facts,
    size: tuple[int, int],
    encoder: str,
    tell: Tell | None,
) -> int:
    """Decode, upscale and encode side by side until the frames end; the number of frames."""
    done = segments.first_frame

    def read(_: int) -> Timed | None:
        return next(frames, None)

    def infer(timed: Timed | None) -> tuple[Timed, Pixels] | None:
        if timed is None:
            return None
        computed = compute(engine, Loaded(timed.picture, 0.0), options, size=size)
        return timed, computed.upscaled.picture.colour

    def write(_: int, value: tuple[Timed, Pixels] | None) -> bool:
        if value is None:
            return False
        timed, pixels = value
        segments.add(
            _encodable(av, pixels, timed, facts),
            lambda container: _add_stream(container, size, facts, encoder, options.quality),
        )
        return True

    run = overlapped(itertools.count(), read, infer, write, lambda value: value[1].nbytes if value else 0, writers=1)
    try:
        with closing(run):
            for _, result in run:
                if isinstance(result, Exception):
                    raise result
                if not result:
                    break
                done += 1
                if tell:
                    tell(done, facts.frames)
        segments.close()
    finally:
        segments.abandon()
    return done - segments.first_frame


def _encodable(av: Any, pixels: Pixels, timed: Timed, facts: Facts) -> Any:
    """RGB to a frame in the colours and the range of the source, at its time."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb48le" if facts.deep else "rgb24")
    frame = frame.reformat(
        format="yuv420p10le" if facts.deep else "yuv420p",
        dst_colorspace=_CONVERSIONS[facts.colorspace],
        dst_color_range=2 if facts.full_range else 1,
    )
    frame.pts, frame.time_base, frame.duration = timed.pts, facts.time_base, timed.duration
    return frame


def _add_stream(container: Any, size: tuple[int, int], facts: Facts, encoder: str, quality: int | None) -> Any:
    # without B-frames decoding order is display order, and segments join at any time stamps
    stream = container.add_stream(encoder, rate=facts.rate or 25, options=_encoder_options(encoder, quality))
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p10le" if facts.deep else "yuv420p"
    context = stream.codec_context
    stream.time_base = context.time_base = facts.time_base
    context.max_b_frames = 0
    context.colorspace, context.color_range = facts.colorspace, 2 if facts.full_range else 1
    context.color_primaries, context.color_trc = facts.primaries, facts.transfer
    if facts.pixel_aspect:
        context.sample_aspect_ratio = facts.pixel_aspect
    return stream


def _encoder_options(encoder: str, quality: int | None) -> dict[str, str]:
    measure = str(17 if quality is None else round((100 - quality) / 2))
    return {
        SOFTWARE: {"crf": measure, "preset": "medium"},
        "h264_nvenc": {"rc": "vbr", "cq": measure},
        "h264_qsv": {"global_quality": measure},
        "h264_amf": {"rc": "cqp", "qp_i": measure, "qp_p": measure},
    }.get(encoder, {})


def _choose_encoder(av: Any, name: str, size: tuple[int, int], facts: Facts, quality: int | None) -> str:
    """The first encoder that really encodes a frame of this size here.

    Raises:
        UserError: the one that was asked for does not.
    """
    # hardware takes 8 bit only in H.264
    names = ([] if facts.deep else list(HARDWARE)) + [SOFTWARE] if name == "auto" else [name]
    reason = "it is not part of this FFmpeg"
    for candidate in names:
        if candidate not in av.codecs_available:
            continue
        try:
            with av.open(io.BytesIO(), "w", format="nut") as container:
                stream = _add_stream(container, size, facts, candidate, quality)
                grey = np.full((size[1], size[0], 3), 128, np.uint16 if facts.deep else np.uint8)
                container.mux(stream.encode(_encodable(av, grey, Timed(Picture(grey), 0, 0), facts)))
                container.mux(stream.encode(None))
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = reason_of(error)
            continue
        return candidate
    raise UserError(f"The encoder {names[-1]} does not take {size[0]}x{size[1]} video here: {reason}.")


class _Segments:
    """The files that the frames are written into, each of ``length`` frames; noted in a manifest when whole."""

    def __init__(
        self, av: Any, folder: Path, manifest: Manifest, name: str, source_sha256: str, key: str, length: int
    ) -> None:
        self.av, self.folder, self.manifest = av, folder, manifest
        self.name, self.source_sha256, self.key, self.length = name, source_sha256, key, length
        self.paths: list[Path] = []
        self.first_frame = 0
        self._open: ExitStack | None = None
        self._container: Any = None
        self._stream: Any = None
        self._count = 0

    def take_over(self) -> None:
        """Keep the segments of a run that was stopped, as far as nothing is missing."""
        for i in itertools.count():
            path = self.folder / f"{i:06}.nut"
            entry = self.manifest.entries.get(path.name)
            if entry is None or (entry.input_sha256, entry.options_sha256) != (self.source_sha256, self.key):
                break
            if file_sha256(path) != entry.output_sha256:
                break
            self.paths.append(path)
        self.first_frame = len(self.paths) * self.length

    def add(self, frame: Any, add_stream: Callable[[Any], Any]) -> None:
        """Encode a frame into the segment that is open, or into a new one."""
        if self._open is None:
            self._open = ExitStack()
            path = self.folder / f"{len(self.paths):06}.nut"
            temporary = self._open.enter_context(replacing(path))
            self._container = self._open.enter_context(
                self.av.open(str(temporary), "w", format="nut", options={"fflags": "bitexact"})
            )
            self._stream = add_stream(self._container)
        self._container.mux(self._stream.encode(frame))
        self._count += 1
        if self._count == self.length:
            self.close()

    def close(self) -> None:
        """Finish the segment that is open."""
        if self._open is None:
            return
        self._container.mux(self._stream.encode(None))
        opened, self._open, self._count = self._open, None, 0
        opened.close()
        path = self.folder / f"{len(self.paths):06}.nut"
        self.manifest.add(Entry(self.name, path.name, self.source_sha256, self.key, "done", file_sha256(path)))
        self.paths.append(path)

    def abandon(self) -> None:
        """Throw a segment away that is not whole."""
        opened, self._open = self._open, None
        if opened is not None:
            with suppress(_Abandoned), opened:
                raise _Abandoned


class _Abandoned(Exception):  # noqa: N818 - no error: it tells `replacing` to leave nothing
    pass
