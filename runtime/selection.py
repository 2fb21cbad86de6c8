"""Which back end runs a file fastest on this machine: measured once, remembered, and said.

The measurement is remembered by the file's hash, the libraries' versions, the processor and the thread count.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from runtime.engines.contract import Engine
from runtime.engines.opening import BACKENDS, candidates, model_file, open_engine, split_prefix
from runtime.errors import UserError
from runtime.files import atomic_write

ROUNDS = 5
SIZE = (1, 3, 128, 128)


def open_fastest(spec: str, *, device: str = "auto", threads: int | None = None) -> tuple[Engine, str]:
    """Open ``spec`` on the back end that is fastest here, and say in one sentence why it was chosen.

    Candidates run in turn, A B A B …, and the medians decide. Rounding arithmetic (``openvino-bf16``) takes part only
    where it is asked for by prefix: it changes pixels, and speed alone must not.

    Raises:
        UserError: as ``open_engine``.
    """
    prefix, name = split_prefix(spec)
    choices = [key for key in candidates(spec) if prefix or not BACKENDS[key].options]
    if len(choices) == 1 or device == "cuda":
        return open_engine(spec, device=device, threads=threads), f"{choices[0]}: the only one asked for or present"
    path = model_file(name)
    key = _key(path, choices, threads)
    remembered = _remembered().get(key)
    if remembered in choices:
        engine = open_engine(f"{remembered}:{path}", device=device, threads=threads)
        return engine, f"{remembered}: the fastest when measured on this machine"
    engines = {choice: open_engine(f"{choice}:{path}", device=device, threads=threads) for choice in choices}
    milliseconds = _measure(engines)
    best = min(milliseconds, key=lambda choice: milliseconds[choice])
    for choice, engine in engines.items():
        if choice != best:
            engine.close()
    _remember(key, best)
    figures = ", ".join(f"{choice} {value:.0f} ms" for choice, value in sorted(milliseconds.items()))
    return engines[best], f"{best}: the fastest just now ({figures} for {SIZE[3]}x{SIZE[2]} pixels)"


def cache_folder() -> Path:
    """Where this project keeps what it has found out or fetched for this user."""
    from platformdirs import user_cache_path

    return user_cache_path("gmin-edge")


def _measure(engines: dict[str, Engine]) -> dict[str, float]:
    batch = np.random.default_rng(0).random(SIZE, dtype=np.float32)
    times: dict[str, list[float]] = {choice: [] for choice in engines}
    for measured in range(ROUNDS + 1):  # the first round warms up
        for choice, engine in engines.items():
            started = time.perf_counter()
            engine.infer(batch)
            if measured:
                times[choice].append((time.perf_counter() - started) * 1e3)
    return {choice: statistics.median(values) for choice, values in times.items()}


def _key(path: Path, choices: list[str], threads: int | None) -> str:
    parts = [hashlib.sha256(path.read_bytes()).hexdigest(), str(threads), platform.processor(), platform.machine()]
    for choice in choices:
        try:
            parts.append(f"{choice} {version(BACKENDS[choice].library)}")
        except PackageNotFoundError:
            parts.append(choice)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


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
