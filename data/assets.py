"""Named assets: image sets and weights of others, found on the disk or fetched, with their sums.

``GMIN_DATA`` names the folder where they lie; unset, it is the user's cache folder, which is filled on demand. Every
file has a pinned source and a SHA-256 in ``assets.json``. They belong to others (see ``licence``) and are never part
of this repository.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from runtime.errors import UserError


@dataclass(frozen=True)
class Asset:
    """A set of files from one source."""

    name: str
    source: str
    """Address of the one file, or of the folder (ending in "/") of several."""
    licence: str
    folder: str
    """Where they lie below the data folder."""
    files: dict[str, str]
    """File name to hex SHA-256, of the file or, after "pixels:", of its RGB pixels."""


@lru_cache(maxsize=1)
def assets() -> dict[str, Asset]:
    """All named assets by name, such as ``benchmarks/BSD100`` and ``weights/lkdn_x4.pth``."""
    content = json.loads((Path(__file__).with_name("assets.json")).read_text())["assets"]
    return {name: Asset(name=name, **entry) for name, entry in content.items()}


def data_folder() -> Path:
    """The folder of all assets: ``GMIN_DATA``, or the user's cache folder.

    Raises:
        UserError: ``GMIN_DATA`` is set and names no folder.
    """
    named = os.environ.get("GMIN_DATA")
    if named:
        if not Path(named).is_dir():
            raise UserError(f"GMIN_DATA names {named}, which is no folder.")
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("gmin-edge")


def located(name: str) -> Path:
    """The folder or file of an asset, fetched first where it is missing.

    Raises:
        UserError: the asset is unknown, or it is missing and cannot be fetched; the message says what to do.
    """
    root = data_folder()
    if (root / name).exists() and not (root / name / ".partial").exists():
        return root / name
    if name not in assets():
        raise UserError(f"{root / name} is missing, and no asset of that name can be fetched.")
    asset = assets()[name]
    if os.environ.get("GMIN_DATA"):
        raise UserError(f"{root / name} is missing; GMIN_DATA is set, so nothing is fetched (source: {asset.source}).")
    return fetch(asset, root)


def fetch(asset: Asset, root: Path) -> Path:
    """Fetch an asset into ``root``, check every sum, and return the folder or file.

    Raises:
        UserError: no network, no downloader, or a file is not the one that is pinned.
    """
    try:
        import pooch
    except ImportError as error:
        raise UserError(f"{asset.name} must be fetched, which needs pooch: pip install 'gmin-edge[data]'.") from error
    pooch.get_logger().setLevel("WARNING")
    folder = root / asset.folder
    folder.mkdir(parents=True, exist_ok=True)
    several = asset.source.endswith("/")
    unfinished = root / asset.name / ".partial"
    if several:
        unfinished.touch()
    for file, checksum in asset.files.items():
        pixels = checksum.startswith("pixels:")
        try:
            pooch.retrieve(
                url=asset.source + file if several else asset.source,
                known_hash=None if pixels else f"sha256:{checksum}",
                fname=file,
                path=folder,
                progressbar=False,
            )
        except Exception as error:  # requests and pooch raise many kinds; all mean that it cannot be had
            raise UserError(
                f"{asset.name} cannot be fetched from {asset.source} ({type(error).__name__}). Put it into {folder} "
                "yourself, or set GMIN_DATA to a folder that holds it."
            ) from error
        if pixels and _pixel_sum(folder / file) != checksum.removeprefix("pixels:"):
            (folder / file).unlink()
            raise UserError(f"{file} of {asset.name} is not the picture that is pinned; it was removed.")
    if several:
        unfinished.unlink()
        return root / asset.name
    return folder / next(iter(asset.files))


def _pixel_sum(path: Path) -> str:
    from runtime.images import read_picture

    return hashlib.sha256(np.ascontiguousarray(read_picture(path).colour).tobytes()).hexdigest()
