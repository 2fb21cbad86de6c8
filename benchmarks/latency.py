"""Time of engines against each other, interleaved in one process.

python benchmarks/latency.py
python benchmarks/latency.py ort:gmin_x4.onnx ort:lkdn_x4 ort:bsrn_x4 --size 320x180 --threads 2
"""

from __future__ import annotations

import statistics
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from benchmarks.protocol import LATENCY_INPUT, RANDOM, Size, size_from_text
from runtime.command_line import JsonOption, QuietOption, new_app, run, say, table, write_json
from runtime.errors import UserError
from runtime.files import check_writable

if TYPE_CHECKING:
    from benchmarks.exported import Timed
    from runtime.engines.contract import Engine, StageTimes

PROTOCOL = (
    "one picture 1 x 3 x H x W float32; engines take turns in one process (A, B, C, A, B, C, ...) after warm-up, each "
    "after a rest of 5 ms; time of the whole call, copies included; ratio is the median over rounds of the time over "
    "the first engine's in the same round"
)
NOISY = 1.3
"""p90 over median from which a machine is called noisy."""
PAUSE_S = 0.005
"""Rest before each run.

ONNX Runtime's threads spin on for a while after a run, on cores that the next engine then has to share. Measured with
GMIN at 160x90 on two cores: ``session.intra_op.allow_spinning`` off makes ONNX Runtime 15 to 25 % slower where the
machine is quiet (61 to 69, 67 to 84 ms), and up to twice as fast where others take half of it (189 and 252 to 124 and
128 ms); there OpenVINO took 179 and 185 ms right after the spinning one and 131 and 133 after the other. Users have it
on, so it stays on, and every engine starts after a rest; p90 and the share that others took say when to doubt.
"""
WARM_UP = 2
"""Runs before the timed ones, at least: OpenVINO compiles for a size in the second run of it."""
CROWDED = 0.1
"""Share of the processors that others may take before the times are called too long."""


@dataclass(frozen=True)
class Contestant:
    """An open engine and how the table calls it."""

    engine: Engine
    network: str
    weights: str = "as given"
    peak_memory_mb: float | None = None


@dataclass(frozen=True)
class Latency:
    """Times of one engine at one input size. Stages are there only where the engine tells them."""

    engine: str
    network: str
    weights: str
    backend: str
    device: str
    precision: str
    input: str
    median_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    ratio: float
    output_megapixels_per_s: float
    peak_memory_mb: float | None
    threads: int
    rounds: int
    noisy: bool
    host_to_device_ms: float | None = None
    compute_ms: float | None = None
    device_to_host_ms: float | None = None


def measure(
    contestants: Sequence[Contestant],
    size: Size,
    *,
    threads: int,
    rounds: int = 30,
    warm_up: int = 3,
    pause_s: float = PAUSE_S,
    clock: Callable[[], float] = time.perf_counter,
    after_round: Callable[[], object] = lambda: None,
) -> list[Latency]:
    """Time engines in turns on the same picture.

    Args:
        contestants: what runs, in this order; the first is what ``ratio`` refers to.
        size: of the input.
        threads: what the engines were opened with; only written down.
        rounds: timed runs of each.
        warm_up: runs of each before them.
        pause_s: rest before each run, in which the threads that the last engine keeps spinning go to sleep.
        clock: seconds.
        after_round: called after every round, the warming ones included.
    """
    import numpy as np

    from runtime.engines.contract import TimedEngine

    batch = np.random.default_rng(0).random((1, 3, size.height, size.width), dtype=np.float32)
    times: list[list[float]] = [[] for _ in contestants]
    stages: list[list[StageTimes]] = [[] for _ in contestants]
    for number in range(warm_up + rounds):
        for i, contestant in enumerate(contestants):
            if pause_s:
                time.sleep(pause_s)
            started = clock()
            contestant.engine.infer(batch)
            elapsed = (clock() - started) * 1e3
            if number >= warm_up:
                times[i].append(elapsed)
                if isinstance(contestant.engine, TimedEngine):
                    stages[i].append(contestant.engine.last_times)
        after_round()
    return [
        _summary(contestant, size, threads, own, times[0], told)
        for contestant, own, told in zip(contestants, times, stages, strict=True)
    ]


def _summary(
    contestant: Contestant, size: Size, threads: int, own: list[float], first: list[float], told: list[StageTimes]
) -> Latency:
    import numpy as np

    info = contestant.engine.info
    median, p90, p99 = (float(np.percentile(own, q)) for q in (50, 90, 99))
    stages = {
        field: statistics.median(getattr(t, field) for t in told) if told else None
        for field in ("host_to_device_ms", "compute_ms", "device_to_host_ms")
    }
    return Latency(
        engine=info.engine,
        network=contestant.network,
        weights=contestant.weights,
        backend=info.backend,
        device=info.device,
        precision=info.precision,
        input=str(size),
        median_ms=median,
        p90_ms=p90,
        p99_ms=p99,
        min_ms=min(own),
        ratio=statistics.median(a / b for a, b in zip(own, first, strict=True)),
        output_megapixels_per_s=size.width * size.height * info.scale**2 / median / 1e3,
        peak_memory_mb=contestant.peak_memory_mb,
        threads=threads,
        rounds=len(own),
        noisy=p90 > NOISY * median,
        **stages,
    )


def _warnings(results: list[Latency], others: float) -> list[str]:
    found = [
        f"{r.network} at {r.input}: p90 is {r.p90_ms / r.median_ms:.2f} times the median; the machine is busy, trust "
        "ratios only, or measure again"
        for r in results
        if r.noisy
    ]
    if others > CROWDED:
        found.append(f"other programs took {others:.0%} of the processors meanwhile: these times are too long")
    return found


def joined(*payloads: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of several results of one run, to be compared.

    Raises:
        UserError: they are of different runs, or of none that is known. Times of two processes are never compared here:
            the machine between them is not the same.
    """
    runs = {payload.get("run") for payload in payloads}
    if len(runs) > 1 or None in runs:
        raise UserError(
            "These times were not measured in one run and are not comparable: name all engines in one call of "
            "benchmarks/latency.py."
        )
    return [row for payload in payloads for row in payload["results"]]


def default_engines() -> tuple[list[tuple[str, str]], str]:
    """What is compared when nothing is named, as (ENGINE, name of the network), and why on this back end."""
    from runtime.engines.opening import MODELS, candidates, model_file, open_engine, split_prefix
    from runtime.selection import open_fastest

    file = str(MODELS / "gmin_x4.onnx")
    engine, reason = open_fastest(file)
    engine.close()
    backend = split_prefix(engine.info.engine)[0] or candidates(file)[0]
    ours = [("GMIN FP32", MODELS / "gmin_x4.onnx")]
    quantized = model_file("gmin_x4", backend)
    try:
        open_engine(f"{backend}:{quantized}").close()
        ours.append(("GMIN INT8", quantized))
    except UserError as refusal:
        reason += f"; without GMIN INT8: {refusal}"
    theirs = [(f"{backend}:{name}_x4", f"{name.upper()} FP32") for name in ("lkdn", "bsrn", "hnct")]
    return [*((f"{backend}:{_near(path)}", label) for label, path in ours), *theirs], reason


def _near(path: Path) -> Path:
    """As a user in this folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


app = new_app("Time of engines against each other.")


@app.command()
def main(
    engines: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ENGINE]...",
            help="Files, registered networks (gmin_x4 in PyTorch, ort:lkdn_x4 exported on the fly). "
            "Default: GMIN FP32 and INT8, LKDN, BSRN and HNCT on the best back end present.",
        ),
    ] = None,
    size: Annotated[list[str] | None, typer.Option(help="Size of the input; repeat it for several.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of one inference. Default: all cores of this process.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each engine.")] = 30,
    warm_up: Annotated[int, typer.Option(min=0, help="Runs of each engine before them.")] = 3,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too, each engine in a process of its own.")] = True,
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Time engines against each other: in turns, in one process, with everything that decides about time."""
    if json_target not in (None, "-"):
        check_writable(Path(json_target))
    sizes = [size_from_text(text) for text in size or [str(LATENCY_INPUT)]]
    from tqdm import tqdm

    from benchmarks.exported import open_timed
    from benchmarks.memory import MEANING, peak_memory_mb
    from runtime.environment import available_cores, environment, processor_time

    threads = threads or available_cores()
    specs, reason = [(spec, "") for spec in engines or []], "named by the user"
    if not specs:
        specs, reason = default_engines()
        say(f"back end: {reason}", quiet=quiet, json_target=json_target)
    results: list[Latency] = []
    others: list[float] = []
    with ExitStack() as stack:
        opened: list[Timed] = []
        hidden = True if quiet else None  # None: hidden where there is no terminal
        for spec, _ in tqdm(specs, desc="opening, exporting", unit="engine", leave=False, disable=hidden):
            opened.append(open_timed(spec, threads=threads))
            stack.enter_context(closing(opened[-1].engine))
        _check_sizes(opened, sizes)
        for wanted in sizes:
            contestants = [
                Contestant(
                    timed.engine,
                    label or timed.engine.info.name,
                    timed.weights,
                    peak_memory_mb(spec, wanted, threads=threads) if memory else None,
                )
                for (spec, label), timed in tqdm(
                    list(zip(specs, opened, strict=True)), desc="memory", unit="engine", leave=False,
                    disable=hidden if memory else True,
                )
            ]  # fmt: skip
            before = processor_time()
            bar = tqdm(total=rounds + warm_up, desc=str(wanted), unit="round", leave=False, disable=hidden)
            results += measure(
                contestants, wanted, threads=threads, rounds=rounds, warm_up=warm_up, after_round=bar.update
            )
            bar.close()
            after = processor_time()
            if before and after:
                others.append(after.taken_by_others_since(before))
    warnings = _warnings(results, max(others, default=0.0))
    payload = {
        "schema": 1,
        "run": uuid.uuid4().hex,
        "protocol": PROTOCOL,
        "peak_memory": MEANING if memory else None,
        "chosen": reason,
        "environment": asdict(environment(threads)),
        "processors_taken_by_others": max(others, default=None),
        "warnings": warnings,
        "results": [asdict(r) for r in results],
    }
    write_json(payload, json_target)
    say(_report(results, payload, named=bool(engines)), quiet=quiet, json_target=json_target)


def _check_sizes(opened: list[Timed], sizes: list[Size]) -> None:
    for info in (timed.engine.info for timed in opened):
        for size in sizes:
            if min(size.width, size.height) < info.minimum_size:
                raise UserError(
                    f"{info.engine} takes no input smaller than {info.minimum_size} pixels, and not {size}."
                )


def _report(results: list[Latency], payload: Mapping[str, Any], *, named: bool) -> str:
    staged = any(r.compute_ms is not None for r in results)
    around = payload["environment"]
    lines = [
        table([_row(r, named=named, staged=staged) for r in results]),
        f"{around['processor']} ({', '.join(around['features']) or 'features unknown'}), {around['threads']} threads, "
        f"{around['clock_mhz'] or '?'} MHz, {around['date']}",
        f"protocol: {payload['protocol']}",
        *(f"warning: {warning}" for warning in payload["warnings"]),
    ]
    return "\n".join(lines)


def _row(result: Latency, *, named: bool, staged: bool) -> dict[str, Any]:
    stages = {"H2D": result.host_to_device_ms, "compute": result.compute_ms, "D2H": result.device_to_host_ms}
    return {
        "engine" if named else "network": (result.engine if named else result.network)
        + (f" ({RANDOM})" if result.weights == RANDOM else ""),
        "backend": f"{result.backend}, {result.device}",
        "precision": result.precision,
        "input": result.input,
        "median ms": f"{result.median_ms:.1f}",
        "p90": f"{result.p90_ms:.1f}",
        "p99": f"{result.p99_ms:.1f}",
        "min": f"{result.min_ms:.1f}",
        "ratio": f"{result.ratio:.3f}",
        "Mpx/s": f"{result.output_megapixels_per_s:.2f}",
        "peak MB": None if result.peak_memory_mb is None else f"{result.peak_memory_mb:.0f}",
        **({stage: None if value is None else f"{value:.2f}" for stage, value in stages.items()} if staged else {}),
    }


if __name__ == "__main__":
    run(app)
