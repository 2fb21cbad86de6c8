"""The record of a run: types, priorities, and the learning rate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.errors import UserError
from training.options import TrainingOptions, options_from, read_toml

RECIPES = Path(__file__).parents[2] / "training" / "recipes"


def test_json_round_trip() -> None:
    options = TrainingOptions(Path("run"), cache=Path("c"), exclude=("a/*",), teacher="lkdn_x4", decay_steps=10)
    assert options_from(json.loads(options.to_json())) == options


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_are_valid(recipe: Path) -> None:
    assert options_from(read_toml(recipe), output="run").batch >= 4


def test_what_is_named_wins() -> None:
    options = options_from({"output": "run", "steps": 5, "batch": 2}, steps=7, batch=None)
    assert (options.steps, options.batch) == (7, 2)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"stepz": 1}, "stepz"),
        ({"steps": "many"}, "steps"),
        ({"steps": 0}, "steps"),
        ({"seed": -1}, "seed must not be negative"),
        ({"optimizer": "sgd"}, "adan, adamw, muon"),
        ({"batch": True}, "batch"),
        ({"teacher_share": 1.5}, "teacher_share"),
        ({"exclude": "x"}, "exclude"),
        ({"bounds": [5, "x"]}, "bounds"),
        ({"bounds": [5, 0]}, "bounds must be above 0"),
        ({"initialization": "unit", "initial": "a.pt"}, "contradict"),
        ({"cpu_kernels": "fp32", "precision": "bf16"}, "cpu_kernels"),
    ],
)
def test_mistakes_are_named(table: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        options_from({"output": "run", **table})


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("steps = = 3")
    with pytest.raises(UserError, match=r"broken\.toml"):
        read_toml(tmp_path / "broken.toml")
    with pytest.raises(UserError, match=r"absent\.toml"):
        read_toml(tmp_path / "absent.toml")


def test_rate_warms_up_stays_and_falls() -> None:
    options = TrainingOptions(
        Path("run"), steps=100, warmup_steps=9, decay_steps=20, learning_rate=1.0, final_rate=0.1, schedule="linear"
    )
    assert options.rate(0) == pytest.approx(0.1)
    assert options.rate(9) == options.rate(79) == 1.0
    assert options.rate(89) == pytest.approx(0.55)
    assert options.rate(99) == pytest.approx(0.1)


def test_finishing_begins_the_fall_where_the_run_stands() -> None:
    options = TrainingOptions(Path("run"), schedule="constant", warmup_steps=10, final_rate=0.0)
    last = options.finishing(500, 100)
    assert last.steps == 600
    assert last.rate(499) == options.rate(499)  # no jump
    assert last.rate(549) == pytest.approx(options.learning_rate / 2)
    assert last.rate(599) == 0
