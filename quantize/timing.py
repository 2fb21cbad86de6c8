"""Times of graphs against each other, in turns in one process, in the engine that they are for."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from onnx import ModelProto

WIDTH, HEIGHT = 160, 90
_ROUNDS, _WARM_UP = 10, 2
_REST_S = 0.005


def time_in_turns(models: Sequence[ModelProto], backend: str) -> list[tuple[float, float]]:
    """(median ms, median over rounds of the ratio to the first graph) of each graph, for 160×90 pixels in.

    Args:
        models: graphs of one network, the reference first.
        backend: prefix of an engine, for instance "ort" or "openvino-bf16".

    Raises:
        UserError: that engine is not installed.
    """
    from runtime.engines.opening import open_engine

    batch = np.random.default_rng(0).random((1, 3, HEIGHT, WIDTH), np.float32)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        engines = []
        for i, model in enumerate(models):
            path = Path(folder) / f"{i}.onnx"
            path.write_bytes(model.SerializeToString())
            engines.append(stack.enter_context(closing(open_engine(f"{backend}:{path}"))))
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
    return [(float(median), float(ratio)) for median, ratio in zip(medians, ratios, strict=True)]
