"""Which back end runs a file fastest on this machine: measured once, remembered, and said.

The measurement is remembered by the file's hash, the libraries' versions, the processor and the thread count.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from runtime.engines.contract import Engine, check_model_file
from runtime.engines.opening import BACKENDS, candidates, is_shipped, model_file, open_engine, split_prefix
from runtime.environment import processor
from runtime.errors import UserError
from runtime.files import atomic_write, cache_folder

ROUNDS = 5
SIDE = 128
"""Of the picture that is measured with, in pixels, where the file takes that."""


def open_fastest(
    spec: str, *, device: str = "auto", threads: int | None = None, trust_engine: bool = False
) -> tuple[Engine, str]:
    """Open ``spec`` on the back end that is fastest here, and say in one sentence why it was chosen.

    Candidates run in turn, A B A B …, and the medians decide. The name of a shipped model leaves everything to us: each
    back end runs the file made for it. A path names one file; ``openvino-bf16``, which rounds more than that file says,
    then takes part only where it is asked for by prefix.

    Raises:
        UserError: as ``open_engine``.
    """
    prefix, name = split_prefix(spec)
    choices = [key for key in candidates(spec) if prefix or is_shipped(name) or not BACKENDS[key].options]
    if len(choices) == 1 or device not in ("auto", "cpu"):
        engine = open_engine(spec, device=device, threads=threads, trust_engine=trust_engine)
        return engine, f"{choices[0]} is the only one asked for or present"
    files = {choice: model_file(name, choice) for choice in choices}
    key = _key(files, threads)
    remembered = _remembered().get(key)
    if remembered in choices:
        with suppress(UserError):  # another processor, which shares this home folder, may refuse: then measure again
            engine = open_engine(f"{remembered}:{name}", device=device, threads=threads)
            return engine, f"{remembered} was the fastest when measured on this machine"
    engines, refusals = {}, []
    for choice in choices:
        try:
            engines[choice] = open_engine(f"{choice}:{name}", device=device, threads=threads)
        except UserError as refusal:
            refusals.append(refusal)
    if not engines:
        raise refusals[0]
    if len(engines) == 1:
        ((only, engine),) = engines.items()
        return engine, f"{only} is the only one that takes this file here"
    smallest, largest = next(iter(engines.values())).info.accepts or ((1, 1), (SIDE, SIDE))
    height, width = (max(low, min(SIDE, high)) for low, high in zip(smallest, largest, strict=True))
    milliseconds = _measure(engines, height, width)
    best = min(milliseconds, key=lambda choice: milliseconds[choice])
    for choice, engine in engines.items():
        if choice != best:
            engine.close()
    _remember(key, best)
    figures = ", ".join(f"{choice} {value:.0f} ms" for choice, value in sorted(milliseconds.items()))
    return engines[best], f"{best} is the fastest just now: {figures} for {width}x{height} pixels"


def _measure(engines: dict[str, Engine], height: int, width: int) -> dict[str, float]:
    batch = np.random.default_rng(0).random((1, 3, height, width), dtype=np.float32)
    times: dict[str, list[float]] = {choice: [] for choice in engines}
    for measured in range(ROUNDS + 1):  # the first round warms up
        for choice, engine in engines.items():
            started = time.perf_counter()
            engine.infer(batch)
            if measured:
                times[choice].append((time.perf_counter() - started) * 1e3)
    return {choice: statistics.median(values) for choice, values in times.items()}


def _key(files: dict[str, Path], threads: int | None) -> str:
    parts = [str(threads), processor(), platform.machine()]
    for choice, path in files.items():
        check_model_file(path)
        parts += [choice, hashlib.sha256(path.read_bytes()).hexdigest(), _version(BACKENDS[choice].library)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # installed under another name, as onnxruntime-gpu is
        return "unknown"


def _remembered() -> dict[str, str]:
    try:
        content = json.loads((cache_folder() / "engine-choice.json").read_text())
    except (OSError, ValueError):  # never measured, or a file that is not ours: measure again
        return {}
    return content if isinstance(content, dict) else {}


def _remember(key: str, choice: str) -> None:
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with atomic_write(cache_folder() / "engine-choice.json") as stream:
            stream.write(json.dumps({**_remembered(), key: choice}, indent=1).encode())
    except (OSError, UserError):  # a read-only home costs a second per start, nothing else
        return
