"""The training loop: one function that any network of the registry, plain or wrapped, goes through."""

from __future__ import annotations

import copy
import io
import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from data.metrics import psnr_y, to_uint8
from model.checkpoint import read_state, save_checkpoint
from runtime.errors import UserError
from runtime.files import atomic_write
from training.optimizers import make_optimizer
from training.options import TrainingOptions
from training.samples import Crops, TrainingImage

_LAYOUT = 1  # of the checkpoint file


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended."""

    step: int
    """Steps done since the run began, resumed ones included."""
    psnr_y_db: float | None
    """Validation PSNR of the averaged weights, in dB, where it was taken last."""
    best_psnr_y_db: float | None
    finished: bool
    """False where the run was interrupted and can be resumed."""


@dataclass(frozen=True)
class Process:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0


class Run:
    """Everything that changes while training, and that a checkpoint keeps."""

    def __init__(self, model: nn.Module, options: TrainingOptions, process: Process) -> None:
        self.options, self.process = options, process
        layout = torch.channels_last if options.channels_last else torch.contiguous_format
        self.model = model.to(process.device, memory_format=layout).train()  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = make_optimizer(
            options.optimizer,
            self.model.parameters(),
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
        )
        self.step = 0
        self.seconds = 0.0
        self.best = float("-inf")
        self._parallel = self._wrapped()

    def _wrapped(self) -> Callable[[Tensor], Tensor]:
        model: nn.Module = self.model
        if self.process.world > 1:
            from torch.nn.parallel import DistributedDataParallel

            ids = [self.process.device] if self.process.device.startswith("cuda") else None
            model = DistributedDataParallel(model, device_ids=ids)
        return torch.compile(model) if self.options.compile else model

    def learn(self, lr: Tensor, hr: Tensor, target: Tensor | None) -> float:
        """One step on one batch; returns the loss of this process's share of it."""
        rate = self.options.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        lr, hr = lr.to(self.process.device), hr.to(self.process.device)
        device = self.process.device.split(":")[0]
        with torch.autocast(device, torch.bfloat16, enabled=self.options.precision == "bf16"):
            result = self._parallel(lr)
        result = result.float()
        loss = F.l1_loss(result, hr)
        if target is not None:
            share = self.options.teacher_share
            loss = (1 - share) * loss + share * F.l1_loss(result, target.to(self.process.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self._follow()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def _follow(self) -> None:
        # shorter memory at first, or the average would carry the random start along for a thousand steps
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        for mine, theirs in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mine.copy_(theirs)

    def save(self, path: Path) -> None:
        """Write everything needed to go on as if nothing had happened."""
        stream = io.BytesIO()
        state = {
            "layout": _LAYOUT,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "options": self.options.to_json(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, stream)
        with atomic_write(path) as file:
            file.write(stream.getbuffer())

    def load(self, path: Path) -> None:
        """Take up a checkpoint that ``save`` wrote.

        Raises:
            UserError: the file is damaged or of another network or optimiser.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["layout"] != _LAYOUT:
                raise ValueError(f"layout {state['layout']}")
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # the unpickler raises many kinds; all of them mean the same to the user
            raise UserError(
                f"{path} cannot be resumed with these options ({type(error).__name__}: {error}). "
                "Name the options it was made with, or another --output."
            ) from error
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]


def train(
    model: nn.Module,
    options: TrainingOptions,
    images: Sequence[TrainingImage],
    validation: Sequence[TrainingImage],
    *,
    scale: int,
    process: Process | None = None,
    max_steps: int | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> TrainingResult:
    """Train ``model`` until ``options.steps``, resuming what is in ``options.output``.

    Args:
        model: (N, 3, H, W) float32 RGB in [0, 1] to (N, 3, scale·H, scale·W); may be wrapped, for instance by fake
            quantizers: the loop only calls it and reads its state dict.
        options: the run.
        images: learnt from.
        validation: scored, never learnt from.
        scale: of the network.
        process: this process among several; None is alone.
        max_steps: stop after so many steps of this call, as if interrupted.
        report: called with each record of the log.

    Raises:
        UserError: the batch does not divide, or a checkpoint in the folder is of another run.
    """
    process = process or Process()
    if options.batch % process.world:
        raise UserError(f"The batch of {options.batch} does not divide among {process.world} processes.")
    torch.manual_seed(options.seed)
    torch.set_flush_denormal(True)  # the long tails of the momenta are denormal numbers, which a CPU adds slowly
    run = Run(model, options, process)
    checkpoint = options.output / "checkpoint.pt"
    if checkpoint.is_file():
        run.load(checkpoint)
    end = options.steps if max_steps is None else min(options.steps, run.step + max_steps)
    crops = Crops(images, scale=scale, patch=options.patch, batch=options.batch, seed=options.seed)
    log = Log(options.output / "log.jsonl", run.step) if process.first else None
    stop = Stop()
    psnr: float | None = None
    loss_sum, loss_count = 0.0, 0
    clock = time.monotonic()

    def record(**values: Any) -> None:
        entry = {"step": run.step, "wall_s": round(run.seconds, 1), **values}
        if log is not None:
            log.write(entry)
        if report is not None:
            report(entry)

    with stop:
        while run.step < end and not stop.requested:
            loss_sum += run.learn(*crops.batch(run.step, rank=process.rank, world=process.world))
            loss_count += 1
            now = time.monotonic()
            run.seconds, clock = run.seconds + now - clock, now
            last = run.step == end
            if run.step % options.log_every == 0 or last:
                loss, loss_sum, loss_count = mean_over_processes(loss_sum / loss_count, process), 0.0, 0
                record(loss=round(loss, 6), learning_rate=options.rate(run.step - 1))
            if process.first and validation and (run.step % options.validate_every == 0 or last):
                psnr = validation_psnr(run.average, validation, scale=scale, options=options, device=process.device)
                record(psnr_y_db=round(psnr, 4))
                if psnr > run.best:
                    run.best = psnr
                    write_weights(run, options.output / "best.safetensors", psnr)
            if process.first and (run.step % options.save_every == 0 or last):
                run.save(checkpoint)
                write_weights(run, options.output / "ema.safetensors", psnr)
    if process.first and stop.requested:
        run.save(checkpoint)
        write_weights(run, options.output / "ema.safetensors", psnr)
    best = run.best if run.best > float("-inf") else None
    return TrainingResult(run.step, psnr, best, run.step >= options.steps)


@torch.inference_mode()
def validation_psnr(
    model: nn.Module, images: Sequence[TrainingImage], *, scale: int, options: TrainingOptions, device: str
) -> float:
    """Mean PSNR on luma in dB over whole images, by the project's scoring protocol."""
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    scores = []
    for image in images:
        lr = torch.from_numpy(image.lr).permute(2, 0, 1)[None].to(device, torch.float32).div_(255)
        result = model(lr.contiguous(memory_format=layout))[0].float().permute(1, 2, 0).cpu().numpy()
        scores.append(psnr_y(to_uint8(result), image.hr, crop=scale))
    return float(np.mean(scores))


def write_weights(run: Run, path: Path, psnr: float | None) -> None:
    """Write the averaged weights, with what they are and how they came about."""
    options = run.options
    metadata = {
        "model": options.model,
        "steps": str(run.step),
        "training": options.to_json(),
        "validation_psnr_y_db": "" if psnr is None else f"{psnr:.4f}",
    }
    save_checkpoint(run.average.state_dict(), path, metadata=metadata)


def mean_over_processes(value: float, process: Process) -> float:
    """The mean of one number over all processes."""
    if process.world == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=process.device)
    torch.distributed.all_reduce(total)
    return float(total) / process.world


class Log:
    """One JSON object a line; what was logged past the step that a run resumes from is dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        kept = []
        if path.is_file():
            lines = path.read_text("utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        with atomic_write(path) as stream:
            stream.write("".join(line + "\n" for line in kept).encode())

    def write(self, entry: dict[str, Any]) -> None:
        """Append one record."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")


def load_fitting(model: nn.Module, path: Path) -> list[str]:
    """Load the tensors of ``path`` whose name and shape fit, and return the names of those that stay fresh.

    For fine-tuning another scale: everything but the last convolution fits.

    Raises:
        UserError: the file cannot be read or nothing in it fits.
    """
    state = read_state(path)
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        raise UserError(f"Nothing in {path} fits the network to be trained.")
    model.load_state_dict(fitting, strict=False)
    return [key for key in own if key not in fitting]


class Stop:
    """Turns SIGTERM and SIGINT into a request to stop after the running step, with everything saved."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True
