"""What a training run is, in one typed record; read from TOML, written beside the weights it made."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runtime.errors import UserError


@dataclass(frozen=True)
class TrainingOptions:
    """One training run. The defaults are the paper's recipe; ``docs/training.md`` has that for a CPU.

    Steps, batch and schedule are global: they mean the same on one process and on eight.
    """

    output: Path
    """Folder of the run: checkpoint, weights, log, options."""
    model: str = "gmin_x4"
    data: Path | None = None
    """Folder of image sets, searched recursively; None is ``training`` under GMIN_DATA."""
    exclude: tuple[str, ...] = ()
    """Glob patterns, relative to ``data``, of images to leave out."""
    validation: tuple[str, ...] = ("Kodak24/*4.png", "BSDS500/test/*7.jpg")
    """Glob patterns, relative to ``data``, of the images that are held out and scored."""
    cache: Path | None = None
    """Folder for LR images and teacher targets, made once; None keeps LR images in memory only."""
    initial: Path | None = None
    """Checkpoint to start from; layers that do not fit (another scale) start fresh and are named."""

    steps: int = 1_000_000
    batch: int = 64
    """Crops a step, over all processes together."""
    patch: int = 48
    """Side of an LR crop in pixels."""
    optimizer: Literal["adan", "adamw"] = "adan"
    learning_rate: float = 5e-3
    weight_decay: float = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the fall to ``final_rate`` over the last ``decay_steps`` steps."""
    warmup_steps: int = 1000
    decay_steps: int | None = None
    """Length of the fall at the end; None falls from the warm-up to the end."""
    final_rate: float = 0.01
    """Learning rate of the last step, as a share of ``learning_rate``."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what gets scored and shipped."""

    teacher: str | None = None
    """Registered network whose outputs on whole training images are extra targets."""
    teacher_share: float = 0.7
    """Share of the L1 distance to the teacher's output; the rest is the L1 distance to the HR image."""

    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    """Faster on every device measured; a CPU step takes 0.4 of the time."""
    compile: bool = False
    fast_depthwise: bool = False
    """Compiled depth-wise kernels for the CPU (``training/depthwise.py``); a step takes 0.6 of the time."""
    threads: int | None = None

    log_every: int = 50
    validate_every: int = 1000
    save_every: int = 1000

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "patch", "log_every", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.teacher_share <= 1:
            raise UserError(f"teacher_share must lie between 0 and 1, got {self.teacher_share}.")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema must be at least 0 and below 1, got {self.ema}.")
        if self.warmup_steps < 0 or (self.decay_steps is not None and not 0 <= self.decay_steps <= self.steps):
            raise UserError("warmup_steps and decay_steps must lie between 0 and steps.")

    def rate(self, step: int) -> float:
        """Learning rate of step ``step``, counted from 0: warm-up, plateau, fall."""
        import math

        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        decay = self.steps - self.warmup_steps if self.decay_steps is None else self.decay_steps
        progress = min(1.0, max(0.0, (step + 1 - (self.steps - decay)) / max(decay, 1)))
        fall = {
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "linear": 1 - progress,
            "constant": 1.0,
        }[self.schedule]
        return self.learning_rate * warm * (self.final_rate + (1 - self.final_rate) * fall)

    def data_folder(self) -> Path:
        """Where the training images are.

        Raises:
            UserError: no folder is named, or it is not there.
        """
        folder = self.data
        if folder is None:
            root = os.environ.get("GMIN_DATA")
            if not root:
                raise UserError("Name the folder of training images with --data, or set GMIN_DATA.")
            folder = Path(root) / "training"
        if not folder.is_dir():
            raise UserError(f"There is no folder of training images at {folder}.")
        return folder

    def to_json(self) -> str:
        """The options as JSON; paths as strings."""
        return json.dumps(dataclasses.asdict(self), default=str, indent=1)


def options_from(table: dict[str, Any], **overrides: Any) -> TrainingOptions:
    """Options from a table (of TOML or JSON); ``overrides`` that are not None win.

    Raises:
        UserError: a name is unknown or a value has the wrong type.
    """
    kinds = {field.name: str(field.type) for field in dataclasses.fields(TrainingOptions)}
    merged = {**table, **{name: value for name, value in overrides.items() if value is not None}}
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
    import sys

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


def _typed(name: str, value: Any, kind: str) -> Any:
    if value is None and "None" in kind:
        return None
    if kind.startswith("Path") and isinstance(value, str | Path):
        return Path(value).expanduser()
    if kind.startswith("tuple") and isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if kind.startswith("float") and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind.startswith("int") and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind.startswith("bool") and isinstance(value, bool):
        return value
    if kind.startswith("str") and isinstance(value, str):
        return value
    if kind.startswith("Literal") and repr(value).replace("'", '"') in kind.replace("'", '"'):
        return value
    raise UserError(f"The training option {name} is {value!r}, but must be {kind}.")
