"""From what a user writes (``gmin_x4.onnx``, ``openvino:gmin_x4.onnx``, ``gmin_x4``) to an open engine."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.engines.contract import Engine

MODELS = Path(__file__).resolve().parents[1] / "models"


@dataclass(frozen=True)
class Backend:
    """A way to run files of some kinds. ``opener`` is ``module:attribute``, imported only when used."""

    opener: str
    library: str
    """Module that must be importable."""
    suffixes: tuple[str, ...]
    flavour: str = ""
    """Ending of the shipped model that was quantized for this back end."""
    options: tuple[tuple[str, str], ...] = ()
    or_library: str = ""
    """Another module that will do."""
    install: str = "pip install 'gmin-edge[cpu]'"
    native_code: bool = False
    """Its files are programs: only those built here are opened, unless the user vouches for one."""


BACKENDS: dict[str, Backend] = {
    "ort": Backend("runtime.engines.ort:OrtEngine", "onnxruntime", (".onnx",), "_int8_cpu"),
    "openvino": Backend("runtime.engines.openvino:OpenVinoEngine", "openvino", (".onnx", ".xml"), "_int8_openvino"),
    "openvino-bf16": Backend(
        "runtime.engines.openvino:OpenVinoEngine",
        "openvino",
        (".onnx", ".xml"),
        "_int8_openvino",
        options=(("precision", "bf16"),),
    ),
    "tensorrt": Backend(
        "runtime.engines.tensorrt:TensorRtEngine",
        "tensorrt",
        (".plan", ".engine"),
        or_library="tensorrt_rtx",
        install="pip install 'gmin-edge[tensorrt]', or 'gmin-edge[tensorrt-rtx]' for RTX cards",
        native_code=True,
    ),
}
"""Back ends by prefix, in the order in which they are tried for a file; one row and one file add another."""

CPU_BACKENDS = ("ort", "openvino", "openvino-bf16")
"""Those of them that run a file on a CPU."""


def split_prefix(spec: str) -> tuple[str | None, str]:
    """Split ``openvino:file.onnx`` into back end and file; a Windows drive letter is no prefix."""
    prefix, separator, rest = spec.partition(":")
    return (prefix, rest) if separator and len(prefix) > 1 and "/" not in prefix else (None, spec)


def installed(backend: Backend) -> bool:
    """Whether the library of a back end can be imported, without importing it."""
    return any(importlib.util.find_spec(name) for name in (backend.library, backend.or_library) if name)


def is_shipped(name: str) -> bool:
    """Whether ``name`` is a shipped model's, and not a file's."""
    return not Path(name).suffix and not Path(name).is_file()


_BY_DEVICE = {
    "cuda": "", "tensorrt": "_int8", "nvtensorrtrtx": "_int8", "openvino": "_int8_openvino", "coreml": "",
    "directml": "", "qnn": "", "rocm": "", "migraphx": "", "webgpu": "",
}  # fmt: skip
"""Ending of the shipped model by device: the ``cpu`` flavour, in unsigned INT8, is for processors only. Whether the
others gain from INT8 was not measured, so they get the file that is right everywhere."""


def model_file(name: str, backend: str, device: str = "auto") -> Path:
    """The file that a path, or the name of a shipped model, means to a back end on a device.

    Raises:
        UserError: no model of that name is shipped; the message lists those that are.
    """
    if not is_shipped(name):
        return Path(name)
    flavour = _BY_DEVICE.get(device, BACKENDS[backend].flavour)
    for candidate in (MODELS / f"{name}{flavour}.onnx", MODELS / f"{name}.onnx"):
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(file.stem for file in MODELS.glob("*.onnx")))
    raise UserError(f"There is no model at {name}, and none of that name is shipped (shipped: {shipped}).")


def model_of(spec: str, device: str = "auto") -> Path:
    """The file that ``open_engine`` opens for ``spec`` on ``device``.

    Raises:
        UserError: as ``candidates`` and ``model_file``.
    """
    return model_file(split_prefix(spec)[1], candidates(spec)[0], device)


def candidates(spec: str) -> list[str]:
    """Back ends that could run ``spec`` here, best guess first.

    Raises:
        UserError: the prefix is unknown, its library is missing, or no installed back end reads such a file.
    """
    prefix, name = split_prefix(spec)
    if prefix is not None:
        if prefix not in BACKENDS:
            raise UserError(f"No back end is called '{prefix}'; known: {', '.join(BACKENDS)}.")
        if not installed(BACKENDS[prefix]):
            raise UserError(
                f"The back end '{prefix}' needs {BACKENDS[prefix].library}, which is not installed: "
                f"{BACKENDS[prefix].install}."
            )
        return [prefix]
    suffix = ".onnx" if is_shipped(name) else Path(name).suffix.lower()
    readers = [key for key, backend in BACKENDS.items() if suffix in backend.suffixes]
    if not readers:
        known = sorted({suffix for backend in BACKENDS.values() for suffix in backend.suffixes})
        raise UserError(f"No engine reads {name}: expected {', '.join(known)}.")
    present = [key for key in readers if installed(BACKENDS[key])]
    if not present:
        raise UserError(f"No engine for {suffix} files is installed: {BACKENDS[readers[0]].install}.")
    return present


def open_engine(spec: str, *, device: str = "auto", threads: int | None = None, trust_engine: bool = False) -> Engine:
    """Open an engine on the first back end that can run it here (``runtime.selection`` measures instead).

    The name of a shipped model means the file made for the back end or, where that is refused on this processor, the
    FP32 file; ``info.fallback`` then says so. ``trust_engine`` vouches for a TensorRT plan that was not built on this
    machine.

    Raises:
        UserError: as ``candidates``, or the back end refuses the file.
    """
    _, name = split_prefix(spec)
    key = candidates(spec)[0]
    backend = BACKENDS[key]
    module, attribute = backend.opener.split(":")
    opener: Callable[..., Engine] = getattr(importlib.import_module(module), attribute)
    extra = {"trusted": trust_engine} if backend.native_code else {}

    def opened(path: Path) -> Engine:
        return opener(path, device=device, threads=threads, **dict(backend.options), **extra)

    file, plain = model_file(name, key, device), MODELS / f"{name}.onnx"
    try:
        engine = opened(file)
    except UserError as refusal:
        if not is_shipped(name) or file == plain:
            raise
        engine = opened(plain)
        reason = refusal.reason or str(refusal).rstrip(".")
        engine.info = replace(engine.info, fallback=f"{plain.name}, because {reason}")
    engine.info = replace(engine.info, engine=spec)
    return engine
