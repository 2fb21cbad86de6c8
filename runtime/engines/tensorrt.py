"""TensorRT and TensorRT-RTX: a plan on an NVIDIA GPU, several pictures in flight."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.cuda import Host, open_cuda
from runtime.engines.contract import (
    Batch,
    EngineInfo,
    StageTimes,
    check_model_file,
    check_size,
    info_from_metadata,
    scale_from_shapes,
)
from runtime.errors import UserError
from runtime.files import cache_folder, private_folder
from runtime.flavour import Flavour, load_flavour
from runtime.plans import (
    PlanRecord,
    check_origin,
    misfit,
    onnx_beside,
    read_record,
    rebuild_arguments,
    rebuild_command,
    sha256,
)

if TYPE_CHECKING:
    import tensorrt

IN_FLIGHT = 2
"""Pictures at once: one is copied while the other is computed. Each has its own stream, context and buffers."""


class TensorRtEngine:
    """A ``.plan`` in the flavour that built it. Not for several threads at once."""

    info: EngineInfo
    last_times: StageTimes

    def __init__(
        self,
        path: Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        trusted: bool = False,
        rebuild: bool = True,
    ) -> None:
        """Open ``path``.

        Args:
            path: the plan; the record beside it, ``PATH.json``, says whether it fits.
            device: "auto", "cuda" or "tensorrt", which are all the first GPU.
            threads: nothing here.
            trusted: the user vouches for a plan that was not built here.
            rebuild: build a plan that does not fit again where its ONNX file stands beside it.

        Raises:
            UserError: no TensorRT, driver or GPU; a plan that was not built here, was altered, or does not fit; the
                message says how to build it again.
        """
        del threads
        if device not in ("auto", "cuda", "tensorrt"):
            raise UserError(f"{path} runs on an NVIDIA GPU, not on {device}.")
        check_model_file(path)
        if path.suffix.lower() == ".onnx":
            raise UserError(
                f"{path} is an ONNX file: build a plan by python export/to_tensorrt.py {path} -o {path.stem}.plan, and "
                "open that."
            )
        content, record = path.read_bytes(), read_record(path)
        check_origin(path, content, record, vouched=trusted)
        library = _library(record)
        self._cuda = open_cuda()
        self._path, self._library = path, library
        self._slots: list[_Slot] = []
        self._wanted_slots = IN_FLIGHT
        self.last_times = StageTimes(0.0, 0.0, 0.0)
        self._engine: tensorrt.ICudaEngine | None = None
        gpu = self._cuda.gpu
        fallback = None
        try:
            reason = misfit(record, library, gpu.compute_capability, gpu.name) if record else None
            if record and reason:
                content, record = _rebuilt(path, record, reason, flavour=library.name, allowed=rebuild)
                fallback = f"built again, for the plan {reason}"
            self._engine = self._deserialise(content, record)
            self._input, self._output = self._names()
            self._slots.append(_Slot(self, 0))
            self.info = replace(self._describe(record), fallback=fallback)
        except BaseException:
            with suppress(UserError):  # the first error is the one to tell
                self.close()
            raise

    def infer(self, batch: Batch) -> Batch:
        """(1, 3, H, W) to (1, 3, scale·H, scale·W), unclamped; more pictures than one go through one by one.

        Raises:
            UserError: a size that the plan was not built for, or CUDA failed.
        """
        if len(batch) != 1:
            return np.concatenate(list(self.infer_each(batch[i : i + 1] for i in range(len(batch)))))
        slot = self._slots[0]
        slot.submit(batch)
        return slot.collect()

    def infer_each(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """As ``infer`` for each, in order, ``IN_FLIGHT`` at once."""
        waiting: deque[_Slot] = deque()
        try:
            for number, batch in enumerate(batches):
                depth = self._depth() if number else 1  # a single picture needs no second slot
                if len(waiting) == depth:
                    yield waiting.popleft().collect()
                slot = self._slots[number % depth]
                slot.submit(batch)
                waiting.append(slot)
            while waiting:
                yield waiting.popleft().collect()
        finally:  # the caller stopped early: nothing may still be writing into buffers that are used again
            for slot in waiting:
                slot.drain()

    def _depth(self) -> int:
        """How many go at once; further slots are made when they are first wanted, for each takes GPU memory."""
        while len(self._slots) < self._wanted_slots:
            try:
                self._slots.append(_Slot(self, len(self._slots)))
            except UserError as refusal:
                self._wanted_slots = len(self._slots)
                self._note(f"only {self._wanted_slots} in flight: {str(refusal).rstrip('.')}")
        return len(self._slots)

    def _note(self, fallback: str) -> None:
        self.info = replace(self.info, fallback="; ".join(filter(None, (self.info.fallback, fallback))))

    def close(self) -> None:
        """Free contexts, buffers and streams, then the engine."""
        with ExitStack() as stack:
            stack.callback(self._cuda.close)
            stack.callback(setattr, self, "_engine", None)
            while self._slots:
                stack.callback(self._slots.pop().close)

    def _deserialise(self, content: bytes, record: PlanRecord | None) -> tensorrt.ICudaEngine:
        self._library.log.clear()
        self._runtime: Any = self._library.module.Runtime(self._library.log)  # must outlive its engine
        engine: tensorrt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(content) if self._runtime else None
        if engine is None:
            again = (
                f"build it again by {rebuild_command(self._path, record, self._library.name)}"
                if record
                else "build it again here"
            )
            raise UserError(f"{self._library} cannot load {self._path}: {self._library.log.reason()}; {again}.")
        return engine

    def _names(self) -> tuple[str, str]:
        """Names of the one input and the one output."""
        engine, trt = self._open_engine(), self._library.module
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        floats = all(engine.get_tensor_dtype(name) == trt.float32 for name in names)
        if len(inputs) != 1 or len(outputs) != 1 or not floats or len(engine.get_tensor_shape(inputs[0])) != 4:
            raise UserError(f"{self._path} is no super-resolution network: it has not one float input and output.")
        return inputs[0], outputs[0]

    def _describe(self, record: PlanRecord | None) -> EngineInfo:
        shapes: Any = self._open_engine().get_tensor_profile_shape(self._input, 0)  # Dims, which iterate
        low, _, high = (tuple(map(int, shape)) for shape in shapes)
        metadata = record.metadata if record else {}
        info = info_from_metadata(
            self._path,
            metadata,
            backend=f"{self._library}, {self._cuda.binding}",
            device=self._cuda.gpu.name,
            scale=scale_from_shapes(self._path, low, self._slots[0].output_shape(low)),
        )
        return replace(info, accepts=((low[2], low[3]), (high[2], high[3])))

    def _open_engine(self) -> tensorrt.ICudaEngine:
        if self._engine is None:
            raise UserError(f"{self._path} is closed.")
        return self._engine


class _Slot:
    """One picture in flight: a stream, an execution context, pinned and device buffers, and a recorded graph.

    The graph is recorded when a size comes for the second time in a row: TensorRT sets things up in the first run of a
    size, which may not be recorded. Only the computation is in it, so that the copies can be timed apart.
    """

    def __init__(self, owner: TensorRtEngine, index: int) -> None:
        self._owner, self._cuda, self._log = owner, owner._cuda, owner._library.log
        self._stream = 0
        self._events: list[Any] = []
        self._host: dict[str, Host] = {}
        self._device: dict[str, tuple[int, int]] = {}
        self._graph: Any = None
        self._may_record = self._cuda.graphs
        self._shape: tuple[int, ...] = ()
        self._result: tuple[int, ...] = ()
        self._busy = False
        self._log.clear()
        self._context: tensorrt.IExecutionContext | None = owner._open_engine().create_execution_context()
        if self._context is None:
            raise self._failure(f"make execution context {index + 1}, most often for want of GPU memory")
        try:
            self._stream = self._cuda.open_stream()
            for _ in range(4):
                self._events.append(self._cuda.open_event())
        except UserError:
            self.close()
            raise

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the result for an input of ``shape``, which becomes the context's shape."""
        context, owner = self._open_context(), self._owner
        self._forget_graph()
        self._shape = ()
        wanted: Any = shape  # tuples become Dims
        if not context.set_input_shape(owner._input, wanted):
            raise self._failure(f"take an input of {'x'.join(map(str, shape))}")
        dimensions: Any = context.get_tensor_shape(owner._output)  # Dims, which iterate
        result = tuple(map(int, dimensions))
        if min(result, default=-1) < 1:
            raise self._failure(f"tell the shape of its result for {'x'.join(map(str, shape))}")
        return result

    def submit(self, batch: Batch) -> None:
        """Start on a picture; ``collect`` gives the result."""
        if self._busy:
            raise RuntimeError("this slot is at work; collect its result first")
        cuda, owner = self._cuda, self._owner
        self._check_size(batch.shape)
        repeated = batch.shape == self._shape
        if not repeated:
            self._result = self.output_shape(batch.shape)
            sizes = {owner._input: batch.nbytes, owner._output: 4 * int(np.prod(self._result))}
            for name, size in sizes.items():
                self._provide(name, size)
        host = self._host[owner._input]
        np.copyto(host[: batch.nbytes].view(np.float32).reshape(batch.shape), batch)
        try:
            cuda.record(self._events[0], self._stream)
            cuda.copy_in(self._device[owner._input][0], host, batch.nbytes, self._stream)
            cuda.record(self._events[1], self._stream)
            self._compute(repeated)
            cuda.record(self._events[2], self._stream)
            size = 4 * int(np.prod(self._result))
            cuda.copy_out(self._host[owner._output], self._device[owner._output][0], size, self._stream)
            cuda.record(self._events[3], self._stream)
        except UserError:
            self._shape = ()  # a failed start must not count as the first run of this size
            with suppress(UserError):  # what was started may still use the buffers; the first error is the one to tell
                cuda.wait(self._stream)
            raise
        self._shape, self._busy = batch.shape, True

    def collect(self) -> Batch:
        """Wait, and copy the result out of the buffer that the next picture will overwrite."""
        self._busy = False
        self._cuda.wait(self._stream)
        start, copied, computed, end = self._events
        self._owner.last_times = StageTimes(
            host_to_device_ms=self._cuda.elapsed_ms(start, copied),
            compute_ms=self._cuda.elapsed_ms(copied, computed),
            device_to_host_ms=self._cuda.elapsed_ms(computed, end),
        )
        size = 4 * int(np.prod(self._result))
        flat = self._host[self._owner._output][:size].view(np.float32)
        result: Batch = flat.reshape(self._result).copy()
        return result

    def drain(self) -> None:
        """Wait for what was started, and drop it."""
        if self._busy:
            self._busy = False
            self._cuda.wait(self._stream)

    def close(self) -> None:
        """Free everything, the stream first having come to rest; one failure keeps nothing else from being freed.

        Raises:
            UserError: the first failure.
        """
        cuda, stream = self._cuda, self._stream
        self._context, self._stream = None, 0
        with ExitStack() as stack:  # runs them all, last first, and raises the last error with the others behind it
            if stream:
                stack.callback(cuda.close_stream, stream)
            for host in self._host.values():
                stack.callback(cuda.unpin, host)
            for address, _ in self._device.values():
                stack.callback(cuda.free, address)
            for event in self._events:
                stack.callback(cuda.close_event, event)
            stack.callback(self._forget_graph)
            if stream:
                stack.callback(cuda.wait, stream)
            self._host, self._device, self._events = {}, {}, []

    def _check_size(self, shape: tuple[int, ...]) -> None:
        info = getattr(self._owner, "info", None)
        if info is not None:
            check_size(info, *shape[2:])

    def _provide(self, name: str, size: int) -> None:
        """Buffers of at least ``size`` bytes, kept where they are large enough, and their address to the context."""
        cuda, context = self._cuda, self._open_context()
        address, present = self._device.get(name, (0, 0))
        if present < size:
            if name in self._device:
                del self._device[name]
                cuda.free(address)
            if name in self._host:
                cuda.unpin(self._host.pop(name))
            self._host[name] = cuda.pin(size)
            address = cuda.allocate(size)
            self._device[name] = (address, size)
        if not context.set_tensor_address(name, address):
            raise self._failure(f"take the memory of {name}")

    def _compute(self, repeated: bool) -> None:
        if self._graph is None and repeated and self._may_record:
            self._record()
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
        else:
            self._enqueue()

    def _record(self) -> None:
        """Record the computation of the present size. Where that fails, runs go on without a graph, and say so."""
        context = self._open_context()
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(self._stream):
            self._refuse_graphs("this plan cannot be recorded")
            return
        refusal: UserError | None = None
        try:
            self._cuda.begin_capture(self._stream)
        except UserError as error:
            self._refuse_graphs(str(error).rstrip("."))
            return
        try:
            self._enqueue()
        except UserError as error:
            refusal = error
        try:  # a capture must be ended whatever happened in it
            graph = self._cuda.end_capture(self._stream)
        except UserError as error:
            refusal, graph = refusal or error, None
        if refusal is not None:
            if graph is not None:
                self._cuda.close_graph(graph)
            self._refuse_graphs(str(refusal).rstrip("."))
            return
        self._graph = graph

    def _refuse_graphs(self, reason: str) -> None:
        self._may_record = False
        self._owner._note(f"without CUDA graphs: {reason}")

    def _enqueue(self) -> None:
        self._log.clear()
        if not self._open_context().execute_async_v3(self._stream):
            raise self._failure("start the computation")

    def _forget_graph(self) -> None:
        if self._graph is not None:
            graph, self._graph = self._graph, None
            self._cuda.close_graph(graph)

    def _open_context(self) -> tensorrt.IExecutionContext:
        if self._context is None:
            raise UserError(f"{self._owner._path} is closed.")
        return self._context

    def _failure(self, doing: str) -> UserError:
        return UserError(f"{self._owner._library} could not {doing} ({self._owner._path}): {self._log.reason()}.")


def _library(record: PlanRecord | None) -> Flavour:
    """The flavour that built the plan; where that one is not here, any, so that the plan can be built again."""
    if record is None:
        return load_flavour("auto")
    try:
        return load_flavour(record.flavour)
    except UserError as refusal:
        try:
            return load_flavour("auto")
        except UserError:
            raise refusal from None


def _rebuilt(
    path: Path, record: PlanRecord, reason: str, *, flavour: str, allowed: bool
) -> tuple[bytes, PlanRecord | None]:
    """The same network built for what is here, in the private cache; the plan that does not fit stays as it is.

    A process of its own builds: it lints again, and the gigabytes that a builder takes are free when it ends.
    """
    onnx = onnx_beside(path, record)
    if onnx is None or not allowed:
        raise UserError(f"{path} {reason}: build it again by {rebuild_command(path, record, flavour)}.")
    folder = private_folder(cache_folder() / "rebuilt")
    output = folder / f"{sha256(f'{record.onnx_sha256} {record.profile} {flavour}'.encode())[:32]}.plan"
    arguments = rebuild_arguments(record, onnx=onnx, output=output, flavour=flavour)
    done = subprocess.run(  # noqa: S603 - our own script, arguments as a list
        [sys.executable, str(Path(__file__).resolve().parents[2] / "export/to_tensorrt.py"), *arguments, "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["it gave no reason"]
        raise UserError(f"{path} {reason}, and building it again failed: {said[0].removeprefix('error: ')}")
    content = output.read_bytes()
    built = read_record(output)
    check_origin(output, content, built, vouched=False)
    return content, built
