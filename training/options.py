"""What a training run is, in one typed record; read from TOML, written beside the weights it made."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from runtime.errors import UserError


@dataclass(frozen=True)
class TrainingOptions:
    """One training run. The defaults are the paper's recipe; ``training/recipes`` has it and one for a CPU as TOML.

    Steps, batch and schedule are global: they mean the same on one process and on eight.
    """

    output: Path
    """Folder of the run: checkpoint, weights, log, options."""
    model: str = "gmin_x4"
    data: Path | None = None
    """Folder of HR images, searched recursively; None is ``training`` in the data folder."""
    lr_data: Path | None = None
    """Folder of LR images laid out like ``data``, as DIV2K ships them; None makes them from the HR images."""
    exclude: tuple[str, ...] = ()
    """Glob patterns, relative to ``data``, of images to leave out."""
    validation: tuple[str, ...] = ("Kodak24/*4.png", "BSDS500/test/*7.jpg")
    """Glob patterns, relative to ``data``, of the images that are held out and scored."""
    patterns: int = 0
    """Synthetic pictures (480×480) among the images: 24 of stripes, checks and zone plates, then of noise and blocks;
    needs ``cache``."""
    cache: Path | None = None
    """Folder for decoded images, LR images and teacher targets, made once and mapped into memory by all processes of
    a machine; None keeps HR and LR images in the memory of each process."""
    initial: Path | None = None
    """Checkpoint to start from; layers that do not fit start fresh and are named."""
    initialization: Literal["torch", "unit"] = "torch"
    """Fresh weights: PyTorch's own, or for GMIN and its variants those of ``training/initialization.py``, with which a
    short training learns more."""

    bounds: tuple[float, ...] = ()
    """What GMIN's modules limit their factors to (``model.gmin.Bounded``), from the first on; the last one goes for the
    rest. None given: those of the initial weights."""

    steps: int = 1_000_000
    batch: int = 64
    """Crops a step, over all processes together."""
    patch: int = 48
    """Side of an LR crop in pixels."""
    optimizer: Literal["adan", "adamw", "muon"] = "adan"
    learning_rate: float = 5e-3
    weight_decay: float = 0.0
    clip_norm: float | None = None
    """Gradients longer than this, in the L2 norm over all weights, are shortened to it; the log has the longest."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the fall to ``final_rate`` over the last ``decay_steps`` steps."""
    warmup_steps: int = 1000
    decay_steps: int | None = None
    """Length of the fall at the end; None falls from the warm-up to the end."""
    final_rate: float = 0.01
    """Learning rate of the last step, as a share of ``learning_rate``."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what gets scored and shipped."""

    loss: Literal["l1", "rmse"] = "l1"
    """l1: mean absolute error, the papers'; rmse: root mean square error of each crop, nearer to what PSNR measures."""
    teacher: str | None = None
    """Registered network, or engine such as ``openvino:lkdn_x4.onnx`` (on a CPU ten times as fast), whose outputs on
    whole training images are extra targets."""
    teacher_share: float = 0.7
    """Share of the distance to the teacher's output; the rest is the distance to the HR image."""

    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is autocast, for GPUs; on a CPU it gains nothing, ``cpu_kernels`` does."""
    channels_last: bool = True
    """Faster wherever it was measured; a CPU step takes 0.4 of the time."""
    compile: bool = False
    """``torch.compile``; on a CPU it gains nothing on GMIN and costs minutes at the start."""
    cpu_kernels: Literal["torch", "fp32", "bf16", "auto"] = "torch"
    """fp32: compiled depth-wise kernels, a step takes 0.6 of the time; bf16: 1×1 products in bfloat16 too, 0.45;
    auto: the fastest that the machine has, which on a GPU is torch."""
    gpu_kernels: Literal["torch", "triton"] = "torch"
    """triton: depth-wise convolutions by ``training/depthwise_gpu.py``."""
    gpu_graph: bool = False
    """Record a step of one process on one GPU as a CUDA graph, which spares starting its kernels one by one."""
    threads: int | None = None
    """CPU threads of each process; None leaves it to PyTorch."""

    log_every: int = 50
    validate_every: int = 1000
    save_every: int = 1000
    tensorboard: bool = False
    """Write TensorBoard events into ``output`` beside the JSON lines."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "patch", "log_every", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate must be above 0, got {self.learning_rate}.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UserError(f"clip_norm must be above 0, got {self.clip_norm}.")
        if self.seed < 0:
            raise UserError(f"seed must not be negative, got {self.seed}.")
        if not 0 <= self.teacher_share <= 1:
            raise UserError(f"teacher_share must lie between 0 and 1, got {self.teacher_share}.")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema must be at least 0 and below 1, got {self.ema}.")
        if self.cpu_kernels != "torch" and (self.precision != "fp32" or self.compile):
            raise UserError("cpu_kernels go with precision fp32 and without compile.")
        if self.initialization != "torch" and self.initial is not None:
            raise UserError("initial and initialization contradict each other: give one.")
        if not all(bound > 0 for bound in self.bounds):
            raise UserError(f"bounds must be above 0, got {self.bounds}.")
        if self.patterns < 0 or (self.patterns and self.cache is None):
            raise UserError("patterns must not be negative, and they are kept in the cache: name one with --cache.")
        if self.warmup_steps < 0 or (self.decay_steps is not None and not 0 <= self.decay_steps <= self.steps):
            raise UserError("warmup_steps must not be negative, and decay_steps must lie between 0 and steps.")

    def rate(self, step: int) -> float:
        """Learning rate of step ``step``, counted from 0: warm-up, plateau, fall."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        decay = max(1, self.steps - self.warmup_steps if self.decay_steps is None else self.decay_steps)
        progress = min(1.0, max(0.0, (step + 1 - (self.steps - decay)) / decay))
        fall = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
        return self.learning_rate * warm * (self.final_rate + (1 - self.final_rate) * fall[self.schedule])

    def finishing(self, step: int, steps: int) -> TrainingOptions:
        """The same run, at ``step`` now, whose rate falls over the next ``steps`` steps and which ends there."""
        schedule = "cosine" if self.schedule == "constant" else self.schedule
        return dataclasses.replace(self, steps=step + steps, decay_steps=steps, schedule=schedule)

    def to_json(self) -> str:
        """The options as JSON; paths as strings. ``options_from`` takes it back."""
        return json.dumps(dataclasses.asdict(self), default=str, indent=1)


def options_from(table: dict[str, Any], **named: Any) -> TrainingOptions:
    """Options from a table (of TOML or JSON); what is ``named`` and not None wins.

    Raises:
        UserError: a name is unknown, a value has the wrong type, or no output folder is given.
    """
    kinds = get_type_hints(TrainingOptions)
    merged = {**table, **{name: value for name, value in named.items() if value is not None}}
    unknown = sorted(set(merged) - set(kinds))
    if unknown:
        raise UserError(f"Unknown training option {', '.join(unknown)}; known are {', '.join(kinds)}.")
    if "output" not in merged:
        raise UserError("Name the folder of the run with --output.")
    return TrainingOptions(**{name: _typed(name, value, kinds[name]) for name, value in merged.items()})


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file of training options.

    Raises:
        UserError: the file is missing or is no TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML file ({error}).") from error


def _typed(name: str, value: Any, kind: Any) -> Any:
    """``value`` as the annotation ``kind`` wants it; TOML and JSON know neither paths nor tuples."""
    choices = get_args(kind) or (kind,)
    if value is None and type(None) in choices:
        return None
    if Path in choices and isinstance(value, str | Path):
        return Path(value).expanduser()
    if Ellipsis in choices:
        accepted = (int, float) if float in choices else (str,)
        if isinstance(value, list | tuple) and all(type(item) in accepted for item in value):
            return tuple(value)
    elif float in choices and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif type(value) in choices or (isinstance(value, str) and value in choices):
        return value
    allowed = ", ".join(getattr(choice, "__name__", str(choice)) for choice in choices if choice is not Ellipsis)
    raise UserError(f"The training option {name} is {value!r}; it takes {allowed}.")
