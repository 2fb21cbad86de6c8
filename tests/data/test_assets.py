"""Named assets: what is pinned, what is refused."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from data.assets import Asset, assets, fetch, located
from data.sets import image_set, read_rgb
from runtime.errors import UserError


def test_every_asset_is_pinned() -> None:
    assert {"benchmarks/BSD100", "benchmarks/Set5", "benchmarks/Set14", "calibration/DIV2K"} <= set(assets())
    assert len(assets()["benchmarks/BSD100"].files) == 100
    for asset in assets().values():
        assert asset.source.startswith("https://")
        assert asset.licence
        assert all(len(checksum.removeprefix("pixels:")) == 64 for checksum in asset.files.values())


def test_the_sums_are_those_of_the_files(gmin_data: Path) -> None:
    checked = 0
    for asset in assets().values():
        for name, checksum in asset.files.items():
            file = gmin_data / asset.folder / name
            if not file.exists():  # BSD100 is on the disk as cropped PNGs, not as the pinned JPEGs
                assert asset.name == "benchmarks/BSD100"
                continue
            if checksum.startswith("pixels:"):
                assert hashlib.sha256(read_rgb(file).tobytes()).hexdigest() == checksum.removeprefix("pixels:")
            else:
                assert hashlib.sha256(file.read_bytes()).hexdigest() == checksum
            checked += 1
    assert checked > 120


def test_fetches_checks_and_refuses_another_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.bin").write_bytes(b"right")
    right = hashlib.sha256(b"right").hexdigest()
    asset = Asset("weights/a.bin", (source / "a.bin").as_uri(), "none", "weights", {"a.bin": right})
    with pytest.raises(UserError, match=r"cannot be fetched.*yourself"):  # file: is no protocol of the downloader
        fetch(asset, tmp_path / "cache")
    (tmp_path / "cache/weights/a.bin").write_bytes(b"right")
    assert fetch(asset, tmp_path / "cache").read_bytes() == b"right"


def test_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMIN_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"BSD100 is missing.*nothing is fetched"):
        located("benchmarks/BSD100")
    monkeypatch.setenv("GMIN_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no folder"):
        located("benchmarks/BSD100")


def test_a_folder_is_a_set(patch_folder: Path) -> None:
    images = image_set(str(patch_folder), 3)
    pairs = list(images)
    assert [pair.name for pair in pairs] == [str(i) for i in range(6)]
    assert pairs[0].hr.shape == (126, 126, 3)
    assert pairs[0].lr.shape == (42, 42, 3)
    assert pairs[0].hr.dtype == np.uint8


def test_an_unknown_or_empty_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a folder nor one of"):
        image_set("Set15", 4)
    with pytest.raises(UserError, match="holds no pictures"):
        image_set(str(tmp_path), 4)
