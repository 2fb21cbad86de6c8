"""The training loop: one function that any network, plain or wrapped, goes through."""

from __future__ import annotations

import copy
import hashlib
import io
import math
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from data.metrics import psnr_y
from data.sets import from_batch, to_batch
from model.checkpoint import read_state, save_checkpoint
from runtime.errors import UserError
from runtime.files import atomic_write
from training.log import Log
from training.optimizers import make_optimizer
from training.options import TrainingOptions
from training.processes import Process, keep_freed_memory
from training.samples import Crops, ResidentCrops, TrainingImage

_LAYOUT = 1  # of the checkpoint file
COLLAPSE_DB = 0.5
"""A score so far under the best one of its run means that the network has unlearnt, which a finite loss hides."""


def rmse(result: Tensor, target: Tensor) -> Tensor:
    """Mean over a batch, (N, …), of the root mean square error of each image.

    A quarter of a level of 255 stands under each root; without it an image that is met exactly has no finite gradient.
    """
    squared = (result - target).square().flatten(1).mean(dim=1)
    return (squared + (0.25 / 255) ** 2).sqrt().mean()


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "rmse": rmse}


@dataclass(frozen=True)
class TrainingResult:
    """How a call of ``train`` ended."""

    step: int
    """Steps done since the run began, resumed ones included."""
    psnr_y_db: float | None
    """Validation PSNR of the averaged weights, in dB, where it was taken last in this call."""
    best_psnr_y_db: float | None
    finished: bool
    """False where the run can be resumed."""
    schema: int = 1


class Run:
    """Everything that changes while training, and that a checkpoint keeps."""

    def __init__(self, model: nn.Module, options: TrainingOptions, process: Process) -> None:
        self.options, self.process = options, process
        self.layout = torch.channels_last if options.channels_last else torch.contiguous_format
        self.model = model.to(process.device, memory_format=self.layout).train()  # type: ignore[call-overload]
        self.average: nn.Module = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = make_optimizer(
            options.optimizer,
            self.model.parameters(),
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
        )
        self.step = 0
        self.seconds = 0.0
        self.best: float | None = None
        self.held_out = ""
        """What ``best`` was scored on."""
        parallel = process.parallel(self.model)
        self._forward: Callable[[Tensor], Tensor] = torch.compile(parallel) if options.compile else parallel
        recorded = options.gpu_graph and process.world == 1 and process.device != "cpu"
        self._recorded = RecordedStep(self._gradient) if recorded else None

    def learn(self, lr: Tensor, hr: Tensor, target: Tensor | None) -> Tensor:
        """One step on one batch; returns the loss of this process's share of it and the L2 norm of the gradient of
        all processes before it is clipped, (2,) on the device.
        """
        rate = self.options.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        device = self.process.device
        lr, hr = (part.to(device, memory_format=self.layout) for part in (lr, hr))
        if target is not None:
            target = target.to(device, memory_format=self.layout)
        step = self._gradient if self._recorded is None else self._recorded
        report = step(lr, hr, target)
        self.optimizer.step()
        self._follow()
        self.step += 1
        return report

    def _gradient(self, lr: Tensor, hr: Tensor, target: Tensor | None) -> Tensor:
        """Leave the gradient of a batch in the parameters, clipped; returns loss and norm as of ``learn``."""
        device_type = self.process.device.split(":")[0]
        with torch.autocast(device_type, torch.bfloat16, enabled=self.options.precision == "bf16"):
            result = self._forward(lr)
        result = result.float()
        distance = _DISTANCES[self.options.loss]
        loss = distance(result, hr)
        if target is not None:
            share = self.options.teacher_share
            loss = (1 - share) * loss + share * distance(result, target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        longest = self.options.clip_norm
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), float("inf") if longest is None else longest)
        return torch.stack((loss.detach(), norm))

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
            "held_out": self.held_out,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_name": self.options.optimizer,
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
            if (name := state.get("optimizer_name", self.options.optimizer)) != self.options.optimizer:
                raise ValueError(f"the optimizer is {name}")
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:
                group["weight_decay"] = self.options.weight_decay
        except Exception as error:  # the unpickler raises many kinds; all of them mean the same to the user
            raise UserError(
                f"{path} cannot be resumed with these options ({type(error).__name__}: {error}). "
                "Name the options it was made with, or another --output."
            ) from error
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        if state.get("held_out", self.held_out) != self.held_out:
            self.best = None  # scores of other images say nothing about these

    def write_weights(self, path: Path, psnr: float | None) -> None:
        """Write the averaged weights, with what they are and how they came about."""
        metadata = {
            "model": self.options.model,
            "steps": str(self.step),
            "training": self.options.to_json(),
            "validation_psnr_y_db": "" if psnr is None else f"{psnr:.4f}",
        }
        save_checkpoint(self.average.state_dict(), path, metadata=metadata)


class RecordedStep:
    """A function of tensors of fixed shapes, run as a CUDA graph from its fourth call on."""

    WARM_UP = 3

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> None:
        self._function = function
        self._calls = 0
        self._graph = torch.cuda.CUDAGraph()
        self._inputs: tuple[Tensor | None, ...] = ()
        self._output: Tensor | None = None

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        self._calls += 1
        if self._calls <= self.WARM_UP:  # on a stream of its own, as recording wants it
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                result = self._function(*inputs)  # type: ignore[arg-type]
            torch.cuda.current_stream().wait_stream(stream)
            return result
        if self._output is None:
            self._inputs = tuple(None if part is None else part.clone() for part in inputs)
            with torch.cuda.graph(self._graph):
                self._output = self._function(*self._inputs)  # type: ignore[arg-type]
        for mine, theirs in zip(self._inputs, inputs, strict=True):
            if mine is not None and theirs is not None:
                mine.copy_(theirs)
        self._graph.replay()
        return self._output.clone()


def train(
    model: nn.Module,
    options: TrainingOptions,
    images: Sequence[TrainingImage],
    validation: Sequence[TrainingImage],
    *,
    scale: int,
    process: Process | None = None,
    max_steps: int | None = None,
    finish_in: int | None = None,
    teach: Callable[[Tensor], Tensor] | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> TrainingResult:
    """Train ``model`` until ``options.steps``, resuming what is in ``options.output``.

    Writes there ``checkpoint.pt`` (to resume from), ``ema.safetensors`` and ``best.safetensors`` (averaged weights, at
    the last save and of the best validation score, with the checkpoint ``best.pt``), ``log.jsonl`` and
    ``options.json``. SIGTERM and SIGINT save and return after the running step. A run whose score falls by
    ``COLLAPSE_DB`` goes back to its best checkpoint and ends.

    Args:
        model: (N, 3, H, W) float32 RGB in [0, 1] to (N, 3, scale·H, scale·W); may be wrapped, for instance by fake
            quantizers: the loop only calls it and reads its state dict.
        options: the run.
        images: learnt from.
        validation: scored, never learnt from.
        scale: of the network.
        process: this process among several; None is alone.
        max_steps: stop after so many steps of this call, as if interrupted.
        finish_in: let the rate fall over so many steps from where the checkpoint stands, and end there.
        teach: gives the targets of a batch, (N, 3, s·H, s·W) of its LR crops, where the images have none; on the CPU.
        report: called with each record of the log, on the first process.

    Raises:
        UserError: the batch does not divide, the checkpoint in the folder is of another run, or the loss or the score
            is lost.
    """
    process = process or Process()
    if options.batch % process.world:
        raise UserError(f"The batch of {options.batch} does not divide among {process.world} processes.")
    torch.set_flush_denormal(True)  # the tails of the momenta are denormal numbers, which a CPU adds slowly
    if process.device == "cpu":
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = True  # every step has the same shapes
    run = Run(model, options, process)
    run.held_out = _identity(validation)
    checkpoint, best_checkpoint = options.output / "checkpoint.pt", options.output / "best.pt"
    options.output.mkdir(parents=True, exist_ok=True)
    if checkpoint.is_file():
        run.load(checkpoint)
    elif finish_in is not None:
        raise UserError(f"--finish-in takes up a run, but there is no checkpoint in {options.output}.")
    if finish_in is not None:
        options = run.options = options.finishing(run.step, finish_in)
    process.wait()  # nobody writes before all have read
    if process.first and run.best is not None and not best_checkpoint.is_file():
        run.save(best_checkpoint)  # the checkpoint was brought from elsewhere: go back to it if need be
    end = options.steps if max_steps is None else min(options.steps, run.step + max_steps)
    crops = _crops(images, options, scale, process.device, taught=teach is not None)
    log = None
    if process.first:
        with atomic_write(options.output / "options.json") as stream:
            stream.write(options.to_json().encode())
        log = Log(options.output, step=run.step, tensorboard=options.tensorboard)
    psnr: float | None = None
    scored = -1
    learnt: list[Tensor] = []
    clock = time.monotonic()

    def record(**values: float) -> None:
        if log is not None:
            entry = {"step": run.step, "wall_s": round(run.seconds, 1), **values}
            log.write(entry)
            if report is not None:
                report(entry)

    def finite() -> tuple[Tensor, Tensor]:
        """Losses and norms that are not written yet; nothing is kept of weights that are no numbers."""
        losses, norms = torch.stack(learnt).unbind(1) if learnt else (torch.zeros(0), torch.zeros(0))
        if process.any(not (losses.isfinite().all() and norms.isfinite().all())):
            raise UserError(
                f"The loss or its gradient is no longer finite at step {run.step}: the run diverged. Resume it from "
                f"the last checkpoint with a lower --learning-rate than {options.learning_rate}."
            )
        return losses, norms

    def save() -> None:
        if process.first:
            run.save(checkpoint)
            run.write_weights(options.output / "ema.safetensors", psnr if run.step == scored else None)

    with Stop() as stop, ThreadPoolExecutor(1) as ahead:

        def cut(step: int) -> Callable[[], tuple[Tensor, Tensor, Tensor | None]]:
            if isinstance(crops, ResidentCrops):  # the GPU does it, and never waits for this thread
                return partial(prepare, step)
            return ahead.submit(prepare, step).result

        def prepare(step: int) -> tuple[Tensor, Tensor, Tensor | None]:
            lr, hr, target = crops.batch(step, rank=process.rank, world=process.world)
            return lr, hr, teach(lr) if teach is not None else target

        upcoming = cut(run.step)
        while run.step < end:
            batch = upcoming()
            upcoming = cut(run.step + 1)  # the next crops are cut, and taught, while this step runs
            learnt.append(run.learn(*batch))
            now = time.monotonic()
            run.seconds, clock = run.seconds + now - clock, now
            last = run.step == end
            if run.step % options.log_every == 0 or last:
                losses, norms = finite()
                learnt.clear()
                loss = process.mean(float(losses.mean()))
                record(
                    loss=round(loss, 6),
                    learning_rate=options.rate(run.step - 1),
                    highest_gradient_norm=round(float(norms.max()), 5),
                )
            if validation and (run.step % options.validate_every == 0 or last):
                finite()
                if process.first:
                    psnr = score(run.average, validation, device=process.device, layout=run.layout)
                    scored = run.step
                    record(psnr_y_db=round(psnr, 4))
                    if run.best is None or psnr > run.best:
                        run.best = psnr
                        run.write_weights(options.output / "best.safetensors", psnr)
                        run.save(best_checkpoint)
                if process.any(psnr is not None and run.best is not None and not psnr >= run.best - COLLAPSE_DB):
                    fallen = f"from {run.best or 0:.2f} to {psnr or 0:.2f} dB by step {run.step}"
                    run.load(best_checkpoint)
                    psnr, scored = run.best, run.step
                    save()
                    raise UserError(
                        f"The score on the held-out images fell {fallen}: the network has unlearnt. {checkpoint} is "
                        f"back at step {run.step}, the best one; resume it with a lower --learning-rate than "
                        f"{options.learning_rate}, or with clip_norm."
                    )
            stopping = process.any(stop.requested)
            if run.step % options.save_every == 0 or last or stopping:
                finite()
                save()
            if stopping:
                break
    if log is not None:
        log.close()
    return TrainingResult(run.step, psnr, run.best, run.step >= options.steps)


def _identity(images: Sequence[TrainingImage]) -> str:
    """What scores of these images are comparable within."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.path.name} {image.hr.shape} ".encode() + np.ascontiguousarray(image.lr).tobytes())
    return digest.hexdigest()


def _crops(
    images: Sequence[TrainingImage], options: TrainingOptions, scale: int, device: str, *, taught: bool
) -> Crops:
    """The crops of a run; of images that fit in half of what is free on a GPU, there."""
    shape: dict[str, int] = {"scale": scale, "patch": options.patch, "batch": options.batch, "seed": options.seed}
    if device != "cpu" and not taught and 2 * ResidentCrops.bytes_of(images) < torch.cuda.mem_get_info(device)[0]:
        return ResidentCrops(images, device=device, **shape)
    return Crops(images, **shape)


def score(
    network: nn.Module,
    images: Sequence[TrainingImage],
    *,
    device: str = "cpu",
    layout: torch.memory_format = torch.channels_last,
) -> float:
    """Mean PSNR on luma in dB over whole images, by the project's scoring protocol."""
    scores = []
    with torch.inference_mode():
        for image in images:
            batch = torch.from_numpy(to_batch(image.lr)).to(device, memory_format=layout)
            result = from_batch(network(batch).float().cpu().numpy())
            scores.append(psnr_y(result, image.hr, crop=image.hr.shape[0] // image.lr.shape[0]))
    return float(np.mean(scores))


def load_fitting(model: nn.Module, path: Path, *, scale: int | None = None) -> list[str]:
    """Load the tensors of ``path`` that fit, and return the names of those that stay fresh.

    A last convolution of another scale becomes one whose pixels are the means over their areas in the old ones': an x2
    network begins as the x4 network whose result is halved.

    Args:
        model: to be filled.
        path: a checkpoint.
        scale: of ``model``; without it only what has the same shape fits.

    Raises:
        UserError: the file cannot be read or nothing in it fits.
    """
    own = model.state_dict()
    fitting = {}
    for key, value in read_state(path).items():
        if key not in own:
            continue
        if scale is not None and own[key].shape != value.shape and len(own[key]) == 3 * scale**2:
            value = _of_scale(value, scale)
        if own[key].shape == value.shape:
            fitting[key] = value
    if not fitting:
        raise UserError(f"Nothing in {path} fits the network to be trained.")
    return list(model.load_state_dict(fitting, strict=False).missing_keys)


def _of_scale(tensor: Tensor, scale: int) -> Tensor:
    """(3·r², …), weights or biases in front of a pixel shuffle by r, for a shuffle by ``scale``; others as they are."""
    before = math.isqrt(len(tensor) // 3)
    if len(tensor) != 3 * before**2:
        return tensor
    ends, old_ends = torch.arange(scale + 1) / scale, torch.arange(before + 1) / before
    overlap = torch.minimum(ends[1:, None], old_ends[1:]) - torch.maximum(ends[:-1, None], old_ends[:-1])
    share = (overlap * scale).clamp(min=0).to(tensor)  # (scale, r), each row sums to 1
    grid = tensor.unflatten(0, (3, before, before))
    return torch.einsum("iy,jx,cyx...->cij...", share, share, grid).flatten(0, 2)


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
