"""A Q/DQ, FP16 or FP32 ONNX file as a TensorRT plan, by ``tensorrt`` or ``tensorrt_rtx``, and what was built.

python export/to_tensorrt.py gmin_x4_int8.onnx -o gmin_x4.plan --shapes 16x16,256x256,512x512
"""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, write_json
from runtime.errors import UserError
from runtime.files import atomic_write, cache_folder, check_writable, private_folder
from runtime.flavour import Flavour, FlavourOption, load_flavour
from runtime.plans import SCHEMA, PlanRecord, Profile, read_record, sha256, sidecar, trust_plan, write_record

if TYPE_CHECKING:
    from onnx import ModelProto

    from runtime.cuda import Gpu

DEFAULT_BEST = 256
DEFAULT_LARGEST = 512
"""Sides for which a plan is built where nobody says: those of a default tile and of the largest untiled picture."""
_JETSONS = ("sm72", "sm87", "sm101", "sm110")


@dataclass(frozen=True)
class Built:
    """What a build gave. ``cached`` says that an equal one was found and copied."""

    plan: str
    cached: bool
    size_bytes: int
    record: PlanRecord


def plan_from_onnx(
    path: Path,
    output: Path,
    *,
    flavour: FlavourOption = "auto",
    shapes: str | None = None,
    targets: tuple[str, ...] = (),
    workspace_mib: int | None = None,
    timing_cache: Path | None = None,
    cache: bool = True,
) -> Built:
    """Build a plan, write it and its record, and remember that it was built here.

    Args:
        path: an ONNX file with one float input (N, 3, H, W); its graph alone decides the precision.
        output: the plan; its record goes beside it as ``OUTPUT.json``.
        flavour: which TensorRT.
        shapes: "WxH" for one size, "MIN,OPT,MAX" for a range, each WxH in LR pixels.
        targets: compute capabilities such as sm86 (RTX only); none for the GPU that is here.
        workspace_mib: scratch memory that the builder may plan with, in MiB; None leaves the choice to the library.
        timing_cache: file of measured kernels, read and extended (not RTX, which measures nothing at build time).
        cache: take an equal plan from the private cache, and leave this one there.

    Raises:
        UserError: the file would be refused or clipped, the shapes do not fit it, TensorRT or the GPU is not there, or
            the library fails; the message has its reason. Nothing is written then.
    """
    from filelock import FileLock

    from export.build_process import build_apart
    from export.builder import build_plan
    from export.layers import int8_convolutions, quantized_convolutions
    from quantize.graph import read_onnx

    model = read_onnx(path)
    check_for_tensorrt(model, path)
    profile = profile_for(model, path, shapes)
    library = load_flavour(flavour)
    gpu = _gpu(library, targets)
    compiled_for = (
        tuple(dict.fromkeys(targets)) or (f"sm{gpu.compute_capability.replace('.', '')}",) if gpu else targets
    )
    content = path.read_bytes()
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    options = {"workspace_mib": workspace_mib, "targets": list(targets)}
    record = PlanRecord(
        flavour=library.name,
        version=library.version,
        targets=list(compiled_for),
        device=gpu.name if gpu else None,
        compute_capability=gpu.compute_capability if gpu else None,
        driver=gpu.driver if gpu else None,
        profile=profile,
        precision=metadata.get("gmin.precision", "unknown"),
        onnx=path.name,
        onnx_sha256=sha256(content),
        plan_sha256="",
        options=options,
        tool_version=_tool_version(),
        metadata=metadata,
        int8_convolutions=0,
        int8_convolutions_meant=0,
    )
    folder = private_folder(cache_folder() / "plans")
    kept = folder / f"{_key(record)}.plan"
    with FileLock(kept.with_suffix(".lock")):
        if cache and (found := _kept(kept)) is not None:
            plan, record = found
            cached = True
        else:
            if library.name == "rtx":
                plan, layers, reproducible = build_apart(
                    content, library, profile, targets=targets, workspace_mib=workspace_mib
                )
            else:  # it measures kernels: its plans differ anyway
                plan, layers = build_plan(
                    content, library, profile, targets=targets, workspace_mib=workspace_mib, timing_cache=timing_cache
                )
                reproducible = False
            meant = quantized_convolutions(model)
            record = replace(
                record,
                plan_sha256=sha256(plan),
                reproducible=reproducible,
                layers=layers,
                int8_convolutions=len(int8_convolutions(layers, meant)),
                int8_convolutions_meant=len(meant),
            )
            cached = False
            if cache:
                _write(kept, plan, record)
    trust_plan(record.plan_sha256)
    _write(output, plan, record)
    return Built(plan=str(output), cached=cached, size_bytes=len(plan), record=record)


def check_for_tensorrt(model: ModelProto, path: Path) -> None:
    """Refuse a graph that TensorRT would refuse, or silently clip.

    Raises:
        UserError: naming the first fault.
    """
    from quantize.lint import lint_for_tensorrt

    faults = lint_for_tensorrt(model)
    if faults:
        more = f" (and {len(faults) - 1} more: python quantize/lint.py {path})" if len(faults) > 1 else ""
        raise UserError(
            f"TensorRT would not run {path} as it is meant: {faults[0]}{more}. Quantize with --target tensorrt."
        )


def profile_for(model: ModelProto, path: Path, shapes: str | None) -> Profile:
    """The sizes that a plan shall take, checked against the network before anything is built.

    Raises:
        UserError: the text is no list of sizes, they are not in order, or the network does not take them.
    """
    from runtime.engines.contract import recorded

    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise UserError(f"{path} is no super-resolution network: it has not one input and one output.")
    dimensions = inputs[0].type.tensor_type.shape.dim
    if len(dimensions) != 4 or dimensions[1].dim_value != 3:
        raise UserError(f"{path} is no super-resolution network: its input is not pictures of N x 3 x H x W.")
    if dimensions[0].dim_value > 1:
        raise UserError(f"{path} takes {dimensions[0].dim_value} pictures at a time; export it for one, or for any.")
    fixed = dimensions[2].dim_value, dimensions[3].dim_value  # 0 where any size is taken
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    least = recorded(path, metadata, "gmin.minimum_size", 1, range(1, 1025))
    if shapes is None:
        low, best, high = (
            tuple(side or default for side in fixed)
            for default in (min(max(least, 16), DEFAULT_BEST), max(DEFAULT_BEST, least), max(DEFAULT_LARGEST, least))
        )
        return Profile((low[0], low[1]), (best[0], best[1]), (high[0], high[1]))
    sizes = [_size(text, shapes) for text in shapes.split(",")]
    if len(sizes) not in (1, 3):
        raise UserError(f"--shapes {shapes} must be one size, or three: MIN,OPT,MAX, such as 64x64,256x256,512x512.")
    low, best, high = sizes * 3 if len(sizes) == 1 else sizes
    if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        raise UserError(f"--shapes {shapes} must grow: MIN, OPT and MAX in this order, in width and in height.")
    if min(low) < least:
        raise UserError(f"--shapes {shapes} starts below {least} pixels, the smallest side that this network takes.")
    for side, name, index in ((fixed[0], "height", 0), (fixed[1], "width", 1)):
        if side and {low[index], best[index], high[index]} != {side}:
            raise UserError(f"{path} has a fixed {name} of {side}, and --shapes {shapes} asks for another.")
    return Profile(low, best, high)


def _gpu(library: Flavour, targets: tuple[str, ...]) -> Gpu | None:
    """The GPU that the plan is for, or None where targets name others.

    Raises:
        UserError: this flavour cannot build for that target, or there is no GPU.
    """
    from export.builder import known_targets

    if library.name == "rtx":
        known = known_targets(library)
        for target in targets:
            if target not in known:
                raise UserError(
                    f"{library} builds for {', '.join(known)}, not for {target}."
                    + (
                        " Jetsons build on the device, with the flavour tensorrt."
                        if target in ("sm87", "sm110")
                        else ""
                    )
                )
        if targets:
            return None
    from runtime.cuda import open_cuda

    try:
        cuda = open_cuda()
    except UserError as error:
        advice = (
            f"name the cards to build for, such as --target sm86 (known: {', '.join(known_targets(library))})"
            if library.name == "rtx"
            else "this flavour builds on the very GPU that will run the plan"
        )
        raise UserError(f"{str(error).rstrip('.')}; {advice}.") from error
    try:
        here = f"sm{cuda.gpu.compute_capability.replace('.', '')}"
        if targets and set(targets) != {here}:
            raise UserError(
                f"{library} builds only for the GPU that is here, {here}; for other cards take --flavour rtx, for a "
                "Jetson build on the device."
            )
        return cuda.gpu
    finally:
        cuda.close()


def _key(record: PlanRecord) -> str:
    """Name in the cache: a hash of all that a plan depends on."""
    import json

    return sha256(json.dumps({**asdict(record), "schema": SCHEMA}, sort_keys=True).encode())


def _kept(path: Path) -> tuple[bytes, PlanRecord] | None:
    """A plan from the cache, if it is whole; a broken one is built again."""
    try:
        record = read_record(path)
        plan = path.read_bytes()
    except (OSError, UserError):
        return None
    return (plan, record) if record is not None and record.plan_sha256 == sha256(plan) else None


def _write(path: Path, plan: bytes, record: PlanRecord) -> None:
    """The plan first: a record without its plan would describe an older one."""
    sidecar(path).unlink(missing_ok=True)
    with atomic_write(path) as stream:
        stream.write(plan)
    write_record(path, record)


def _size(text: str, shapes: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d{1,5})x(\d{1,5})\s*", text)
    if found is None or not int(found[1]) or not int(found[2]):
        raise UserError(f"--shapes {shapes}: '{text}' is no size; write width x height, such as 256x256.")
    return int(found[2]), int(found[1])


def _tool_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gmin-edge")
    except PackageNotFoundError:
        return "0+unknown"


app = new_app("Build a TensorRT plan from an ONNX file.")


@app.command()
def main(
    model: Annotated[Path, typer.Argument(help="The .onnx file: FP32, FP16, or INT8 by quantize/ptq.py.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .plan file to write.")],
    more_targets: Annotated[list[str] | None, typer.Argument(metavar="[smNN...]", hidden=True)] = None,
    flavour: Annotated[
        FlavourOption, typer.Option(help="tensorrt: data centre and Jetson; rtx: TensorRT for RTX cards.")
    ] = "auto",
    shapes: Annotated[
        str | None,
        typer.Option(metavar="MIN,OPT,MAX", help="Sizes as WxH; one for fixed tiles. Default: 16 to 512, best 256."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="smNN...", help="GPUs to build for, as sm86 sm89 sm120 (rtx). Default: the one here."),
    ] = None,
    workspace: Annotated[int | None, typer.Option(min=1, help="Scratch memory of the builder, in MiB.")] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File of measured kernels to read and to extend (flavour tensorrt).")
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Take an equal plan from the private cache.")
    ] = True,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Build a TensorRT plan from an ONNX file: lint, build, and a JSON beside the plan that says what is in it."""
    if output.suffix.lower() not in (".plan", ".engine"):
        raise UserError(f"{output} must end in .plan or .engine.")
    for written in (output, *([timing_cache] if timing_cache else [])):
        check_writable(written)
    targets = tuple(_target(text) for entry in (*(target or ()), *(more_targets or ())) for text in entry.split(","))
    built = plan_from_onnx(
        model,
        output,
        flavour=flavour,
        shapes=shapes,
        targets=targets,
        workspace_mib=workspace,
        timing_cache=timing_cache,
        cache=cache,
    )
    record = built.record
    summary = {key: value for key, value in asdict(record).items() if key != "layers"}
    write_json({"plan": built.plan, "cached": built.cached, "size_bytes": built.size_bytes, **summary}, json_target)
    say(
        f"{built.plan}: {record.precision} by {'TensorRT-RTX' if record.flavour == 'rtx' else 'TensorRT'} "
        f"{record.version} for {', '.join(record.targets)}, {record.profile}, {built.size_bytes / 1e6:.1f} MB"
        f"{', from the cache' if built.cached else ''}\n"
        f"{record.int8_convolutions} of {record.int8_convolutions_meant} convolutions that the file means to be INT8 "
        f"are; {len(record.layers)} layers in {sidecar(output).name}",
        quiet=quiet,
        json_target=json_target,
    )
    if record.int8_convolutions < record.int8_convolutions_meant:
        say("warning: the library computes the others in float, or does not say how", quiet=quiet, json_target="-")
    if record.flavour == "rtx" and not record.reproducible:
        say(
            "note: another build for this range of sizes may differ in a few bytes here (docs/jetson.md)",
            quiet=quiet,
            json_target="-",
        )
    if timing_cache is not None and record.flavour == "rtx":
        say(
            "note: TensorRT-RTX measures nothing at build time; --timing-cache is not used",
            quiet=quiet,
            json_target="-",
        )


def _target(text: str) -> str:
    found = re.fullmatch(r"(?:sm_?)?(\d+)\.?(\d)", text.strip().lower())
    if found is None:
        raise UserError(f"'{text}' is no compute capability; write sm86, or 8.6.")
    return f"sm{found[1]}{found[2]}"


if __name__ == "__main__":
    run(app)
