"""Published figures are complete, plausible, and say where they come from."""

from __future__ import annotations

from benchmarks.published import PublishedScore, caveats, published
from model.registry import names


def test_every_method_has_a_source_and_plausible_figures() -> None:
    methods = published()
    assert len({entry.method for entry in methods}) == len(methods) == 37
    for entry in methods:
        assert entry.sources, entry.method
        assert entry.network in {None, "bicubic", *names()}
        for score in entry.scores.values():
            assert score.psnr_y_db is None or 22 < score.psnr_y_db < 34, entry.method
            assert score.ssim_y is None or 0.6 < score.ssim_y < 0.95, entry.method


def test_the_compared_networks() -> None:
    figures = {entry.network: entry for entry in published()}
    compared = ("gmin_x4", "lkdn_x4", "bsrn_x4", "hnct_x4", "bicubic")
    scores = {name: figures[name].scores["BSD100"] for name in compared}
    assert scores == {
        "gmin_x4": PublishedScore(27.67, None),
        "lkdn_x4": PublishedScore(27.69, 0.7402),
        "bsrn_x4": PublishedScore(27.65, 0.7387),
        "hnct_x4": PublishedScore(27.63, 0.7381),
        "bicubic": PublishedScore(25.96, 0.6675),
    }
    assert figures["lkdn_x4"].scores["Set5"] == PublishedScore(32.39, 0.8979)
    assert "reconstruction" in figures["gmin_x4"].notes[0]


def test_what_stands_beside_them() -> None:
    protocol, provenance = caveats()
    assert "not comparable" in protocol
    assert "not re-measurements" in provenance
