"""TensorRT plans: what one is (the JSON beside it), whether it fits here, and whether it may be loaded at all.

A plan is native code that TensorRT runs without looking at it. So only plans are loaded whose hash this user's own
builds have left in the private cache folder, or that the user vouches for by ``--trust-engine``.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.files import atomic_write, cache_folder, private_folder
from runtime.flavour import Flavour, FlavourName

SCHEMA = 1
Size = tuple[int, int]
"""Height and width in LR pixels."""


@dataclass(frozen=True)
class Profile:
    """Sizes of the input that a plan takes; it is tuned for ``best``. One picture at a time."""

    smallest: Size
    best: Size
    largest: Size

    @property
    def fixed(self) -> bool:
        """Whether the plan takes one size only."""
        return self.smallest == self.largest

    def holds(self, height: int, width: int) -> bool:
        """Whether a picture of this size may go in."""
        return all(a <= b <= c for a, b, c in zip(self.smallest, (height, width), self.largest, strict=True))

    def __str__(self) -> str:
        """As ``--shapes`` takes it: width x height."""
        sizes = (self.best,) if self.fixed else (self.smallest, self.best, self.largest)
        return ",".join(f"{width}x{height}" for height, width in sizes)


@dataclass(frozen=True)
class Layer:
    """A layer of the built engine as the library reports it."""

    name: str
    kind: str
    inputs: list[str]
    """Data types of the activations, such as Int8."""
    constants: list[str]
    outputs: list[str]
    onnx_nodes: list[str]


@dataclass(frozen=True)
class PlanRecord:
    """All that decides whether a plan fits, and how to build it again. Written beside the plan as ``PLAN.json``."""

    flavour: FlavourName
    version: str
    targets: list[str]
    """Compute capabilities such as sm86; those of the GPU that it was built on where none was named."""
    device: str | None
    """Name of the GPU that it was built on; None where it was built without one."""
    compute_capability: str | None
    driver: str | None
    profile: Profile
    precision: str
    onnx: str
    onnx_sha256: str
    plan_sha256: str
    options: dict[str, Any]
    tool_version: str
    metadata: dict[str, str]
    """What the exporter wrote into the ONNX file."""
    int8_convolutions: int
    int8_convolutions_meant: int
    reproducible: bool = False
    """By TensorRT-RTX for one size, or for a range where the plan came twice with fixed addresses: another build gives
    almost always the same bytes then (docs/decisions/0005-same-plan.md)."""
    layers: list[Layer] = field(default_factory=list)
    schema: int = SCHEMA


def sidecar(plan: Path) -> Path:
    """Where the record of a plan is."""
    return plan.with_name(plan.name + ".json")


def write_record(plan: Path, record: PlanRecord) -> None:
    """Write the record beside its plan."""
    with atomic_write(sidecar(plan)) as stream:
        stream.write((json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n").encode())


def read_record(plan: Path) -> PlanRecord | None:
    """The record beside a plan; None where there is none.

    Raises:
        UserError: it is no record of this version.
    """
    path = sidecar(plan)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            return None
        raise UserError(f"{path} cannot be read: build the plan again.") from error
    try:
        content: Any = json.loads(text)
        if content["schema"] != SCHEMA:
            raise UserError(f"{path} was written by another version of this program: build the plan again.")
        sizes = {key: (int(height), int(width)) for key, (height, width) in content["profile"].items()}
        values = {**content, "profile": Profile(**sizes), "layers": [Layer(**layer) for layer in content["layers"]]}
        record = PlanRecord(**values)
        texts = (record.version, record.onnx, record.onnx_sha256, record.plan_sha256, *record.targets)
        if record.flavour not in ("tensorrt", "rtx") or not all(isinstance(value, str) for value in texts):
            raise TypeError
        if Path(record.onnx).name != record.onnx or not isinstance(record.metadata, dict):
            raise ValueError
        dict(record.options)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no record of a plan: build the plan again.") from error
    return record


def sha256(content: bytes) -> str:
    """The hash by which plans and models are known, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def trust_plan(plan_sha256: str) -> None:
    """Remember that a plan was built here by this user."""
    with atomic_write(_trusted() / plan_sha256) as stream:
        stream.write(b"built here\n")


def is_trusted(plan_sha256: str) -> bool:
    """Whether a plan of this hash was built here by this user."""
    return (_trusted() / plan_sha256).is_file()


def check_origin(plan: Path, content: bytes, record: PlanRecord | None, *, vouched: bool) -> None:
    """Refuse a plan that was not built here, or not left as it was built.

    Raises:
        UserError: and nothing of the plan has been run.
    """
    found = sha256(content)
    if record is not None and record.plan_sha256 != found:
        raise UserError(
            f"{plan} is not the plan that was built: it is truncated or altered, for its hash is not that of "
            f"{sidecar(plan).name}. Build it again{_by(plan, record)}."
        )
    if not vouched and not is_trusted(found):
        raise UserError(
            f"{plan} was not built on this machine, and a plan is native code: build it here{_by(plan, record)}, "
            "or load it with --trust-engine if you trust whoever made it."
        )


def misfit(record: PlanRecord, flavour: Flavour, compute_capability: str, device: str) -> str | None:
    """Why a plan cannot run here, as the end of a sentence that starts with the plan; None where it fits.

    Args:
        record: of the plan.
        flavour: of TensorRT that is installed.
        compute_capability: of the GPU here, as "8.7".
        device: the GPU's name.
    """
    if record.flavour != flavour.name or record.version != flavour.version:
        built = "TensorRT-RTX" if record.flavour == "rtx" else "TensorRT"
        return f"was built by {built} {record.version}, and {flavour} is installed here"
    if f"sm{compute_capability.replace('.', '')}" not in record.targets:
        return (
            f"was built for {', '.join(record.targets)}, and this {device} is sm{compute_capability.replace('.', '')}"
        )
    if record.flavour == "tensorrt" and record.device != device:
        return f"was built and tuned on another GPU ({record.device}), and this is {device}"
    return None


def rebuild_arguments(record: PlanRecord, *, onnx: Path, output: Path, flavour: str | None = None) -> list[str]:
    """Arguments of ``export/to_tensorrt.py`` that build the same plan for the GPU and the TensorRT that are here."""
    arguments = [str(onnx), "-o", str(output), "--flavour", flavour or record.flavour, "--shapes", str(record.profile)]
    if workspace := record.options.get("workspace_mib"):
        arguments += ["--workspace", str(workspace)]
    return arguments


def rebuild_command(plan: Path, record: PlanRecord, flavour: str | None = None) -> str:
    """A line for the shell."""
    arguments = rebuild_arguments(record, onnx=plan.with_name(record.onnx), output=plan, flavour=flavour)
    return "python export/to_tensorrt.py " + shlex.join(arguments)


def onnx_beside(plan: Path, record: PlanRecord) -> Path | None:
    """The very ONNX file that a plan was built from, where it stands beside it."""
    path = plan.with_name(Path(record.onnx).name)
    if path.is_file() and sha256(path.read_bytes()) == record.onnx_sha256:
        return path
    return None


def _trusted() -> Path:
    return private_folder(cache_folder() / "trusted-plans")


def _by(plan: Path, record: PlanRecord | None) -> str:
    return " by python export/to_tensorrt.py" if record is None else f" by {rebuild_command(plan, record)}"
