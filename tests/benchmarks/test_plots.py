"""Plots are well-formed, legible, and escape what they are given."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.plots import HEIGHT, WIDTH, Point, scatter, sheet, ticks

SVG = "{http://www.w3.org/2000/svg}"
CROWD = [Point(f"network {i}", 20 + 0.2 * i, 27.6 + 0.01 * i) for i in range(6)]


def drawn(points: list[Point]) -> ElementTree.Element:
    return ElementTree.fromstring(scatter(points, title="t", x_label="x", y_label="y"))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (27.01, 27.72, [27, 27.2, 27.4, 27.6, 27.8]), (5, 5, [5, 6]), (0, 0, [0, 0.2])],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    found = ticks(low, high)
    assert found[:2] == pytest.approx(expected[:2])
    assert found[0] <= low
    assert found[-1] >= high


def test_marks_lie_inside_and_better_is_higher() -> None:
    root = drawn([Point("a", 1, 27.0), Point("b", 2, 28.0, "published")])
    a, b = root.findall("circle")
    assert float(a.get("cx")) < float(b.get("cx"))
    assert float(a.get("cy")) > float(b.get("cy"))
    for mark in (a, b):
        assert 0 < float(mark.get("cx")) < WIDTH
        assert 0 < float(mark.get("cy")) < HEIGHT
    assert "published" in b.get("class")
    assert "a measured: 1, 27.00" in root.find("desc").text


def test_measured_and_published_of_one_network_are_joined() -> None:
    joined = [Point("GMIN", 17, 27.06, ours=True), Point("GMIN", 17.4, 27.67, "published", ours=True)]
    assert len([line for line in drawn(joined).findall("line") if line.get("class") == "link"]) == 1
    assert not [line for line in drawn(CROWD).findall("line") if line.get("class") == "link"]


def test_labels_of_a_crowd_do_not_cover_each_other() -> None:
    names = [text for text in drawn(CROWD).findall("text") if text.get("class") == "name"]
    boxes = [(float(t.get("x")), float(t.get("y")), 7.5 * len(t.text), 13) for t in names]
    assert len(boxes) == 6
    for i, (x, y, wide, high) in enumerate(boxes):
        for u, v, other, _ in boxes[:i]:
            assert x + wide <= u or u + other <= x or abs(y - v) >= high


def test_names_are_escaped() -> None:
    root = drawn([Point("<script>&\"'", 1, 2)])
    assert "<script>&\"'" in [text.text for text in root.iter("text")]


def test_nothing_cannot_be_plotted() -> None:
    with pytest.raises(ValueError, match="nothing to plot"):
        drawn([])


def test_no_leader_goes_through_a_label() -> None:
    """Ten networks, eight of them much alike: labels must move away from their marks."""
    alike = [Point(f"network {i}", 20 + 0.4 * i, 27.6 + 0.01 * (i % 3)) for i in range(8)]
    root = drawn([Point("better", 10, 28), Point("worse", 40, 27), *alike])
    leaders = [line for line in root.findall("line") if line.get("class") == "leader"]
    assert leaders
    boxes = [
        (float(t.get("x")), float(t.get("y")) - 12, 6 * len(t.text), 14)
        for t in root.findall("text")
        if t.get("class") == "name"
    ]
    for line in leaders:
        x1, y1, x2, y2 = (float(line.get(key)) for key in ("x1", "y1", "x2", "y2"))
        for t in range(1, 20):
            x, y = x1 + t / 20 * (x2 - x1), y1 + t / 20 * (y2 - y1)
            assert not any(u < x < u + wide and v < y < v + high for u, v, wide, high in boxes)


def test_a_sheet_holds_plots_side_by_side() -> None:
    plot = scatter(CROWD, title="t", x_label="x", y_label="y")
    root = ElementTree.fromstring(sheet([("left", plot), ("a < b", plot)], style=".plot { fill: red; }", note="<n>"))
    inner = root.findall(f"{SVG}svg")
    assert [part.get("x") for part in inner] == ["0", str(WIDTH)]
    assert float(root.get("width")) == 2 * WIDTH
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert texts == ["left", "a < b", "<n>"]
