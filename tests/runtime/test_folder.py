"""Folders: the tree is mirrored, sources stay, one bad file stops nothing, and a run that is stopped can go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.interruptions import cubic_engine, interrupt
from runtime.errors import UserError
from runtime.folder import plan_folders, refuse_links
from runtime.manifest import NAME, Entry, open_manifest, read_manifest, write_manifest
from tests.conftest import ROOT, Script

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def cubic(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("engine") / "cubic_x4.onnx"
    cubic_engine(path)
    return f"ort:{path}"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures in a tree, with a damaged one, files that are no pictures, and a hidden one."""
    folder = tmp_path / "photos"
    (folder / "trip/day 2").mkdir(parents=True)
    for name in ("a.png", "a.jpg", "trip/b.webp", "trip/day 2/ü.tiff"):
        Image.fromarray(PIXELS).save(folder / name)
    (folder / "trip/bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "notes.txt").write_text("no picture")
    Image.fromarray(PIXELS).save(folder / ".hidden.png")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_mirrored_and_goes_on_where_it_stopped(
    script: Script, photos: Path, tmp_path: Path, cubic: str
) -> None:
    before, out = tree(photos), tmp_path / "out"
    done = script("runtime/infer.py", photos, "-o", out, "--engine", cubic, "--json", "-")
    assert done.returncode == 3, done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith("error: ")
    assert "bad.png cannot be decoded" in done.stderr
    results = tree(out)
    assert sorted(results) == [
        "a_jpg_x4.png", "a_png_x4.png", NAME, "trip/b_x4.png", "trip/day 2/ü_x4.png",
    ]  # fmt: skip
    assert all(Image.open(out / name).size == (128, 96) for name in results if name != NAME)
    assert tree(photos) == before
    report = json.loads(done.stdout)
    assert {k: v for k, v in report["summary"].items() if k != "seconds"} == {
        "done": 4, "skipped": 0, "failed": 1, "no_pictures": 2,
    }  # fmt: skip

    (out / "a_png_x4.png").unlink()
    (out / "a_jpg_x4.png").write_bytes(b"spoiled")
    Image.fromarray(255 - PIXELS).save(photos / "trip/b.webp")
    inode = (out / "trip/day 2/ü_x4.png").stat().st_ino
    again = script("runtime/infer.py", photos, "-o", out, "--engine", cubic, "--json", "-")
    assert again.returncode == 3
    summary = json.loads(again.stdout)["summary"]
    assert (summary["done"], summary["skipped"]) == (3, 1), "the lost, the spoiled and the changed are made again"
    assert (out / "trip/day 2/ü_x4.png").stat().st_ino == inode
    after = tree(out)
    assert {name: content for name, content in after.items() if name not in (NAME, "trip/b_x4.png")} == {
        name: content for name, content in results.items() if name not in (NAME, "trip/b_x4.png")
    }
    other = script("runtime/infer.py", photos, "-o", out, "--engine", cubic, "--overlap", 16, "--json", "-")
    assert json.loads(other.stdout)["summary"]["done"] == 4, "other options are another result"


def test_skip_existing_leaves_what_is_there(script: Script, photos: Path, tmp_path: Path, cubic: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a_png_x4.png").write_bytes(b"mine")
    done = script("runtime/infer.py", photos, "-o", tmp_path / "out", "--engine", cubic, "--skip-existing")
    assert done.returncode == 3
    assert (tmp_path / "out/a_png_x4.png").read_bytes() == b"mine"
    assert (tmp_path / "out/a_jpg_x4.png").is_file()


def test_what_a_folder_run_refuses(script: Script, photos: Path, tmp_path: Path, cubic: str) -> None:
    (tmp_path / "empty.png").mkdir()
    (tmp_path / "file").write_text("")
    cases: list[tuple[list[object], str]] = [
        ([photos, "-o", photos], "lie among the pictures"),
        ([photos, "-o", tmp_path / "file"], "is no folder"),
        ([photos, "-o", tmp_path / "out.png"], "is no folder"),
        ([photos, "-o", tmp_path / "nowhere/out"], "does not exist"),
        ([photos, "-o", "/proc/out"], "Cannot make the folder /proc/out"),
        ([photos / "a.png", "-o", "/proc/out"], "Cannot make the folder /proc/out"),
        ([tmp_path / "empty.png", "-o", tmp_path / "out"], "There is no picture at"),
        ([photos, photos / "trip"], "Name a folder for the results"),
    ]
    for arguments, message in cases:
        done = script("runtime/infer.py", *arguments, "--engine", cubic)
        assert done.returncode == 2, (arguments, done.stderr)
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_folders_may_have_dots_in_their_names(script: Script, photos: Path, tmp_path: Path, cubic: str) -> None:
    dotted = tmp_path / "2024.05.01 Trip"
    photos.rename(dotted)
    assert script("runtime/infer.py", dotted, "--engine", cubic).returncode == 3  # one picture is damaged
    assert (tmp_path / "2024.05.01 Trip_x4/a_png_x4.png").is_file()
    done = script("runtime/infer.py", dotted / "a.png", dotted / "a.jpg", "-o", tmp_path / "v1.0", "--engine", cubic,
                  "--format", "same")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "v1.0").iterdir())) == 2


def test_names_that_are_no_unicode_are_upscaled_and_said(script: Script, tmp_path: Path, cubic: str) -> None:
    folder = tmp_path / "latin"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.fromarray(PIXELS).save(folder / name)
    except OSError:
        pytest.skip("this file system has only names that are Unicode")
    done = script(
        "runtime/infer.py", folder, "-o", tmp_path / "out", "--engine", cubic, "--format", "jpg", "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert Path(result["output"]).is_file()
    alone = script("runtime/infer.py", folder / name, "--engine", cubic, PYTHONIOENCODING="utf-8:strict")
    assert alone.returncode == 0, alone.stderr
    assert "caf\\udce9_x4.png" in alone.stdout


def test_results_inside_the_source_are_not_upscaled_again(photos: Path) -> None:
    out = photos / "out"
    out.mkdir()
    first = plan_folders([photos], out, label="x4", ending=".png")
    Image.fromarray(PIXELS).save(out / "a_png_x4.png")
    assert plan_folders([photos], out, label="x4", ending=".png").jobs == first.jobs


def test_two_folders_and_one_name(photos: Path, tmp_path: Path) -> None:
    plan = plan_folders([photos, photos / "trip", photos / "a.png"], tmp_path / "out", label="x2", ending=None)
    assert {job.result for job in plan.jobs} == {
        "photos/a_png_x2.png", "photos/a_jpg_x2.jpg", "photos/trip/b_x2.webp", "photos/trip/bad_x2.png",
        "photos/trip/day 2/ü_x2.tiff", "trip/b_x2.webp", "trip/bad_x2.png", "trip/day 2/ü_x2.tiff", "a_x2.png",
    }  # fmt: skip
    with_same_name = plan_folders([photos / "a.png", photos / "a.png"], tmp_path / "out", label="x2", ending=None)
    assert (len(with_same_name.jobs), len(with_same_name.refused)) == (1, 1)


def test_links_and_dots_lead_nowhere(script: Script, photos: Path, tmp_path: Path, cubic: str) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    (out / "trip").symlink_to(outside, target_is_directory=True)
    (out / "a_png_x4.png").symlink_to(photos / "a.png")
    before = tree(photos)
    done = script("runtime/infer.py", photos, "-o", out, "--engine", cubic)
    assert done.returncode == 3
    assert done.stderr.count("is a symlink") == 3  # b.webp, bad.png, ü.tiff; a.png would be a source
    assert "would be overwritten" in done.stderr
    assert list(outside.iterdir()) == []
    assert tree(photos) == before
    for path in ("../a.png", "a/../../b.png", str(tmp_path / "a.png")):
        with pytest.raises(UserError, match="leads out"):
            refuse_links(out, path)


def test_what_is_no_file_is_not_opened(script: Script, photos: Path, tmp_path: Path, cubic: str) -> None:
    """A link to a device gives bytes for ever, and a pipe none."""
    (photos / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(photos / "pipe.png")
    done = script("runtime/infer.py", photos, "-o", tmp_path / "out", "--engine", cubic, "--json", "-")
    assert done.returncode == 3
    errors = {Path(r["input"]).name: r["error"] for r in json.loads(done.stdout)["results"] if "error" in r}
    assert set(errors) == {"zero.png", "pipe.png", "bad.png"}
    assert "cannot be read: it is no file" in errors["zero.png"]


def test_a_link_in_the_source_is_no_way_out_and_no_circle(photos: Path, tmp_path: Path) -> None:
    (photos / "loop").symlink_to(photos, target_is_directory=True)
    assert len(plan_folders([photos], tmp_path / "out", label="x4", ending=".png").jobs) == 5


ENTRY = Entry("a.png", "a_x4.png", "0" * 64, "1" * 64, "done", "2" * 64)


def test_a_manifest_round_trips_and_a_cut_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / NAME
    write_manifest(path, {"a_x4.png": ENTRY})
    whole = path.read_bytes()
    assert read_manifest(path) == {"a_x4.png": ENTRY}
    path.write_bytes(whole + whole[:40])
    with open_manifest(tmp_path) as manifest:
        assert manifest.entries == {"a_x4.png": ENTRY}
        manifest.add(Entry("b", "b_x4", "", "", "failed", error="a\nb\u2028ü"))
        with pytest.raises(UserError, match="Another run"), open_manifest(tmp_path):
            pass
    assert len(read_manifest(path)) == 2


@pytest.mark.parametrize(
    "line",
    [
        b"hello", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b"null",
        json.dumps({**ENTRY.__dict__, "output": "../a.png"}).encode(),
        json.dumps({**ENTRY.__dict__, "output": "/etc/passwd"}).encode(),
        json.dumps({**ENTRY.__dict__, "input": "a\0"}).encode(),
        json.dumps({**ENTRY.__dict__, "status": "perhaps"}).encode(),
        json.dumps({**ENTRY.__dict__, "input_sha256": "no sum"}).encode(),
        json.dumps({**ENTRY.__dict__, "more": "x"}).encode(),
        json.dumps({**ENTRY.__dict__, "error": 3}).encode(),
    ],
)  # fmt: skip
def test_a_manifest_of_others_is_refused_with_a_reason(tmp_path: Path, line: bytes) -> None:
    (tmp_path / NAME).write_bytes(line + b"\n")
    with pytest.raises(UserError, match="damaged in line 1"):
        read_manifest(tmp_path / NAME)


def test_a_manifest_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="symlink"), open_manifest(tmp_path):
        pass


def test_killed_runs_end_with_the_same_bytes(tmp_path: Path) -> None:
    """The small form of ``python benchmarks/interruptions.py --kills 200``."""
    report = interrupt(tmp_path, kills=6, pictures=24)
    assert report["kills"] == 6
    assert report["kills_at_work"] >= 2
    assert (report["sets_that_differ"], report["temporary_files_left"], report["sources_touched"]) == (0, 0, 0)


def test_ctrl_c_says_how_far_it_came_and_the_next_run_goes_on(tmp_path: Path, cubic: str) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(150):
        Image.fromarray(PIXELS).save(tmp_path / f"photos/{i:03}.png")
    command = [sys.executable, ROOT / "runtime/infer.py", "photos", "-o", "out", "--engine", cubic, "--threads", "1"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )  # fmt: skip
    manifest = tmp_path / "out" / NAME
    while not (manifest.is_file() and manifest.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    there = len(list((tmp_path / "out").glob("*.png")))
    assert 5 <= there < 150
    done = subprocess.run([*command, "--json", "-"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    summary = json.loads(done.stdout)["summary"]
    assert summary["skipped"] == there
    assert summary["done"] == 150 - there


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everywhere")
def test_a_folder_that_cannot_be_read_is_a_failure(photos: Path, tmp_path: Path) -> None:
    (photos / "trip").chmod(0)
    plan = plan_folders([photos], tmp_path / "out", label="x4", ending=".png")
    (photos / "trip").chmod(0o700)
    assert len(plan.jobs) == 2
    assert "cannot be read" in plan.refused[0][1]
