"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from runtime.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary stream that becomes ``path`` only when the block ends without an error.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and replace ``path`` in one step; on
    an error nothing is left and an older file stays as it was.

    Raises:
        UserError: the folder does not exist or cannot be written to.
    """
    path = Path(path)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise UserError(f"Cannot write {path}: {_reason(error)}.") from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 is right for secrets, not for results
        try:
            temporary.replace(path)
        except OSError as error:
            raise UserError(f"Cannot write {path}: {_reason(error)}.") from error
    finally:
        temporary.unlink(missing_ok=True)


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


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
