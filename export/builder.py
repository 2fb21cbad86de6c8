"""A network parsed and built by the library, ``tensorrt`` or ``tensorrt_rtx``: one path for both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.layers import layers_from_log
from runtime.errors import UserError
from runtime.files import atomic_write
from runtime.flavour import VERBOSE, Flavour, one_line
from runtime.plans import Layer, Profile

if TYPE_CHECKING:
    import tensorrt


def build_plan(
    content: bytes,
    library: Flavour,
    profile: Profile,
    *,
    targets: tuple[str, ...] = (),
    workspace_mib: int | None = None,
    timing_cache: Path | None = None,
) -> tuple[bytes, list[Layer]]:
    """Parse and build: the plan, and the layers that the library reports.

    Raises:
        UserError: with the reason that the library logged.
    """
    trt, log = library.module, library.log
    log.clear(VERBOSE)
    try:
        builder: tensorrt.Builder | None = trt.Builder(log)
        if builder is None:
            raise failure(library, "start its builder", "check the driver and the installation with gmin doctor")
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only kind in TensorRT 11
        network: tensorrt.INetworkDefinition = builder.create_network(0 if typed is None else 1 << int(typed))
        parser: tensorrt.OnnxParser = trt.OnnxParser(network, log)
        if not parser.parse(content):
            errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
            raise failure(library, "parse the file", "export it by export/to_onnx.py, or use a newer TensorRT", errors)
        config: tensorrt.IBuilderConfig = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if workspace_mib:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
        if targets:
            _aim(library, config, targets)
        _add_profile(library, builder, network, config, profile)
        measured = None if library.name == "rtx" else _timing_cache(library, config, timing_cache)
        plan: Any = builder.build_serialized_network(network, config)
        if plan is None:
            raise failure(library, "build the engine", "try a smaller --shapes maximum or another --workspace")
        if measured is not None and timing_cache is not None:
            with atomic_write(timing_cache) as stream:
                stream.write(bytes(measured.serialize()))
        content = bytes(plan)
        layers = layers_from_log(log.messages())
        if not layers and not targets:
            layers = layers_from_log([_inspected(library, content)])
        return content, layers
    finally:
        log.clear()


def _inspected(library: Flavour, plan: bytes) -> str:
    """What the library's inspector says of a plan just built for the GPU that is here; empty where it opens none."""
    trt = library.module
    runtime: tensorrt.Runtime = trt.Runtime(library.log)
    engine: Any = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    return "Layers:\n" + str(
        engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.ONELINE)
    )


def _add_profile(
    library: Flavour,
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    profile: Profile,
) -> None:
    name = network.get_input(0).name
    wanted: tensorrt.IOptimizationProfile = builder.create_optimization_profile()
    low, best, high = ((1, 3, *size) for size in (profile.smallest, profile.best, profile.largest))
    shapes: Any = {"min": low, "opt": best, "max": high}  # tuples become Dims
    wanted.set_shape(name, **shapes)
    if config.add_optimization_profile(wanted) < 0:
        raise failure(library, f"take the sizes {profile}", "give others by --shapes")


def _aim(library: Flavour, config: Any, targets: tuple[str, ...]) -> None:
    """Compile for GPUs that are not here; one plan may hold several."""
    known = known_targets(library)
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not config.set_compute_capability(known[target], index):
            raise failure(library, f"build for {target}", f"choose among {', '.join(known)}")


def known_targets(library: Flavour) -> dict[str, Any]:
    """Compute capabilities that a plan can be built for without their GPU, as "sm86"; none by ``tensorrt``."""
    kinds = getattr(library.module, "ComputeCapability", None)
    members = kinds.__members__ if kinds is not None else {}
    return {name.lower(): value for name, value in members.items() if re.fullmatch(r"SM\d+", name)}


def _timing_cache(library: Flavour, config: tensorrt.IBuilderConfig, path: Path | None) -> tensorrt.ITimingCache | None:
    if path is None:
        return None
    cache: tensorrt.ITimingCache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise failure(library, f"use the timing cache {path}", "remove the file: another GPU or version made it")
    return cache


def failure(library: Flavour, doing: str, advice: str, errors: list[str] | None = None) -> UserError:
    """An exception with the reason that the library logged, and what to do."""
    reason = one_line(errors[0]) if errors else library.log.reason()
    return UserError(f"{library} could not {doing}: {reason}; {advice}.")


def _parser_error(error: tensorrt.ParserError) -> str:
    """Its description alone may be no more than "false"."""
    code: Any = error.code()
    kind = code.name.lower().replace("_", " ")
    node = f"{error.node_operator()} {error.node_name()}".strip() if hasattr(error, "node_operator") else ""
    return f"{node + ', ' if node else ''}{kind}: {error.desc()}"
