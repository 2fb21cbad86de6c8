"""Quantization-aware fine-tuning: it learns, it resumes without changing a bit, it ends in a file like any other."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from quantize.patches import Patches
from quantize.plan import make_plan
from quantize.search import Judge, open_session
from runtime.errors import UserError
from tests.conftest import ROOT, Script

torch = pytest.importorskip("torch")
from quantize.qat import fine_tune
from quantize.simulation import SimulatedGraph
from training.options import TrainingOptions

RECIPE = """
steps = 4
batch = 2
patch = 16
optimizer = "adan"
learning_rate = 2e-3
warmup_steps = 1
ema = 0.5
validation = ["3.png"]
validate_every = 2
save_every = 2
log_every = 2
threads = 1
"""


@pytest.fixture
def command(tiny: ModelProto, few: Patches, patch_folder: Path, tmp_path: Path) -> list[object]:
    onnx.save(tiny, tmp_path / "tiny.onnx")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return [
        "quantize/qat.py", tmp_path / "tiny.onnx", "--config", tmp_path / "recipe.toml", "--calib", patch_folder,
        "--data", patch_folder, "--target", "cpu",
    ]  # fmt: skip


def test_script(script: Script, command: list[object], tmp_path: Path) -> None:
    once = tmp_path / "once.onnx"
    done = script(*command, "-o", once, "--run", tmp_path / "a", "--json", "-", "--report", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["effort"], report["target"], report["convolutions_int8"]) == ("qat", "cpu", 3)
    assert report["int8_psnr_y_db"] > 0
    assert "step 4" in done.stderr
    kept = {entry.key: entry.value for entry in onnx.load(once).metadata_props}
    assert kept["gmin.quantization"].startswith("4 steps of training, mse, ")
    assert open_session(onnx.load(once)).run(None, {"input": np.zeros((1, 3, 8, 8), np.float32)})[0].shape[-1] == 32
    assert "tiny" in (tmp_path / "page.html").read_text()

    twice = tmp_path / "twice.onnx"
    stopped = script(*command, "-o", twice, "--run", tmp_path / "b", "--max-steps", 2)
    assert stopped.returncode == 3
    assert "is not over" in stopped.stdout
    assert not twice.exists()
    resumed = script(*command, "-o", twice, "--run", tmp_path / "b")
    assert resumed.returncode == 0, resumed.stderr
    assert twice.read_bytes() == once.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "out.txt", "--run", "nowhere/run"], "out.txt must end in .onnx"),
        (["-o", "out.onnx", "--run", "nowhere/run", "--data", "nowhere/data"], "no folder of training images"),
        (["-o", "out.onnx", "--run", "nowhere/run", "--teacher", "nobody"], "nobody"),
        (["-o", "out.onnx", "--run", "nowhere/run", "--keep-float", "nobody"], "is called nobody; there is"),
        (["-o", "out.onnx", "--run", "nowhere/run", "--keep-float", "mix", "--max-drop", "1"], "give one of them"),
    ],
)
def test_mistakes_end_with_one_sentence(
    script: Script, command: list[object], tmp_path: Path, arguments: list[str], message: str
) -> None:
    placed = [str(tmp_path / word) if "out." in word or "nowhere" in word else word for word in arguments]
    done = script(*command, *placed)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out.onnx").exists()


def test_the_run_of_another_network_is_refused(script: Script, command: list[object], tmp_path: Path) -> None:
    arguments = ["-o", tmp_path / "a.onnx", "--run", tmp_path / "run"]
    assert script(*command, *arguments, "--max-steps", 2).returncode == 3
    kept = script(*command, *arguments, "--keep-float", "mix")
    model = onnx.load(tmp_path / "tiny.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "w2":
            tensor.CopyFrom(onnx.numpy_helper.from_array(1.5 * onnx.numpy_helper.to_array(tensor), "w2"))
    onnx.save(model, tmp_path / "tiny.onnx")
    other = script(*command, *arguments)
    for done in (kept, other):
        assert done.returncode == 2
        assert "begun with another network, calibration or choice of float layers" in done.stderr
    assert not (tmp_path / "a.onnx").exists()


def test_two_processes_write_one_file(command: list[object], tmp_path: Path) -> None:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--", *map(str, command)]
    done = subprocess.run(
        [sys.executable, *start, "-o", str(tmp_path / "a.onnx"), "--run", str(tmp_path / "run"), "--json", "-"],
        capture_output=True, text=True, timeout=240, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["convolutions_int8"] == 3
    assert (tmp_path / "a.onnx").is_file()


def test_layers_are_kept_float_by_name(script: Script, command: list[object], tmp_path: Path) -> None:
    arguments = ["--keep-float", "mix", "--keep-float", "product", "--json", "-", "--quiet"]
    done = script(*command, "-o", tmp_path / "a.onnx", "--run", tmp_path / "a", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["float_convolutions"] == ["mix", "last"]
    kept = {entry.key: entry.value for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert kept["gmin.float_layers"] == "mix product"


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_training_brings_the_file_nearer_to_fp32(
    tiny: ModelProto, few: Patches, patch_folder: Path, tmp_path: Path, target: str
) -> None:
    plan = make_plan(tiny, few, target=target, method="minmax")
    judge = Judge(tiny, list(few.judges()), 4)
    options = TrainingOptions(
        output=tmp_path / "run", data=patch_folder, cache=tmp_path / "cache", validation=(), steps=150, batch=2,
        patch=24, learning_rate=2e-3, warmup_steps=5, ema=0.9, teacher_share=1.0,
    )  # fmt: skip
    learnt = fine_tune(plan, options, scale=4, reference=tiny)
    assert learnt is not None
    assert judge.mse(learnt.build()) < 0.9 * judge.mse(plan.build())


def test_compiled_kernels_change_nothing_but_rounding(tiny: ModelProto, few: Patches) -> None:
    plan = make_plan(tiny, few, target="cpu")
    batch = torch.from_numpy(np.concatenate(list(few.batches()))[:2, :, :24, :24])
    outcomes = []
    for fast in (False, True):
        graph = SimulatedGraph(plan, (), cpu_kernels=fast)
        result = graph(batch)
        result.square().mean().backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in graph.parameters()])
        outcomes.append((result.detach(), gradients))
    assert (outcomes[0][0] - outcomes[1][0]).abs().mean() < 1e-3  # a tie may round the other way
    assert torch.nn.functional.cosine_similarity(outcomes[0][1], outcomes[1][1], dim=0) > 0.999


def test_float_layers_stay_as_they_are(tiny: ModelProto, few: Patches, patch_folder: Path, tmp_path: Path) -> None:
    plan = make_plan(tiny, few, target="tensorrt")
    options = TrainingOptions(
        output=tmp_path / "run", data=patch_folder, validation=(), steps=3, batch=2, patch=16, warmup_steps=1
    )
    learnt = fine_tune(plan, options, scale=4, reference=tiny, floats=("mix",))
    assert learnt is not None
    before, after = ({tensor.name: tensor.raw_data for tensor in one.model.graph.initializer} for one in (plan, learnt))
    assert after["w3"] == before["w3"]
    assert after["w1"] != before["w1"]


def test_bfloat16_is_refused(tiny: ModelProto, few: Patches, tmp_path: Path) -> None:
    plan = make_plan(tiny, few, target="cpu")
    options = TrainingOptions(output=tmp_path / "run", cpu_kernels="bf16")
    with pytest.raises(UserError, match="not trained in bfloat16"):
        fine_tune(plan, options, scale=4, reference=tiny)
