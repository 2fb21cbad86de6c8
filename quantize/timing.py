"""Times of graphs against each other, in turns in one process, in the engine that they are for."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from runtime.engines.opening import CPU_BACKENDS, open_engine
from runtime.errors import UserError

WIDTH, HEIGHT = 160, 90
_ROUNDS, _WARM_UP = 10, 2
_REST_S = 0.005


@dataclass(frozen=True)
class EngineTime:
    """The FP32 or the INT8 file in one engine."""

    file: str
    """"FP32" or "INT8"."""
    engine: str
    """Prefix of the engine."""
    median_ms: float
    ratio: float
    """Median over rounds of its time over that of FP32 in ONNX Runtime."""


def time_everywhere(fp32: ModelProto, int8: ModelProto) -> tuple[EngineTime, ...]:
    """Both files in every engine that is installed and takes them, in turns; FP32 in ONNX Runtime first."""
    entries = [(name, model, engine) for name, model in (("FP32", fp32), ("INT8", int8)) for engine in CPU_BACKENDS]
    taken, times = _in_turns([(model, engine) for _, model, engine in entries], skip=True)
    return tuple(
        EngineTime(entries[i][0], entries[i][2], median, ratio) for i, (median, ratio) in zip(taken, times, strict=True)
    )


def time_in_turns(models: Sequence[ModelProto], backend: str) -> list[tuple[float, float]]:
    """(median ms, median over rounds of the ratio to the first graph) of each graph, for 160×90 pixels in.

    Args:
        models: graphs of one network, the reference first.
        backend: prefix of an engine, for instance "ort" or "openvino-bf16".

    Raises:
        UserError: that engine is not installed.
    """
    return _in_turns([(model, backend) for model in models])[1]


def _in_turns(
    entries: Sequence[tuple[ModelProto, str]], *, skip: bool = False
) -> tuple[list[int], list[tuple[float, float]]]:
    """Which entries ran, and their times; with ``skip`` an engine that is missing or refuses a file is left out."""
    batch = np.random.default_rng(0).random((1, 3, HEIGHT, WIDTH), np.float32)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        engines, taken = [], []
        for i, (model, backend) in enumerate(entries):
            path = Path(folder) / f"{i}.onnx"
            path.write_bytes(model.SerializeToString())
            try:
                engines.append(stack.enter_context(closing(open_engine(f"{backend}:{path}"))))
            except UserError:
                if not skip:
                    raise
                continue
            taken.append(i)
        seconds = np.empty((_WARM_UP + _ROUNDS, len(engines)))
        for turn in range(len(seconds)):
            for i, engine in enumerate(engines):
                time.sleep(_REST_S)
                started = time.perf_counter()
                engine.infer(batch)
                seconds[turn, i] = time.perf_counter() - started
    seconds = seconds[_WARM_UP:]
    medians = np.median(seconds, axis=0) * 1000
    ratios = np.median(seconds / seconds[:, :1], axis=0)
    return taken, [(float(median), float(ratio)) for median, ratio in zip(medians, ratios, strict=True)]
