"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from runtime.errors import UserError

_UMASK = os.umask(0o077)  # can only be read by setting it, and that is of the whole process: once, before any thread
os.umask(_UMASK)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, of the same ending, that replaces it when the block ends without an error.

    What was written is flushed to the disk first; on an error nothing is left and an older file stays as it was.

    Raises:
        UserError: the folder does not exist, or the file cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f".part{path.suffix}")
    except OSError as error:
        raise UserError(f"Cannot write {path}: {_reason(error)}.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        try:
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(0o666 & ~_UMASK)  # mkstemp's 0600 is right for secrets, not for results
            temporary.replace(path)
        except OSError as error:
            raise UserError(f"Cannot write {path}: {_reason(error)}.") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary stream that becomes ``path`` only when the block ends without an error (see ``replacing``)."""
    with replacing(Path(path)) as temporary, temporary.open("wb") as stream:
        yield stream


def check_writable(path: Path) -> None:
    """Refuse, before any work is done, an output that could not be written at the end.

    Raises:
        UserError: the path is a folder, its folder is missing, or it may not be written.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file.")
    parent = path.parent
    if not parent.is_dir():
        raise UserError(f"Cannot write {path}: the folder {parent} does not exist.")
    if not os.access(parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UserError(f"Cannot write {path}: permission denied.")


def check_folder(path: Path) -> None:
    """Refuse, before any work is done, a folder that could not be made or written into later.

    Raises:
        UserError: something along the path is no folder, or may not be written.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"Cannot make the folder {path}: {there} is a file.")
    if not os.access(there, os.W_OK):
        raise UserError(f"Cannot write into {path}: permission denied.")


def make_folder(path: Path) -> None:
    """Make a folder where there is none.

    Raises:
        UserError: it cannot be made, or the folder around it is missing.
    """
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder {path}: {_reason(error)}.") from error


def cache_folder() -> Path:
    """Where this project keeps what it has found out, built or fetched for this user."""
    from platformdirs import user_cache_path

    return user_cache_path("gmin-edge")


def private_folder(path: Path) -> Path:
    """``path`` as a folder that only this user may enter, made where it is missing.

    Raises:
        UserError: it cannot be made, or another user owns it or may write into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = path.stat()
    except OSError as error:
        raise UserError(f"Cannot use the folder {path}: {_reason(error)}.") from error
    if hasattr(os, "getuid") and (state.st_uid != os.getuid() or state.st_mode & 0o022):
        raise UserError(f"Others may write into {path}, so nothing in it can be trusted: remove it, or chmod 700 it.")
    return path


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
