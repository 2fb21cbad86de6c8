"""A FAKE of ``tensorrt`` 10: its plans repeat each pixel of the input ``scale`` times; the rules are the real ones."""

from __future__ import annotations

import enum
import json
import os
from typing import Any

import numpy as np
from fake_gpu import BrokenRule, gpu

__version__ = os.environ.get("FAKE_TENSORRT_VERSION", "10.3.0")
MAGIC = b"FAKEPLAN"
float32 = "float32"


class ILogger:
    ERROR = 1


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class ProfilingVerbosity(enum.Enum):
    DETAILED = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class OptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        self.shapes[input] = [tuple(min), tuple(opt), tuple(max)]


class TimingCache:
    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    def serialize(self) -> bytes:
        return self.blob + b"measured"


class BuilderConfig:
    def __init__(self) -> None:
        self.profiles: list[OptimizationProfile] = []
        self.profiling_verbosity: Any = None
        self.workspace = 0

    def set_memory_pool_limit(self, kind: MemoryPoolType, size: int) -> None:
        self.workspace = size

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, blob: bytes) -> TimingCache:
        return TimingCache(blob)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        return not cache.blob.startswith(b"another GPU")


class Network:
    def __init__(self) -> None:
        self.model: Any = None

    def get_input(self, index: int) -> Any:
        return self.model.graph.input[index]


class OnnxParser:
    num_errors = 0

    def __init__(self, network: Network, logger: ILogger) -> None:
        self.network = network

    def parse(self, content: bytes) -> bool:
        import onnx

        self.network.model = onnx.load_from_string(content)
        return True


class Builder:
    def __init__(self, logger: Any) -> None:
        if not isinstance(logger, ILogger):
            raise TypeError("a logger must be an ILogger")
        self.logger = logger

    def create_network(self, flags: int) -> Network:
        if not flags & 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED):
            raise BrokenRule("networks must be strongly typed")
        return Network()

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> Any:
        if os.environ.get("FAKE_BUILD_FAILS"):
            self.logger.log(
                1, "Error Code 10: Internal Error (Could not find any implementation for node conv. In x at /a/b.cpp:5)"
            )
            return None
        metadata = {entry.key: entry.value for entry in network.model.metadata_props}
        content = {
            "version": __version__,
            "capability": gpu.capability,
            "shapes": config.profiles[0].shapes["input"],
            "scale": int(metadata.get("gmin.scale", 2)),
        }
        return MAGIC + json.dumps(content).encode()


class LayerInformationFormat(enum.Enum):
    ONELINE = 0


class EngineInspector:
    def get_engine_information(self, format: LayerInformationFormat) -> str:
        return (
            "Layers:\nName: conv, LayerType: CaskConvolution, Inputs: [ { Name: a, Format/Datatype: Row major linear FP32 "
            "}], Outputs: [ { Name: b, Format/Datatype: Row major linear FP32 }], TacticName: t\n\nBindings:\ninput\noutput\n"
        )


class Runtime:
    def __init__(self, logger: Any) -> None:
        if not isinstance(logger, ILogger):
            raise TypeError("a logger must be an ILogger")
        self.logger = logger

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        if not content.startswith(MAGIC):
            self.logger.log(
                1,
                "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magicTag assertion failed. In x at /a/b.cpp:1)",
            )
            return None
        plan = json.loads(content[len(MAGIC) :])
        if plan["version"] != __version__ or tuple(plan["capability"]) != gpu.capability:
            self.logger.log(
                1,
                "Error Code 6: API Usage Error (The engine plan file is not compatible with this version. In x at /a/b.cpp:2)",
            )
            return None
        return Engine(plan, self.logger)


class Engine:
    names = ("input", "output")

    def __init__(self, plan: dict[str, Any], logger: Any) -> None:
        self.plan, self.logger = plan, logger
        self.num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "input" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> str:
        return float32

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3, -1, -1)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.plan["shapes"]]

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector()

    def create_execution_context(self) -> Context | None:
        if gpu.called("create_execution_context"):
            self.logger.log(1, "Error Code 2: OutOfMemory (Requested size was 1000000 bytes. In x at /a/b.cpp:3)")
            return None
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shape: tuple[int, ...] | None = None
        self.settled: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}

    def _refuse(self, reason: str) -> bool:
        self.engine.logger.log(1, f"IExecutionContext::x: Error Code 3: API Usage Error ({reason}. In x at /a/b.cpp:4)")
        return False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.plan["shapes"]
        if name != "input" or gpu.called("set_input_shape"):
            return self._refuse("no such input")
        if len(shape) != 4 or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return self._refuse(f"Static dimension mismatch while setting input shape {shape}")
        self.shape = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if self.shape is None:
            return (-1, 3, -1, -1)
        scale = self.engine.plan["scale"] if name == "output" else 1
        return (*self.shape[:2], *(scale * side for side in self.shape[2:]))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine.names or not isinstance(memory, int) or gpu.called("set_tensor_address"):
            return self._refuse("Given invalid tensor name or address")
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if gpu.called("execute_async_v3"):
            return self._refuse("fake failure")
        if self.shape is None or set(self.addresses) != set(self.engine.names):
            return self._refuse("Not all tensors have a shape and an address")
        shapes = {name: self.get_tensor_shape(name) for name in self.engine.names}
        sizes = {name: 4 * int(np.prod(shape)) for name, shape in shapes.items()}
        if any(gpu.device(self.addresses[name], size) is None for name, size in sizes.items()):
            raise BrokenRule("the engine was given memory that is not allocated or too small")
        if stream_handle in gpu.captures and self.settled != self.shape:
            raise BrokenRule("a capture before the first run of this size")
        self.settled = self.shape
        scale, addresses = self.engine.plan["scale"], dict(self.addresses)

        def work() -> None:
            source, target = (gpu.device(addresses[name], sizes[name]) for name in self.engine.names)
            if source is None or target is None:
                raise MemoryError
            pixels = source.view(np.float32).reshape(shapes["input"])
            target.view(np.float32).reshape(shapes["output"])[...] = pixels.repeat(scale, 2).repeat(scale, 3)

        gpu.enqueue(stream_handle, work, *addresses.values())
        return True
