"""The search for layers that stay float, and what it keeps on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

from data.sets import Pair, from_batch, to_batch
from quantize.patches import Patches
from quantize.plan import Plan, make_plan
from quantize.search import (
    Candidate,
    Judge,
    Sensitivity,
    _pareto,
    _shortest,
    float_times,
    give_back_order,
    open_session,
    remembered_times,
    search,
    slowdowns,
    worst_layers,
)  # fmt: skip
from quantize.timing import time_in_turns
from tests.conftest import Script


@pytest.fixture
def plan(tiny: ModelProto, few: Patches) -> Plan:
    return make_plan(tiny, few, target="cpu", equalized=False)


@pytest.fixture
def judge(tiny: ModelProto, few: Patches) -> Judge:
    pairs = []
    for path in few.calibration:
        lr = few.pair(path).lr
        perfect = from_batch(open_session(tiny).run(None, {"input": to_batch(lr)})[0])
        noise = np.random.default_rng(0).integers(0, 3, perfect.shape, np.uint8)
        pairs.append(Pair(path.stem, np.clip(perfect, 1, 250) + noise, lr))  # so that every error of 8 bits is a loss
    return Judge(tiny, pairs, 4)


def test_a_generous_drop_needs_no_search(plan: Plan, judge: Judge) -> None:
    found = search(plan, judge, max_drop_db=100)
    assert found.floats == ()
    assert found.within
    assert found.sensitivities == ()


def test_layers_are_given_back_until_the_drop_is_kept(plan: Plan, judge: Judge) -> None:
    whole = judge.candidate(plan.build(), ())
    found = search(plan, judge, max_drop_db=whole.drop_db / 4)
    assert found.within
    assert 0 < len(found.floats) <= len(plan.units)
    assert found.candidates[found.chosen].drop_db <= whole.drop_db / 4
    assert {s.unit for s in found.sensitivities} == set(plan.units)
    one_less = judge.candidate(plan.build(found.floats[:-1]), found.floats[:-1])
    assert one_less.drop_db > whole.drop_db / 4, "no shorter list of the same order keeps it"
    names = {node.name for node in plan.build(found.floats).graph.node}
    for unit in set(found.floats) & plan.convolutions:
        assert f"{unit}_weight_dequantize" not in names
    everything = judge.candidate(plan.build(plan.units), plan.units)
    assert everything.psnr_against_fp32_db > whole.psnr_against_fp32_db + 10


def test_a_search_goes_on_where_it_stopped(plan: Plan, judge: Judge, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    stopped = []

    def stop(done: int, _: int) -> None:
        stopped.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(plan, judge, max_drop_db=0.0, state=state, progress=stop)
    kept = json.loads(state.read_text())["sensitivities"]
    assert [entry["unit"] for entry in kept] == list(plan.units[:2])
    kept[0]["mse"] = 123.0
    state.write_text(json.dumps({**json.loads(state.read_text()), "sensitivities": kept}))
    found = search(plan, judge, max_drop_db=0.0, state=state)
    assert found.sensitivities[0].mse == 123.0, "what was measured is not measured again"
    state.write_text("{half")
    assert search(plan, judge, max_drop_db=0.0, state=state).sensitivities[0].mse != 123.0


def test_order_is_error_per_millisecond() -> None:
    made = [Sensitivity(name, "Conv", mse, 0, ms) for name, mse, ms in (("a", 1, 10), ("b", 0.5, 1), ("c", 2, 0))]
    assert give_back_order(made) == ["c", "b", "a"]


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 6, 11])
def test_the_shortest_list_is_found(needed: int) -> None:
    asked = []

    def at(length: int) -> Candidate:
        asked.append(length)
        return Candidate((), 0, 0.0 if length >= needed else 1.0)

    assert _shortest(at, 11, 0.5) == needed
    assert len(asked) <= 12


def test_where_nothing_helps_all_are_given_back() -> None:
    assert _shortest(lambda _: Candidate((), 0, 1.0), 5, 0.5) == 5


def test_pareto() -> None:
    made = [Candidate((), 0, drop, 1, ratio) for drop, ratio in ((0.3, 0.5), (0.1, 0.8), (0.2, 0.9), (0.0, 1.0))]
    assert _pareto(made) == [0, 1, 3]


def test_times_of_layers_and_of_graphs(tiny: ModelProto, plan: Plan, few: Patches) -> None:
    times = float_times(tiny, next(few.batches()))
    assert {"first", "depthwise", "mix", "last"} <= set(times)
    assert all(ms > 0 for ms in times.values())
    (_, one), (median, ratio) = time_in_turns([tiny, plan.build()], "ort")
    assert one == 1.0
    assert median > 0
    assert ratio > 0


def test_times_are_measured_once_on_a_machine(plan: Plan, few: Patches, tmp_path: Path) -> None:
    def remembered() -> dict[str, float]:
        return remembered_times(plan, "float", lambda: float_times(plan.model, next(few.batches())))

    first = remembered()
    assert remembered() == first  # measured again they would differ in some digit
    (kept,) = (tmp_path / "user-cache").rglob("*.json")
    kept.write_text('{"first": "half a fi')
    assert remembered().keys() == first.keys()
    assert json.loads(kept.read_text()).keys() == first.keys()
    assert remembered_times(plan, "other", dict) == {}


def test_a_layer_in_float_costs_what_the_whole_file_loses(plan: Plan) -> None:
    """At least the share that cannot be told from noise."""
    found = slowdowns(plan, plan.units[:2])
    assert found.keys() == set(plan.units[:2])
    assert all(ms > 0 for ms in found.values())


def test_only_what_hurts_is_timed_and_the_rest_comes_last() -> None:
    made = [Sensitivity(name, "Conv", mse, 0, ms) for name, mse, ms in (("a", 5, 5.0), ("b", 4, 1.0), ("c", 1, None))]
    assert worst_layers(made) == ["a", "b"]
    assert give_back_order(made) == ["b", "a", "c"]


def test_two_searches_choose_the_same_layers(plan: Plan, judge: Judge) -> None:
    results = [search(plan, judge, max_drop_db=0.01) for _ in range(2)]
    assert results[0] == results[1]
    assert results[0].floats


def test_command(script: Script, fp32_onnx: Path, patch_folder: Path, tmp_path: Path) -> None:
    done = script(
        "quantize/ptq.py", fp32_onnx, "-o", tmp_path / "a.onnx", "--calib", patch_folder, "--target", "openvino",
        "--max-drop", 3, "--json", tmp_path / "a.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["within"]
    assert report["search"]["candidates"][0]["floats"] == []
    assert not (tmp_path / "a.search.json").exists()
