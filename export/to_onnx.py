"""A trained network as one ONNX file: folded, simplified, checked against PyTorch, and telling what it is.

python export/to_onnx.py --ckpt model/weights/gmin_x4.safetensors -o gmin_x4.onnx
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, write_json
from runtime.errors import UserError
from runtime.files import atomic_write, check_writable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto
    from torch import nn

    from model.registry import Network

Precision = Literal["fp32", "fp16"]

OPSET = 20  # the first with a real Gelu node, and one that TensorRT 10.3 on JetPack 6 reads
CHECKED_SIZES = ((1, 31, 45), (2, 16, 23), (1, 64, 33))  # batch, height, width
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}  # largest difference from PyTorch FP32 on [0, 1]


class DifferentError(RuntimeError):
    """What was exported does not give the pixels that PyTorch gives."""


@dataclass(frozen=True)
class Export:
    """What an export gave. Differences are the largest on [0, 1] against PyTorch FP32, by input size."""

    path: str
    model: str
    scale: int
    precision: Precision
    folded: bool
    opset: int
    nodes: int
    parameters: int
    size_bytes: int
    max_abs_difference: dict[str, float]
    fused_io: bool = False
    """Whether the file takes and gives uint8 pictures, (N, H, W, 3)."""
    schema: int = 1


def export_onnx(
    model: nn.Module,
    path: Path,
    network: Network,
    *,
    checkpoint_sha256: str = "",
    fold: bool = True,
    precision: Precision = "fp32",
    fuse_io: bool = False,
) -> Export:
    """Export ``model`` to ``path`` with dynamic batch, height and width, and check the file against PyTorch.

    Input and output are (N, 3, H, W) float32 RGB in [0, 1] for either precision; with ``fuse_io`` they are (N, H, W, 3)
    uint8 RGB (``export.fuse_io``). LKDN is rescaled first
    (``model.rescaling``): as released, its activations overflow FP16 and leave INT8 no usable scale.

    Raises:
        RuntimeError: the file gives other pixels than PyTorch; nothing is written then.
    """
    import torch

    from data.sets import sample_photo, to_batch
    from model.folding import can_fold
    from model.folding import fold as folded_copy
    from model.lkdn import Lkdn
    from model.rescaling import rescale_lkdn

    source = model.eval()
    if isinstance(model, Lkdn):
        source = rescale_lkdn(model, [torch.from_numpy(to_batch(sample_photo()))])
    folding = fold and can_fold(model)
    if folding:
        source = folded_copy(source)
    proto = onnx_from_model(source, network, precision=precision)
    for key, value in {
        "gmin.name": network.name,
        "gmin.scale": str(network.scale),
        "gmin.version": _version(),
        "gmin.source": network.source,
        "gmin.checkpoint_sha256": checkpoint_sha256,
        "gmin.precision": precision,
        "gmin.folded": str(folding).lower(),
        "gmin.input": "NCHW float32 RGB in [0, 1]",
        "gmin.minimum_size": str(network.minimum_size),
        "gmin.tiling": network.tiling,
        "gmin.receptive_radius": str(network.receptive_radius),
    }.items():
        proto.metadata_props.add(key=key, value=value)
    content = proto.SerializeToString(deterministic=True)
    differences = difference_from_torch(content, model, network.minimum_size)
    worst = max(differences.values())
    if not worst <= TOLERANCE[precision]:
        raise DifferentError(
            f"the exported {network.name} differs from PyTorch by {worst:.2e}, more than {TOLERANCE[precision]:.0e}"
        )
    if fuse_io:
        from export.fuse_io import fuse_io as with_pixels

        proto = with_pixels(proto)
        floats, content = content, proto.SerializeToString(deterministic=True)
        levels = difference_in_levels(floats, content, sample_photo()[: max(64, network.minimum_size), :80])
        if levels > 1:
            raise DifferentError(f"with its input and output fused, {network.name} differs by {levels} levels")
    with atomic_write(path) as stream:
        stream.write(content)
    return Export(
        path=str(path),
        model=network.name,
        scale=network.scale,
        precision=precision,
        folded=folding,
        opset=OPSET,
        nodes=len(proto.graph.node),
        parameters=sum(p.numel() for p in source.parameters()),
        size_bytes=len(content),
        max_abs_difference=differences,
        fused_io=fuse_io,
    )


def onnx_from_model(model: nn.Module, network: Network, *, precision: Precision = "fp32") -> ModelProto:
    """Trace ``model`` into a simplified graph with inputs and outputs named ``input`` and ``output``."""
    import copy
    import logging
    import warnings

    import torch

    from export.simplify import simplify

    class HalfInside(torch.nn.Module):
        """FP16 arithmetic between float32 borders: strongly typed engines take precision from the graph alone."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = copy.deepcopy(inner).half()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.inner(x.half()).float()
            return result

    traced = HalfInside(model).eval() if precision == "fp16" else model
    side = max(24, network.minimum_size + 7)
    axes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it speaks of torchvision, which nobody needs here
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside torch's own exporter
        program = torch.onnx.export(
            traced,
            (torch.rand(2, 3, side, side + 9),),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(axes,),
            input_names=["input"],
            output_names=["output"],
            verbose=False,
        )
    assert program is not None
    proto = simplify(program.model_proto)
    for axis, name in {0: "batch", 2: "height", 3: "width"}.items():
        dimension = proto.graph.input[0].type.tensor_type.shape.dim[axis]
        if dimension.dim_param != name:
            raise RuntimeError(f"the exporter froze the {name} of {network.name} at {dimension.dim_value}")
    return proto


def difference_from_torch(content: bytes, model: nn.Module, minimum_size: int = 1) -> dict[str, float]:
    """Largest absolute difference on [0, 1] between the file in ONNX Runtime and ``model``, for several odd sizes.

    The inputs are smooth random pictures, not white noise, on which trained networks leave their domain.
    """
    import numpy as np
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    differences = {}
    for batch, height, width in CHECKED_SIZES:
        height, width = max(height, minimum_size), max(width, minimum_size)
        coarse = torch.from_numpy(random.random((batch, 3, height // 4 + 2, width // 4 + 2), dtype=np.float32))
        image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
        with torch.no_grad():
            expected = model(image).numpy()
        (result,) = session.run(None, {"input": image.numpy()})
        if result.shape != expected.shape:
            raise RuntimeError(f"the exported graph gives {result.shape} where PyTorch gives {expected.shape}")
        differences[f"{batch}x3x{height}x{width}"] = float(np.abs(result - expected).max())
    return differences


def difference_in_levels(floats: bytes, pixels: bytes, picture: NDArray[np.uint8]) -> int:
    """Largest difference, in levels of 255, between a file and its form that takes uint8, on one picture."""
    import numpy as np
    import onnxruntime

    def result(content: bytes, batch: NDArray[Any]) -> NDArray[Any]:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {session.get_inputs()[0].name: batch})[0][0])

    batch = np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
    expected = np.rint(result(floats, batch).transpose(1, 2, 0) * 255).clip(0, 255)
    return int(np.abs(expected - result(pixels, np.ascontiguousarray(picture)[None])).max())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gmin-edge")
    except PackageNotFoundError:
        return "0+unknown"


app = new_app("Export a trained network to ONNX.")


@app.command()
def main(
    ckpt: Annotated[Path, typer.Option(help="Checkpoint: .safetensors, or .pth holding plain weights.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    model: Annotated[
        str | None,
        typer.Option(help="Registered name, such as gmin_x4; spandrel for others. Default: what the file says."),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Arithmetic inside; input and output stay float32.")] = "fp32",
    fold: Annotated[bool, typer.Option("--fold/--no-fold", help="Fold what can be folded exactly.")] = True,
    fuse_io: Annotated[
        bool,
        typer.Option("--fuse-io", help="Take and give uint8 pictures (N, H, W, 3): nothing to do around the file."),
    ] = False,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Export a trained network to ONNX: dynamic sizes, folded, simplified, checked against PyTorch."""
    if output.suffix.lower() != ".onnx":
        raise UserError(f"{output} must end in .onnx.")
    check_writable(output)
    if not ckpt.is_file():
        raise UserError(f"There is no checkpoint at {ckpt}.")
    from model.checkpoint import load_checkpoint, recorded_name, sha256
    from model.registry import create, describe

    name = model or recorded_name(ckpt)
    if name is None:
        raise UserError(
            f"{ckpt} does not say which network it is; name it with --model, such as --model gmin_x4, or --model "
            "spandrel for one that spandrel recognises."
        )
    if name == "spandrel":
        result = _export_foreign(ckpt, output, precision, fuse_io)
    else:
        built = load_checkpoint(create(name), ckpt)
        try:
            result = export_onnx(
                built,
                output,
                describe(name),
                checkpoint_sha256=sha256(ckpt),
                fold=fold,
                precision=precision,
                fuse_io=fuse_io,
            )
        except (DifferentError, ValueError) as error:  # weights that are no numbers, or that overflow in FP16
            raise UserError(f"{ckpt} is not exported: {error}.") from error
    write_json(asdict(result), json_target)
    worst = max(result.max_abs_difference.values())
    sizes = ", ".join(result.max_abs_difference)
    say(
        f"{output}: {result.model}, {result.precision}, opset {result.opset}, {result.nodes} nodes, "
        f"{result.parameters:,} parameters{', folded' if result.folded else ''}, {result.size_bytes / 1e6:.2f} MB\n"
        f"largest difference from PyTorch FP32 on [0, 1]: {worst:.1e} (checked at {sizes})",
        quiet=quiet,
        json_target=json_target,
    )


def _export_foreign(ckpt: Path, output: Path, precision: Precision, fuse_io: bool) -> Export:
    """Export what spandrel recognises. Not every network can be: many compute with the example's size as a constant."""
    from model.checkpoint import sha256
    from model.foreign import load_foreign

    built, network = load_foreign(ckpt)
    try:
        return export_onnx(built, output, network, checkpoint_sha256=sha256(ckpt), precision=precision, fuse_io=fuse_io)
    except UserError:
        raise
    except Exception as error:  # the exporter's own kinds, and our refusal of a graph that gives other pixels
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        name = network.source.partition(",")[0]
        raise UserError(
            f"{ckpt} holds {name}, whose code cannot be exported for every size ({reason}). It runs in PyTorch: "
            f"spandrel:{ckpt}."
        ) from error


if __name__ == "__main__":
    run(app)
