"""The tags of a TIFF file, which are those of EXIF too: read, put into other byte order, and written.

OpenCV reads and writes the pixels of a TIFF and none of what else it carries.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

PHOTOMETRIC, ORIENTATION, PLANAR, EXTRA_SAMPLES, ICC_PROFILE, XMP = 262, 0x0112, 284, 338, 34675, 700
DESCRIBING = (270, 271, 272, 282, 283, 296, 305, 306, 315, 33432)
"""Tags of the first directory that describe the photo and not how its pixels lie in the file."""
CHILDREN = (34665, 34853)
"""Tags that point at a directory of their own: EXIF, GPS."""
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_WORDS = {**_SIZES, 5: 4, 10: 4}  # a rational is two words
_MOST_TAGS = 4096
_MOST_BYTES = 1 << 26


@dataclass
class Directory:
    """Tags of one directory: number to (type, raw bytes in the byte order of ``order``, "<" or ">")."""

    order: str
    tags: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    children: dict[int, Directory] = field(default_factory=dict)
    next: int = 0
    """Where the next directory (page, or thumbnail) lies; 0 for none."""

    def number(self, tag: int) -> int | None:
        """The first value of a BYTE, SHORT or LONG tag; None where it is not there or of another type."""
        kind, raw = self.tags.get(tag, (0, b""))
        form = {1: "B", 3: "H", 4: "I"}.get(kind)
        return None if form is None or not raw else int(struct.unpack_from(self.order + form, raw)[0])


def read_directory(content: bytes) -> Directory | None:
    """The first directory of a TIFF structure, with its EXIF and GPS; None where it is none or damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(content[:4])
    if order is None or len(content) < 8:
        return None
    return _read(content, order, struct.unpack_from(order + "I", content, 4)[0], deep=True)


def exif_of(directory: Directory) -> bytes:
    """What a TIFF file says of the photo, as an EXIF block; b"" where that is nothing."""
    kept = {tag: value for tag, value in directory.tags.items() if tag in DESCRIBING}
    if not kept and not directory.children:
        return b""
    head = (b"II*\0" if directory.order == "<" else b"MM\0*") + struct.pack(directory.order + "I", 8)
    return head + _pack(Directory(directory.order, kept, directory.children), directory.order, 8)


def add_tags(path: Path, *, exif: bytes = b"", icc: bytes = b"", xmp: bytes = b"") -> None:
    """Add what describes the photo to a TIFF file of one page. Its pixels stay where they are."""
    with path.open("rb+") as stream:
        head = stream.read(8)
        order = "<" if head[:2] == b"II" else ">"
        (start,) = struct.unpack_from(order + "I", head, 4)
        stream.seek(start)
        (count,) = struct.unpack(order + "H", stream.read(2))
        entries = stream.read(12 * count)
        added = Directory(order)
        source = read_directory(exif)
        if source is not None:
            added.tags = {
                tag: (kind, _turned(kind, raw, source.order, order))
                for tag, (kind, raw) in source.tags.items()
                if tag in DESCRIBING
            }
            added.children = source.children
        added.tags |= {tag: (7, raw) for tag, raw in ((ICC_PROFILE, icc),) if raw}
        added.tags |= {tag: (1, raw) for tag, raw in ((XMP, xmp),) if raw}
        new = {*added.tags, *added.children}
        kept = {}
        for at in range(0, len(entries), 12):
            (tag,) = struct.unpack_from(order + "H", entries, at)
            if tag not in new:
                kept[tag] = entries[at : at + 12]
        stream.seek(0, 2)
        stream.write(b"\0" * (stream.tell() % 2))
        end = stream.tell()
        stream.write(_pack(added, order, end, kept))
        stream.seek(4)
        stream.write(struct.pack(order + "I", end))


def set_upright(exif: bytes) -> bytes:
    """An EXIF block with its orientation set to 1, since the pixels have been turned."""
    return with_number(exif, ORIENTATION, 1)


def with_number(exif: bytes, tag: int, value: int) -> bytes:
    """A TIFF structure in which a tag of the first directory, where it is there, is one SHORT of this value."""
    directory = read_directory(exif)
    if directory is None or tag not in directory.tags:
        return exif
    (start,) = struct.unpack_from(directory.order + "I", exif, 4)
    (count,) = struct.unpack_from(directory.order + "H", exif, start)
    changed = bytearray(exif)
    for at in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):  # whole entries only
        if struct.unpack_from(directory.order + "H", exif, at)[0] == tag:
            struct.pack_into(directory.order + "HHIHH", changed, at, tag, 3, 1, value, 0)
            break
    return bytes(changed)


def _read(content: bytes, order: str, start: int, *, deep: bool) -> Directory | None:
    directory, room = Directory(order), _MOST_BYTES
    try:
        (count,) = struct.unpack_from(order + "H", content, start)
        if count > _MOST_TAGS:
            return None
        for i in range(count):
            tag, kind, number = struct.unpack_from(order + "HHI", content, start + 2 + 12 * i)
            size = _SIZES.get(kind, 0) * number
            where = start + 10 + 12 * i
            if size > 4:
                (where,) = struct.unpack_from(order + "I", content, where)
            if not size or where + size > len(content) or size > room or tag in directory.tags:
                continue  # of an unknown type, outside of the file, too large to be a description, or named twice
            room -= size
            directory.tags[tag] = (kind, content[where : where + size])
            if deep and tag in CHILDREN:
                child = _read(content, order, directory.number(tag) or 0, deep=False)
                if child is not None:
                    directory.children[tag] = child
        (directory.next,) = struct.unpack_from(order + "I", content, start + 2 + 12 * count)
    except struct.error:  # points outside of the file
        return directory if directory.tags else None
    return directory


def _pack(directory: Directory, order: str, at: int, ready: dict[int, bytes] | None = None) -> bytes:
    """The bytes of a directory that will lie at ``at``; ``ready`` entries are taken as they are."""
    rows = dict(ready or {})
    numbers = sorted({*rows, *directory.children, *directory.tags})
    values = at + 2 + 12 * len(numbers) + 4
    body = bytearray()  # grows in place: there may be thousands of values

    def place(raw: bytes) -> int:
        body.extend(raw + b"\0" * (len(raw) % 2))
        return values + len(body) - len(raw) - len(raw) % 2

    for tag, child in directory.children.items():
        tags = {t: (k, _turned(k, raw, child.order, order)) for t, (k, raw) in child.tags.items()}
        packed = _pack(Directory(order, tags), order, values + len(body))
        rows[tag] = struct.pack(order + "HHII", tag, 4, 1, place(packed))
    for tag, (kind, raw) in directory.tags.items():
        if tag in rows:
            continue
        head = struct.pack(order + "HHI", tag, kind, len(raw) // _SIZES[kind])
        rows[tag] = head + (raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(order + "I", place(raw)))
    return struct.pack(order + "H", len(numbers)) + b"".join(rows[tag] for tag in numbers) + b"\0\0\0\0" + body


def _turned(kind: int, raw: bytes, source: str, target: str) -> bytes:
    if source == target or _WORDS[kind] == 1:
        return raw
    return bytes(np.frombuffer(raw, f"u{_WORDS[kind]}").byteswap().tobytes())
