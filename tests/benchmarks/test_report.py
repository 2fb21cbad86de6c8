"""The report: its verdict on made-up measurements, its page in a browser, and the script from end to end."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from benchmarks.comparison import ACCEPTED_DROP_DB, QUICK, Row, Score, choose, entries, label_of, verdict
from benchmarks.layers import LayerProfile, LayerTime
from benchmarks.pictures import Shown, crops, data_address
from benchmarks.published import Published, PublishedScore
from benchmarks.readme import BEGIN, END, block, check_readme, figure, update_readme
from benchmarks.report import int8_lines, network_rows, render, write_report
from benchmarks.report_data import Report, Slider, as_json, from_json
from runtime.environment import Environment
from runtime.errors import UserError
from tests.benchmarks.chromium import Page, installed
from tests.conftest import ROOT, Script

PAPER = PublishedScore(27.67, None)
ORT, OPENVINO = "ONNX Runtime 9.9.9, CPU", "OpenVINO 9.9, CPU (f32)"


TARGETS = {"gmin_x4_int8.onnx": "tensorrt", "gmin_x4_int8_cpu.onnx": "cpu", "gmin_x4_int8_openvino.onnx": "openvino"}


def file_row(label: str, backend: str, file: str, *, ms: float, drop: float, base: float = 100.0) -> Row:
    return Row(
        label=label, network="gmin_x4", kind="file", file=file, backend=backend, target=TARGETS.get(file),
        engine=f"{'openvino' if backend == OPENVINO else 'ort'}:{file}",
        precision="int8-cpu" if "INT8" in label else "fp32", parameters=300_992, macs=17_010_000_000,
        flops=34_020_000_000, measured={"Set5": Score(30.8 - drop, 0.87)}, published={"BSD100": PAPER},
        drop_db={"Set5": drop}, median_ms=ms, p90_ms=1.1 * ms, ratio=ms / base,
    )  # fmt: skip


def network_row(label: str, psnr: float | None, published: float, *, ms: float | None = None, remark: str = "") -> Row:
    return Row(
        label=label, network=f"{label.lower()}_x4", kind="network", engine=None, file=None, backend=ORT,
        precision="fp32", remark=remark, parameters=321_992, macs=18_220_000_000, flops=36_440_000_000,
        measured={} if psnr is None else {"Set5": Score(psnr, 0.8979)},
        published={"Set5": PublishedScore(published, 0.8979)},
        median_ms=ms, p90_ms=ms, ratio=None if ms is None else ms / 100,
    )  # fmt: skip


def int8_row(label: str, drop: float | None, *, ratio: float | None = None) -> Row:
    return Row(
        label=f"{label} INT8 for ONNX Runtime", network=f"{label.lower()}_x4", kind="int8", target="cpu", file=None,
        engine=None if drop is None else f"ort:{label.lower()}_x4_int8_cpu", backend=ORT, precision="int8-cpu",
        remark="weights not present" if drop is None else "", ratio=ratio,
        measured={} if drop is None else {"Set5": Score(32.0, 0.89)}, drop_db={} if drop is None else {"Set5": drop},
    )  # fmt: skip


BASE = file_row("GMIN FP32", ORT, "gmin_x4.onnx", ms=100, drop=0.0)
FILES = [
    BASE,
    file_row("GMIN INT8 for ONNX Runtime", ORT, "gmin_x4_int8_cpu.onnx", ms=70, drop=0.05),
    file_row("GMIN INT8 for OpenVINO", OPENVINO, "gmin_x4_int8_openvino.onnx", ms=40, drop=0.01),
]
LKDN = network_row("LKDN", 32.391, 32.39, ms=130)


def test_the_fastest_file_within_the_accepted_drop_is_shipped() -> None:
    found = verdict([*FILES, LKDN], "Set5")
    assert found.file == "gmin_x4_int8_openvino.onnx"
    assert found.sentence == (
        "Ship gmin_x4_int8_openvino.onnx and run it with OpenVINO: 2.50 times as fast as FP32 in ONNX Runtime "
        "(40 ms against 100 ms for one picture), at a cost of 0.010 dB on Set5."
    )
    assert found.remarks[0].startswith("With ONNX Runtime alone, ship gmin_x4_int8_cpu.onnx: 1.43 times")
    assert "no GPU took part" in found.remarks[1]
    assert not any("no GPU" in remark for remark in verdict([*FILES, LKDN], "Set5", gpu=True).remarks)


def test_a_file_that_loses_too_much_is_not_shipped() -> None:
    lossy = file_row("GMIN INT8 for OpenVINO", OPENVINO, "lossy.onnx", ms=10, drop=ACCEPTED_DROP_DB + 0.01)
    assert choose([*FILES, lossy], "Set5").file == "gmin_x4_int8_openvino.onnx"


def test_of_files_alike_in_time_the_one_that_loses_less_is_shipped() -> None:
    near = file_row("GMIN FP32, computed in bf16", OPENVINO, "near.onnx", ms=41.5, drop=0.002)
    assert choose([*FILES, near], "Set5").file == "near.onnx"


def test_fp32_is_shipped_where_int8_is_slower() -> None:
    slow = file_row("GMIN INT8 for ONNX Runtime", ORT, "slow.onnx", ms=140, drop=0.05)
    assert verdict([BASE, slow], "Set5").sentence.startswith("Ship gmin_x4.onnx as it is")


def test_little_training_is_said_and_good_training_is_not() -> None:
    (remark,) = [r for r in verdict([*FILES, LKDN], "Set5").remarks if "training" in r]
    assert "30.80 dB on Set5, 1.59 dB below LKDN" in remark
    assert "its paper prints 27.67 dB on BSD100" in remark
    assert "1.30 times the FP32 time" in remark
    trained = replace(BASE, measured={"Set5": Score(32.38, 0.898)})
    assert not [r for r in verdict([trained, *FILES[1:], LKDN], "Set5").remarks if "training" in r]


def test_without_times_nothing_is_recommended() -> None:
    assert verdict([LKDN], "Set5").file is None


def test_every_planned_network_has_a_name_as_papers_print_it(gmin_data: Path) -> None:
    planned = entries(QUICK)
    assert planned[0].file == "gmin_x4.onnx"
    assert [(e.label, e.spec) for e in planned if e.kind == "network"] == [
        ("LKDN", "ort:lkdn_x4"), ("BSRN", "ort:bsrn_x4"), ("HNCT", None),
    ]  # fmt: skip
    assert label_of("smfanet_plus_x4") == "SMFANet+"


@pytest.fixture(scope="module")
def report(photo: np.ndarray) -> Report:
    """Made-up figures around real pictures, with markup where a name could carry some."""
    original = np.ascontiguousarray(photo[:128, :192])
    soft = cv2.GaussianBlur(original, (0, 0), 2)
    versions = {"INT8 for OpenVINO": np.clip(soft.astype(int) + 2, 0, 255).astype(np.uint8)}
    right = Shown("INT8 for OpenVINO", data_address(versions["INT8 for OpenVINO"]), 30.1)
    hnct = network_row("HNCT", None, 32.31, remark="weights not present")
    int8 = (int8_row("LKDN", 0.0825, ratio=0.65), int8_row("HNCT", None))
    rows = (*FILES, LKDN, network_row("<b>net & co</b>", 31.0, 31.5, ms=90), hnct, *int8)
    profiles = tuple(
        LayerProfile(name, ORT, "320x180", 2, 3, 30.0, (LayerTime("convolution 1×1", (kind,), 37, 30.0),))
        for name, kind in (("gmin_x4.onnx", "Conv"), ("gmin_x4_int8_cpu.onnx", "QLinearConv"))
    )
    return Report(
        command="python benchmarks/report.py --quick", quick=True, sets=("Set5",), size="320x180", rounds=5,
        verdict=verdict(rows, "Set5"), rows=rows,
        published=(Published("Other <i>", None, 100.0, None, ("a paper",), ("a note",), {"Set5": PAPER}),),
        profiles=profiles,
        sliders=tuple(
            Slider(Shown(label, data_address(image), 29.0), right, 192, 128)
            for label, image in (("Bicubic", soft), ("FP32", original))
        ),
        crops=tuple(crops(original, soft, soft, versions, size=48)),
        environment=Environment(
            date="2026-01-02T03:04:05+00:00", processor="a made-up processor", features=["avx2"], cores=2, threads=2,
            clock_mhz=None, highest_clock_mhz=None, governor=None, power_mode=None, accelerators=[], memory_gb=1.0,
            system="none", python="3.x", libraries={"numpy": "0"},
        ),
        protocol={"Quality": "as papers"}, warnings=("The machine was busy.",), weights="SHA-256 made up",
    )  # fmt: skip


def test_the_page_asks_nobody_for_anything(report: Report) -> None:
    page, _ = render(report)
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert "@import" not in page
    assert "url(" not in page
    assert " style=" not in page
    assert not re.search(r"\son\w+=", page)


def test_the_policy_allows_the_style_and_the_script_of_the_page_and_no_others(report: Report) -> None:
    page, _ = render(report)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_names_cannot_bring_markup(report: Report) -> None:
    page, _ = render(report)
    assert "<b>net" not in page
    assert "&lt;b&gt;net &amp; co&lt;/b&gt;" in page
    assert "Other &lt;i&gt;" in page


def test_what_is_absent_is_said_beside_what_is_published(report: Report) -> None:
    page, markdown = render(report)
    row = next(line for line in markdown.splitlines() if line.startswith("| HNCT"))
    assert "weights not present" in row
    assert [cell.strip() for cell in row.split("|")][5:8] == ["–", "32.31", "–"]
    assert "with less training" in next(line for line in markdown.splitlines() if line.startswith("| GMIN"))
    assert "weights not present" in page
    assert "HNCT (published)" in page


def test_markdown_tables_are_whole(report: Report) -> None:
    _, markdown = render(report)
    tables = [part for part in markdown.split("\n\n") if part.startswith("|")]
    assert len(tables) == 4
    for part in tables:
        assert len({line.count("|") for line in part.splitlines()}) == 1
    assert report.verdict.sentence in markdown
    assert "LKDN | 321 992 | 18.22 | 36.44 | 32.39 | 32.39 | +0.00 |".replace("321 ", "321\u202f") in markdown


def test_other_networks_in_int8_are_held_against_themselves(report: Report) -> None:
    assert [(line["label"], line["cells"][1]) for line in int8_lines(report)] == [
        ("GMIN", "0.050 dB, ×1.43"),
        ("LKDN", "0.083 dB, ×2.00"),
        ("HNCT", "weights not present"),
    ]
    page, markdown = render(report)
    assert "0.083 dB, ×2.00" in page
    assert "| HNCT | – | weights not present | – |" in markdown
    assert int8_lines(replace(report, rows=tuple(row for row in report.rows if row.kind != "int8"))) == []


def test_a_report_comes_back_from_its_json(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    again = from_json(tmp_path / "report.json")
    assert (again.rows, again.verdict, again.environment) == (report.rows, report.verdict, report.environment)
    assert block(again) == block(report)
    assert figure(again) == figure(report)


def test_the_readme_is_changed_between_the_markers_only(report: Report, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    update_readme(report, readme)
    text = readme.read_text()
    assert text.startswith(f"# Before\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "old" not in text
    assert report.verdict.sentence in text
    assert "2026-01-02, 03:04 UTC on a made-up processor, 2 threads" in text
    assert "GMIN's weights: SHA-256 made up" in text
    assert "with less training" in next(line for line in text.splitlines() if line.startswith("| GMIN"))
    for part in text.split("\n\n"):
        if part.startswith("|"):
            assert len({line.count("|") for line in part.strip().splitlines()}) == 1
    update_readme(from_json(tmp_path / "docs/comparison.json"), readme)
    assert readme.read_text() == text


def test_the_figure_stands_alone(report: Report) -> None:
    text = figure(report)
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in text
    assert "<b>" not in text
    assert not re.search(r"(?:href|src|url\()", text)


def test_the_readme_holds_what_was_measured() -> None:
    """Nobody edits figures by hand: --from docs/comparison.json --readme README.md would change nothing."""
    report = from_json(ROOT / "docs/comparison.json")
    assert f"{BEGIN}\n\n{block(report)}\n{END}" in (ROOT / "README.md").read_text()
    assert (ROOT / "docs/images/comparison.svg").read_text() == figure(report)
    shipped = hashlib.sha256((ROOT / "model/weights/gmin_x4.safetensors").read_bytes()).hexdigest()
    assert report.weights == f"SHA-256 {shipped[:12]}"  # and it is of the files that ship


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Cannot read"),
        ("no json", "is no JSON"),
        ('{"schema": 1}', "no report.json of this version"),
        ('{"schema": 2, "rows": 3}', "no report.json of this version"),
    ],
)
def test_other_files_are_no_report(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        from_json(path)


@pytest.mark.parametrize("text", ["nothing", f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}"])
def test_a_readme_without_its_markers_is_refused_before_anything_is_measured(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UserError, match="needs two lines"):
        check_readme(tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == text


def test_json_is_strict_and_without_pictures(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    text = (tmp_path / "report.json").read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert content == json.loads(json.dumps(as_json(report)))
    assert "data:image" not in text
    assert content["rows"][0]["measured"]["Set5"]["psnr_y_db"] == 30.8
    assert content["verdict"]["file"] == "gmin_x4_int8_openvino.onnx"


def test_differences_are_measured_minus_published(report: Report) -> None:
    rows = {row.label: row for row in network_rows(report)}
    assert rows["LKDN"].difference("Set5") == pytest.approx(0.001)
    assert rows["HNCT"].difference("Set5") is None


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Page]:
    program = installed()
    if program is None:
        pytest.skip("needs Chromium on the PATH: apt-get install chromium")
    page = Page(program, tmp_path / "profile", width=1000, height=800)
    yield page
    page.close()


def test_the_page_works_offline_in_a_browser(browser: Page, report: Report, tmp_path: Path) -> None:
    browser.open(write_report(report, tmp_path))
    asked = [address for address in browser.requests() if not address.startswith("data:")]
    assert asked == [(tmp_path / "report.html").as_uri()]
    assert browser.complaints() == []
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")

    cut = "getComputedStyle(document.querySelector('.over')).clipPath"
    assert "50%" in browser.evaluate(cut)
    browser.evaluate("document.querySelector('.stage').scrollIntoView({block: 'center'})")
    left, top, width, height = browser.evaluate(
        "(b => [b.left, b.top, b.width, b.height])(document.querySelector('.stage').getBoundingClientRect())"
    )
    middle = top + height / 2
    browser.drag((left + width / 2, middle), (left + 0.8 * width, middle))
    value = browser.evaluate("Number(document.querySelector('.stage input').value)")
    assert abs(value - 80) <= 2
    assert f"{value}%" in browser.evaluate(cut)
    browser.press("ArrowRight", 39)
    browser.press("ArrowRight", 39)
    assert browser.evaluate("Number(document.querySelector('.stage input').value)") == value + 2
    assert f"{value + 2}%" in browser.evaluate(cut)
    assert "Bicubic" in browser.evaluate("document.querySelector('.stage input').getAttribute('aria-valuetext')")
    browser.press("Home", 36)
    assert "0%" in browser.evaluate(cut)
    assert browser.evaluate("[...document.querySelectorAll('.stage input')][1].value") == "50"
    assert browser.complaints() == []


def test_the_policy_stops_what_is_not_ours(browser: Page, report: Report, tmp_path: Path) -> None:
    browser.open(write_report(report, tmp_path))
    browser.evaluate(
        "{const s = document.createElement('script'); s.text = 'window.foreign = 1'; document.body.append(s)}"
    )
    assert browser.evaluate("window.foreign") is None
    assert any("Content Security Policy" in complaint for complaint in browser.complaints())


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_is_never_wider_than_the_window(browser: Page, report: Report, tmp_path: Path, width: int) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    browser.open(write_report(report, tmp_path))
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_everything_can_be_reached_and_is_named(browser: Page, report: Report, tmp_path: Path) -> None:
    browser.open(write_report(report, tmp_path))
    assert browser.evaluate("[...document.images].every(i => i.alt)")
    assert browser.evaluate("[...document.querySelectorAll('input, .scroll, svg[role=img]')].every(e => e.ariaLabel)")
    assert browser.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0)")
    assert browser.evaluate(
        "[...document.querySelectorAll('section')].every(e => e.ariaLabelledByElements.length === 1)"
    )


def test_script_measures_and_writes(script: Script, patch_folder: Path, tmp_path: Path) -> None:
    done = script(
        "benchmarks/report.py", "--quick", "--set", patch_folder, "--network", "hnct_x4", "--size", "40x24",
        "--rounds", 2, "--threads", 1, "-o", tmp_path / "out", GMIN_DATA=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Ship gmin_x4")
    content = json.loads((tmp_path / "out/report.json").read_text())
    rows = {(row["label"], row["backend"]): row for row in content["rows"]}
    labels = [label for label, _ in rows]
    assert {"GMIN FP32", "GMIN INT8 for ONNX Runtime", "HNCT", "Bicubic"} <= set(labels)
    base = content["rows"][0]
    assert base["ratio"] == 1
    assert base["parameters"] == 300_992
    assert (
        base["measured"][patch_folder.name]["psnr_y_db"]
        > rows["Bicubic", "bicubic, cpu"]["measured"][patch_folder.name]["psnr_y_db"]
    )
    assert rows["HNCT", None]["remark"] == "weights not present"
    assert rows["HNCT", None]["published"]["Set5"]["psnr_y_db"] == 32.31
    assert "--quick" in content["command"]
    assert (tmp_path / "out/report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "lkdn_x2"], "the report compares networks for x4"),
        (["--network", "nobody"], "No network is called"),
        (["--size", "big"], "is no size"),
        (["-o", ROOT / "README.md"], "Cannot write into"),
        (["--set", "nowhere"], "neither a folder nor one of"),
        (["--from", "a.json"], "works with --readme only"),
        (["--readme", "SECURITY.md"], "needs two lines"),
    ],
)
def test_mistakes_end_with_one_sentence(script: Script, tmp_path: Path, arguments: list[object], message: str) -> None:
    done = script("benchmarks/report.py", "--quick", *(["-o", tmp_path] if "-o" not in arguments else []), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
