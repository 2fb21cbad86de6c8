"""The script: help, mistakes, a run from the command line, and the same run on two processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from model.checkpoint import load_checkpoint
from model.registry import create
from runtime.errors import UserError
from training.log import read_log
from training.options import TrainingOptions
from training.train import build, train_from

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "training" / "train.py"
SMALL = [
    "--model", "gmin_sau_none_x2", "--validation", "valid/*", "--steps", "4", "--batch", "2", "--patch", "8",
    "--warmup-steps", "1", "--threads", "1", "--log-every", "1", "--validate-every", "4", "--save-every", "4",
]  # fmt: skip


def call(*arguments: str | Path, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_auto_takes_the_fastest_kernels_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds(device: str, *, bfloat16: bool) -> set[str]:
        monkeypatch.setattr("runtime.environment.multiplies_bfloat16", lambda: bfloat16)
        network, _ = build(TrainingOptions(Path("unused"), cpu_kernels="auto"), device)
        return {type(module).__name__ for module in network.modules()} & {"FastDepthwise", "Bfloat16Pointwise"}

    assert kinds("cpu", bfloat16=True) == {"FastDepthwise", "Bfloat16Pointwise"}
    assert kinds("cpu", bfloat16=False) == {"FastDepthwise"}
    assert kinds("cuda", bfloat16=True) == set()


def test_help_is_quick_and_needs_no_torch() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        shown = call("--help")
        times.append(time.perf_counter() - start)
    assert shown.returncode == 0
    assert "--finish-in" in shown.stdout
    code = "import sys, training.train; sys.exit(any(m in sys.modules for m in ('torch', 'cv2', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    assert min(times) < 2  # 0.15 s on an idle machine


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--output", "RUN", "--data", "absent"], "absent"),
        (["--output", "RUN", "--data", "DATA", "--model", "gmin_x5"], "gmin_x4"),
        (["--output", "RUN", "--data", "DATA", "--validation", "none/*"], "none/*"),
        (["--output", "RUN", "--data", "DATA", "--validation", "valid/*", "--teacher", "lkdn_x4"], "--cache"),
        (["--output", "RUN", "--data", "DATA", "--optimizer", "sgd"], "adan"),
        (["--output", "DATA/photo0.png", "--data", "DATA", "--validation", "valid/*"], "is a file"),
        ([], "--output"),
    ],
)
def test_mistakes_end_with_2_and_a_sentence(
    pictures: Path, tmp_path: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from runtime.command_line import run
    from training.train import app

    places = {"RUN": str(tmp_path / "run"), "DATA": str(pictures)}
    monkeypatch.setattr(
        sys, "argv", ["train.py", *(places.get(word, word.replace("DATA/", f"{pictures}/")) for word in arguments)]
    )
    with pytest.raises(SystemExit) as ended:
        run(app)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_benchmark_images_are_refused(pictures: Path, tmp_path: Path) -> None:
    (pictures / "photo0.png").rename(pictures / "101085.png")
    with pytest.raises(UserError, match="101085"):
        train_from(TrainingOptions(tmp_path / "run", data=pictures, validation=("valid/*",)))
    assert not (tmp_path / "run").exists()


def test_one_process_and_two_learn_the_same(pictures: Path, tmp_path: Path) -> None:
    alone = call(*SMALL, "--data", pictures, "--output", tmp_path / "one", "--json", "-")
    assert alone.returncode == 0, alone.stderr
    assert json.loads(alone.stdout)["finished"] is True
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    both = call(
        *SMALL, "--data", pictures, "--output", tmp_path / "two", "--cache", tmp_path / "cache",
        "--cpu-kernels", "fp32", launcher=torchrun,
    )  # fmt: skip
    assert both.returncode == 0, both.stderr
    assert "Grad strides" not in both.stderr
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert [entry["step"] for entry in one] == [entry["step"] for entry in two] == [1, 2, 3, 4, 4]
    for a, b in zip(one[:-1], two[:-1], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-6)  # the log rounds to 1e-6
    assert one[-1]["psnr_y_db"] == pytest.approx(two[-1]["psnr_y_db"], abs=2e-3)

    # the finished run goes on with its own options, for two steps in which the rate falls
    more = call("--output", tmp_path / "one", "--finish-in", "2", "--cpu-kernels", "bf16", "--quiet")
    assert more.returncode == 0, more.stderr
    assert more.stdout == ""
    last = read_log(tmp_path / "one" / "log.jsonl")[-2]
    assert last["step"] == 6
    assert last["learning_rate"] == pytest.approx(5e-5)
    with safe_open(tmp_path / "one" / "ema.safetensors", framework="numpy") as file:
        assert file.metadata()["model"] == "gmin_sau_none_x2"
        assert np.isfinite(file.get_tensor("tail.weight")).all()


def test_a_gpu_without_triton_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "training.depthwise_gpu", raising=False)
    with pytest.raises(UserError, match="Triton"):
        build(TrainingOptions(tmp_path, gpu_kernels="triton"), "cuda")


def test_bounds_are_set_and_kept(pictures: Path, tmp_path: Path) -> None:
    options = TrainingOptions(
        tmp_path / "run", model="gmin_x2", data=pictures, validation=("valid/*",), bounds=(5.0, 2.0), steps=1, batch=1,
        patch=16, log_every=1,
    )  # fmt: skip
    train_from(options, quiet=True)
    network = load_checkpoint(create("gmin_x2"), tmp_path / "run/ema.safetensors")
    assert [module.egsfn.bound for module in network.get_submodule("body").children()] == [5.0] + [2.0] * 6
    with pytest.raises(UserError, match="bounds"):
        build(TrainingOptions(tmp_path / "other", model="bsrn_x2", bounds=(5.0,)))
