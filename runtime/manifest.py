"""What a folder run has done so far: one JSON line a picture, so that the same command goes on where it was stopped.

The file is a cache of facts that are checked again, never a list of orders: nothing is read from or written to a path
because the manifest names it. Whoever can write it can make a picture be left out, and no more.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from runtime.errors import UserError
from runtime.files import atomic_write

NAME = "gmin-manifest.jsonl"
LARGEST_BYTES = 1 << 28
"""A manifest of this size would have half a million pictures; what is larger is not ours."""
_SUM = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"input", "output", "input_sha256", "output_sha256", "options_sha256", "status", "error"}


@dataclass(frozen=True)
class Entry:
    """One picture. Paths are relative, with forward slashes; sums are SHA-256 in hexadecimal, "" where unknown."""

    input: str
    output: str
    input_sha256: str
    options_sha256: str
    status: Literal["done", "failed"]
    output_sha256: str = ""
    error: str = ""


def read_manifest(path: Path) -> dict[str, Entry]:
    """The last entry of each output; {} where there is no file. A last line that was cut off is left out.

    Raises:
        UserError: a symlink, too large, or a line that is no entry of ours.
    """
    if path.is_symlink():
        raise UserError(f"The manifest {path} is a symlink; remove it, or choose another folder for the results.")
    if not path.exists():
        return {}
    try:
        size = path.stat().st_size
        content = path.read_bytes() if path.is_file() and size <= LARGEST_BYTES else None
    except OSError as error:
        raise UserError(f"The manifest {path} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    if content is None:
        raise UserError(f"The manifest {path} is no file of at most {LARGEST_BYTES} bytes; remove it.")
    lines = content.split(b"\n")
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline was being written
        try:
            entry = _entry(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"The manifest {path} is damaged in line {number} ({error}); remove the file to start again."
            ) from error
        entries[entry.output] = entry
    return entries


def write_manifest(path: Path, entries: dict[str, Entry]) -> None:
    """Write all entries anew, sorted, whole or not at all."""
    with atomic_write(path) as stream:
        stream.write(b"".join(_line(entries[key]) for key in sorted(entries)))


class Manifest:
    """An open manifest, which one process at a time may hold. Made by ``open_manifest``; ``add`` is thread-safe."""

    def __init__(self, path: Path, entries: dict[str, Entry], handle: int) -> None:
        """Take over ``handle``, which is open for appending."""
        self.path = path
        self.entries = entries
        self._handle = handle
        self._lock = threading.Lock()

    def add(self, entry: Entry) -> None:
        """Note what became of a picture, at once and in one write."""
        with self._lock:
            self.entries[entry.output] = entry
            try:
                os.write(self._handle, _line(entry))
            except OSError as error:
                raise UserError(f"Cannot write {self.path}: {(error.strerror or str(error)).lower()}.") from error

    def finish(self) -> None:
        """Sort the file, so that a run that was stopped ends with the very bytes of one that was not."""
        with self._lock:
            write_manifest(self.path, self.entries)


@contextmanager
def open_manifest(folder: Path) -> Iterator[Manifest]:
    """The manifest of a folder of results, held against other processes until the block ends.

    Raises:
        UserError: as ``read_manifest``; another process writes into this folder; or no file can be made there.
    """
    path = folder / NAME
    read_manifest(path)  # refuse a symlink or a foreign file before it is opened for writing
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {(error.strerror or str(error)).lower()}.") from error
    try:
        _hold(handle, path)
        entries = read_manifest(path)
        _cut_unfinished_line(handle)
        yield Manifest(path, entries, handle)
    finally:
        os.close(handle)


def _hold(handle: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two runs into one folder are not told apart there
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(f"Another run is writing into {path.parent}; wait for it, or choose another folder.") from error


def _cut_unfinished_line(handle: int) -> None:
    content = os.pread(handle, LARGEST_BYTES, 0)
    with suppress(OSError):
        os.ftruncate(handle, content.rfind(b"\n") + 1)


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry), ensure_ascii=True, sort_keys=True).encode() + b"\n"


def _entry(value: Any) -> Entry:
    """Check one line.

    Raises:
        ValueError: not the fields of an entry, or a path that leads elsewhere.
    """
    if not isinstance(value, dict) or set(value) != _FIELDS or not all(isinstance(v, str) for v in value.values()):
        raise ValueError("not an entry")
    if value["status"] not in ("done", "failed"):
        raise ValueError("unknown status")
    for key in ("input", "output"):
        path = PurePosixPath(value[key])
        if not value[key] or path.is_absolute() or ".." in path.parts or "\0" in value[key]:
            raise ValueError(f"the {key} leads out of the folder")
    for key in ("input_sha256", "options_sha256", "output_sha256"):
        if value[key] and not _SUM.fullmatch(value[key]):
            raise ValueError(f"{key} is no SHA-256 sum")
    return Entry(**value)
