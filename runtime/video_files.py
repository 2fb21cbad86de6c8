"""Video containers: opened within bounds, and all that is not the picture copied into the result. Needs PyAV."""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.files import replacing

ENDINGS = {".mp4": ".mp4", ".m4v": ".m4v", ".mov": ".mov", ".mkv": ".mkv", ".webm": ".mkv", ".avi": ".mkv"}
"""Ending of the result by that of the source: WebM may not hold H.264, and AVI holds no time stamps."""
_FORMATS = {".mp4": "mp4", ".m4v": "ipod", ".mov": "mov", ".mkv": "matroska"}
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,nut"
"""What a file may be, whatever it is called: no playlists, which name other files."""


def pyav() -> Any:
    """The package ``av``.

    Raises:
        UserError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError("Videos need PyAV, which is not installed: pip install 'gmin-edge[video]'.") from error
    return av


def open_video(av: Any, path: Path) -> Any:
    """An input container, which may be of a few kinds and may name no other file.

    Raises:
        UserError: no file, or no video of these kinds.
    """
    if not path.is_file():
        raise UserError(f"There is no video at {path}.")
    try:
        return av.open(str(path.resolve()), options={"protocol_whitelist": "file", "format_whitelist": _DEMUXERS})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a video: {reason_of(error)}.") from error


def join(
    av: Any, segments: list[Path], source: Path, target: Path, time_base: Fraction, *, strip: bool = False
) -> list[str]:
    """Join the segments with all other streams of the source, in the order of time.

    Args:
        av: of ``pyav``.
        segments: files of one video stream each, in order, without B-frames.
        source: where sound, subtitles, chapters and descriptions come from.
        target: the result; whole, or not there.
        time_base: of the video in the result.
        strip: leave out what describes the video, where it was taken say, but for languages; and streams of data,
            in which cameras keep that too.

    Returns:
        Notes on what could not be kept.

    Raises:
        UserError: the result cannot be written.
    """
    notes: list[str] = []
    with replacing(target) as temporary, open_video(av, source) as original, open_video(av, segments[0]) as first:
        options = {"fflags": "bitexact"}  # no random identifiers: the same input gives the same bytes
        with av.open(str(temporary), "w", options=options) as result:
            video = result.add_stream_from_template(first.streams.video[0])
            video.time_base = time_base
            old = original.streams.video[0]
            # the time code is a track in MP4 and MOV, which is not written for a stream that is copied from segments
            left_out = ("timecode",) if target.suffix.lower() != ".mkv" else ()
            _describe(video, old, *left_out, strip=strip)
            if left_out and "timecode" in {*old.metadata, *original.metadata}:
                notes.append("the time code is left out; Matroska keeps it")
            copies: dict[int, Any] = {}
            chapters, lost = _chapters(original, result)
            notes += lost
            for stream in original.streams:
                if stream.type == "video" or _is_written_anew(stream, chapters):
                    continue
                if strip and stream.type == "data":
                    notes.append(f"stream {stream.index} ({stream.type}) is left out, as --strip-metadata asks")
                elif _can_be_copied(av, stream, target):
                    copies[stream.index] = _describe(result.add_stream_from_template(stream), stream, strip=strip)
                else:
                    notes.append(f"stream {stream.index} ({stream.type}) cannot be copied and is left out")
            own = ("rotate", "major_brand", "minor_version", "compatible_brands", "encoder", *left_out)
            if not strip:
                result.metadata.update({k: v for k, v in original.metadata.items() if k.lower() not in own})
            packets = heapq.merge(
                _timed(_packets(av, segments), 0, video),
                *(_timed(_copied(av, source, index), index + 1, copy) for index, copy in copies.items()),
                key=lambda item: item[:3],
            )
            for _, _, _, packet, stream in packets:
                packet.stream = stream
                result.mux_one(packet)
    return notes


def _chapters(original: Any, result: Any) -> tuple[bool, list[str]]:
    """Copy the chapters: whether there are any, and a note where they are lost."""
    chapters = original.chapters()
    if chapters and not hasattr(result, "set_chapters"):
        return True, ["the chapters are left out: this PyAV does not write them"]
    if chapters:
        result.set_chapters(chapters)
    return bool(chapters), []


def _is_written_anew(stream: Any, chapters: bool) -> bool:
    """MP4 and MOV hold the chapters and the time code as streams too: those are written anew, these are noted."""
    return bool(stream.type == "data" and ((chapters and stream.name == "bin_data") or "timecode" in stream.metadata))


def _can_be_copied(av: Any, stream: Any, target: Path) -> bool:
    """Whether a container of that kind takes the stream: tried in memory, since a refusal comes with the header."""
    try:
        with av.open(io.BytesIO(), "w", format=_FORMATS[target.suffix.lower()]) as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (av.FFmpegError, ValueError, TypeError, AttributeError, NotImplementedError):
        return False
    return True


def _packets(av: Any, segments: list[Path]) -> Iterator[Any]:
    for path in segments:
        with open_video(av, path) as container:
            for packet in container.demux(video=0):
                if packet.dts is not None:
                    yield packet


def _copied(av: Any, source: Path, index: int) -> Iterator[Any]:
    with open_video(av, source) as container:
        for packet in container.demux(container.streams[index]):
            if packet.dts is not None or packet.pts is not None:
                yield packet


def _timed(packets: Iterator[Any], order: int, stream: Any) -> Iterator[tuple[Fraction, int, int, Any, Any]]:
    for i, packet in enumerate(packets):
        yield _seconds(packet), order, i, packet, stream


def _seconds(packet: Any) -> Fraction:
    time: Fraction = (packet.dts if packet.dts is not None else packet.pts) * packet.time_base
    return time


def _describe(stream: Any, like: Any, *left_out: str, strip: bool = False) -> Any:
    own = ("rotate", "encoder", *left_out)
    kept = {k: v for k, v in like.metadata.items() if k.lower() not in own and (not strip or k.lower() == "language")}
    stream.metadata.update(kept)
    with suppress(AttributeError):
        stream.disposition = like.disposition
    return stream


def reason_of(error: Exception) -> str:
    """An error of FFmpeg's in a few words."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower().rstrip(".")
