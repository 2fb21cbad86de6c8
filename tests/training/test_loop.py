"""The loop: it learns, and nothing that interrupts it changes what it learns."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F  # noqa: N812

from data.sets import downscale
from model.checkpoint import load_checkpoint, read_state, save_checkpoint
from model.gmin import Gmin
from runtime.errors import UserError
from training.log import Log, read_log
from training.loop import load_fitting, rmse, train
from training.options import TrainingOptions
from training.samples import TrainingImage

from .conftest import picture


def network(scale: int = 2) -> Gmin:
    torch.manual_seed(0)
    return Gmin(scale, width=16, modules=1)


def images(*seeds: int, target: bool = False) -> list[TrainingImage]:
    made = []
    for seed in seeds:
        hr = picture(seed)
        made.append(TrainingImage(Path(str(seed)), hr, downscale(hr, 2), hr if target else None))
    return made


def options(folder: Path, **changes: Any) -> TrainingOptions:
    plain = TrainingOptions(
        folder, steps=12, batch=4, patch=12, learning_rate=2e-3, warmup_steps=2, log_every=4, validate_every=6,
        save_every=5,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def run(folder: Path, *, max_steps: int | None = None, finish_in: int | None = None, **changes: Any) -> Any:
    return train(
        network(), options(folder, **changes), images(0, 1, 2), images(9), scale=2, max_steps=max_steps,
        finish_in=finish_in,
    )  # fmt: skip


def same_weights(a: Path, b: Path) -> bool:
    one, two = read_state(a / "ema.safetensors"), read_state(b / "ema.safetensors")
    return list(one) == list(two) and all(torch.equal(one[key], two[key]) for key in one)


def test_it_learns(tmp_path: Path) -> None:
    result = run(tmp_path, steps=60)
    losses = [entry["loss"] for entry in read_log(tmp_path / "log.jsonl") if "loss" in entry]
    scores = [entry["psnr_y_db"] for entry in read_log(tmp_path / "log.jsonl") if "psnr_y_db" in entry]
    assert losses[-1] < 0.6 * losses[0]
    assert scores[-1] > scores[0] + 3
    assert result.finished
    assert result.psnr_y_db == pytest.approx(scores[-1], abs=1e-4)
    assert result.best_psnr_y_db == pytest.approx(max(scores), abs=1e-4)


@pytest.mark.parametrize("optimizer", ["adan", "muon", "adamw"])
def test_resuming_changes_no_bit(tmp_path: Path, optimizer: Any) -> None:
    run(tmp_path / "whole", optimizer=optimizer)
    for steps in (5, 1, None):
        ended = run(tmp_path / "parts", optimizer=optimizer, max_steps=steps)
    assert ended.finished
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    whole, parts = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole["model"].values(), parts["model"].values(), strict=True))
    for a, b in zip(whole["optimizer"]["state"].values(), parts["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a)


def test_a_crash_costs_only_the_steps_since_the_last_save(tmp_path: Path) -> None:
    class CrashError(Exception):
        pass

    def crash(entry: dict[str, Any]) -> None:
        if entry["step"] == 8:
            raise CrashError

    run(tmp_path / "whole")
    with pytest.raises(CrashError):
        train(network(), options(tmp_path / "torn"), images(0, 1, 2), images(9), scale=2, report=crash)
    with (tmp_path / "torn" / "log.jsonl").open("a") as stream:
        stream.write('{"step": 9, "lo')  # the last line was cut short as well
    run(tmp_path / "torn")
    assert same_weights(tmp_path / "whole", tmp_path / "torn")
    steps = [entry["step"] for entry in read_log(tmp_path / "torn" / "log.jsonl")]
    assert steps == [4, 6, 8, 12, 12]  # nothing twice


def test_a_signal_saves_and_stops(tmp_path: Path) -> None:
    def interrupt(entry: dict[str, Any]) -> None:
        if entry["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    stopped = train(network(), options(tmp_path / "a"), images(0, 1, 2), images(9), scale=2, report=interrupt)
    assert (stopped.step, stopped.finished) == (4, False)
    assert signal.getsignal(signal.SIGTERM) is before
    run(tmp_path / "a")
    run(tmp_path / "b")
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_finish_in_lets_the_rate_fall_and_ends(tmp_path: Path) -> None:
    run(tmp_path, steps=1000, schedule="constant", final_rate=0.0, max_steps=6)
    ended = run(tmp_path, steps=1000, schedule="constant", final_rate=0.0, finish_in=8)
    assert (ended.step, ended.finished) == (14, True)
    rates = [entry["learning_rate"] for entry in read_log(tmp_path / "log.jsonl") if "learning_rate" in entry]
    assert rates[0] == 2e-3
    assert rates[-1] == 0
    with pytest.raises(UserError, match="no checkpoint"):
        run(tmp_path / "nothing", finish_in=8)


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    run(tmp_path / "now", ema=0.0)
    state = torch.load(tmp_path / "now" / "checkpoint.pt", weights_only=True)
    assert all(torch.equal(state["model"][key], state["average"][key]) for key in state["model"])
    run(tmp_path / "slow", ema=0.9999)
    state = torch.load(tmp_path / "slow" / "checkpoint.pt", weights_only=True)
    assert not torch.equal(state["model"]["tail.weight"], state["average"]["tail.weight"])


def test_weights_say_what_they_are_and_load(tmp_path: Path) -> None:
    run(tmp_path, teacher_share=0.5)
    with safe_open(tmp_path / "ema.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["model"] == "gmin_x4"
    assert metadata["steps"] == "12"
    assert '"teacher_share": 0.5' in metadata["training"]
    load_checkpoint(network(), tmp_path / "best.safetensors")


def test_a_teacher_pulls_the_result_towards_its_targets(tmp_path: Path) -> None:
    black = [dataclasses.replace(image, target=np.zeros_like(image.hr)) for image in images(0, 1)]
    for share in (0.0, 1.0):
        folder = tmp_path / str(share)
        train(network(), options(folder, teacher_share=share, steps=40), black, [], scale=2)
    outputs = []
    for share in (0.0, 1.0):
        trained = load_checkpoint(network(), tmp_path / str(share) / "ema.safetensors")
        outputs.append(float(trained(torch.full((1, 3, 8, 8), 0.6)).detach().mean()))
    assert outputs[1] < outputs[0] - 0.1


def test_rmse_is_the_mean_of_each_images_root_and_has_a_finite_gradient_everywhere() -> None:
    target = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    result = torch.stack((target[0] + 0.1, target[1] - 0.3)).requires_grad_()
    assert rmse(result, target).item() == pytest.approx(0.2, abs=1e-5)
    exact = target.clone().requires_grad_()
    rmse(exact, target).backward()
    assert exact.grad is not None
    assert torch.count_nonzero(exact.grad) == 0


def test_rmse_ends_nearer_by_its_own_measure_than_l1(tmp_path: Path) -> None:
    """Nine pixels of ten are black and one is white, whatever the LR pixel: the median is black, the mean is grey."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.level.expand(x.shape[0], 3, 2 * x.shape[2], 2 * x.shape[3])

    hr = np.zeros((40, 40, 3), np.uint8)
    hr[::2, ::5] = 255  # one pixel of ten
    image = TrainingImage(Path("dots"), hr, downscale(hr, 2))
    levels = {}
    for loss in ("l1", "rmse"):
        chosen = options(tmp_path / loss, loss=loss, steps=200, learning_rate=1e-2, patch=20, validate_every=1000)
        train(Constant(), chosen, [image], [], scale=2)
        levels[loss] = read_state(tmp_path / loss / "ema.safetensors")["level"].item()
    assert levels["l1"] == pytest.approx(0, abs=0.03)
    assert levels["rmse"] == pytest.approx(0.1, abs=0.03)


def test_a_wrapped_network_goes_through(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.seen += 1
            return self.inner(x)

    train(Wrapped(), options(tmp_path), images(0, 1), images(9), scale=2)
    state = read_state(tmp_path / "ema.safetensors")
    assert int(state["seen"]) == 12
    assert "inner.tail.weight" in state


def test_bf16_and_compiled_steps_come_close(tmp_path: Path) -> None:
    run(tmp_path / "fp32")
    run(tmp_path / "bf16", precision="bf16")
    last = [read_log(tmp_path / name / "log.jsonl")[-2]["loss"] for name in ("fp32", "bf16")]
    assert last[0] != last[1]
    assert last[0] == pytest.approx(last[1], rel=0.05)


def test_a_diverging_run_says_so_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, max_steps=5, steps=100)
    with pytest.raises(UserError, match=r"diverged.*--learning-rate"):
        run(tmp_path, steps=100, learning_rate=1e6, validate_every=50)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5


@pytest.mark.parametrize("part", ["output", "gradient"])
def test_weights_that_are_no_numbers_are_not_kept(tmp_path: Path, part: str) -> None:
    """However seldom the loss is written: a checkpoint of NaN would be all that is left of the run."""

    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = network(), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            result = self.inner(x)
            if self.calls == 7 and part == "output":
                result = result * torch.nan
            elif self.calls == 7:
                result.register_hook(lambda gradient: gradient * torch.inf)
            return result

    chosen = options(tmp_path, steps=40, log_every=40, save_every=5, validate_every=40)
    with pytest.raises(UserError, match="no longer finite at step 10"):
        train(Breaks(), chosen, images(0, 1), images(9), scale=2)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["step"] == 5
    assert all(kept["model"][name].isfinite().all() for name, _ in Breaks().named_parameters())


def test_scores_of_other_held_out_images_are_not_compared(tmp_path: Path) -> None:
    flat = np.full((64, 64, 3), 128, np.uint8)
    easy = TrainingImage(Path("flat"), flat, downscale(flat, 2))
    chosen = options(tmp_path, learning_rate=1e-6, steps=12, validate_every=4, save_every=4)
    before = train(network(), chosen, images(0, 1), [easy], scale=2, max_steps=8)
    result = train(network(), chosen, images(0, 1), images(9), scale=2)
    assert (result.step, result.finished) == (12, True)
    assert result.best_psnr_y_db is not None
    assert before.best_psnr_y_db is not None
    assert result.best_psnr_y_db < before.best_psnr_y_db - 0.5, "the second set is harder by more than a collapse"


def test_weights_are_not_said_to_have_the_score_of_other_weights(tmp_path: Path) -> None:
    def stop(entry: dict[str, Any]) -> None:
        if entry["step"] == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    train(network(), options(tmp_path), images(0, 1, 2), images(9), scale=2, report=stop)  # scored at step 6
    with safe_open(tmp_path / "ema.safetensors", framework="pt") as file:
        assert (file.metadata()["steps"], file.metadata()["validation_psnr_y_db"]) == ("8", "")


def test_another_optimizer_is_refused_and_another_decay_taken_up(tmp_path: Path) -> None:
    run(tmp_path, optimizer="adamw", max_steps=3)
    with pytest.raises(UserError, match="the optimizer is adamw"):
        run(tmp_path, optimizer="adan")
    run(tmp_path, optimizer="adamw", weight_decay=0.5)
    (group,) = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
    assert group["weight_decay"] == 0.5


def test_a_run_that_unlearns_goes_back_to_its_best_checkpoint(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"steps": 100, "ema": 0.5, "save_every": 1, "validate_every": 10}
    best = run(tmp_path, max_steps=10, **changes).psnr_y_db
    with pytest.raises(UserError, match=r"fell from .* unlearnt.*--learning-rate"):
        run(tmp_path, **changes, learning_rate=1.0)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (kept["step"], kept["best"]) == (10, best)
    with safe_open(tmp_path / "ema.safetensors", framework="numpy") as file:
        assert (file.metadata()["steps"], file.metadata()["validation_psnr_y_db"]) == ("10", f"{best:.4f}")
    again = run(tmp_path, max_steps=10, **changes)
    assert again.step == 20
    assert again.psnr_y_db > best - 0.5


def test_clipping_shortens_a_gradient_and_the_log_has_its_length(tmp_path: Path) -> None:
    def norms(folder: str, **changes: Any) -> list[float]:
        run(tmp_path / folder, optimizer="adamw", **changes)
        return [entry["highest_gradient_norm"] for entry in read_log(tmp_path / folder / "log.jsonl")[:1]]

    (longest,) = norms("plain")
    norms("loose", clip_norm=2 * longest + 10)
    assert norms("tight", clip_norm=longest / 100) != [0.0]
    norms("again", clip_norm=longest / 100)
    assert same_weights(tmp_path / "plain", tmp_path / "loose")
    assert same_weights(tmp_path / "tight", tmp_path / "again")
    assert not same_weights(tmp_path / "plain", tmp_path / "tight")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path, max_steps=1)
    with pytest.raises(UserError, match=r"checkpoint\.pt"):
        train(network(3), options(tmp_path), images(0, 1), [], scale=3)
    with pytest.raises(UserError, match=r"checkpoint\.pt"):
        run(tmp_path, optimizer="adamw")
    (tmp_path / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"checkpoint\.pt"):
        run(tmp_path)


def test_another_scale_starts_from_the_means_of_the_larger_picture(tmp_path: Path) -> None:
    source = network(4)
    save_checkpoint(source.state_dict(), tmp_path / "x4.safetensors", metadata={})
    target = Gmin(2, width=16, modules=1)
    assert load_fitting(target, tmp_path / "x4.safetensors") == ["tail.weight", "tail.bias"]
    assert torch.equal(target.head.weight, source.head.weight)
    x = torch.rand(1, 3, 6, 7)
    for scale in (2, 3):
        smaller = Gmin(scale, width=16, modules=1)
        assert load_fitting(smaller, tmp_path / "x4.safetensors", scale=scale) == []
        result, larger = smaller(x), source(x)
        assert torch.allclose(F.avg_pool2d(result, scale), F.avg_pool2d(larger, 4), atol=1e-5)
        assert scale == 3 or torch.allclose(result, F.avg_pool2d(larger, 2), atol=1e-5)
    deeper = Gmin(4, width=16, modules=2)
    fresh = load_fitting(deeper, tmp_path / "x4.safetensors")
    assert "body.1.egsfn.expand.weight" in fresh
    assert "msff.weight" in fresh
    assert "tail.weight" not in fresh
    with pytest.raises(UserError, match="Nothing"):
        load_fitting(nn.Conv2d(1, 1, 1), tmp_path / "x4.safetensors")


def test_tensorboard_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `training` is not installed")
    log = Log(tmp_path, step=0, tensorboard=True)
    log.write({"step": 1, "loss": 0.5})
    log.close()
    assert list((tmp_path / "events").iterdir())
