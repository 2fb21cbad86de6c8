"""Which layers stay float: the fewest and cheapest that bring the loss within what the user allows.

What each layer costs the FP32 network's output is measured first; errors of different layers nearly add up. Layers are
then given back to float in the order of error removed per millisecond risked, and the shortest such list that keeps
within the drop is taken. All on calibration pictures; the caller judges the result on others.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from data.metrics import psnr_y
from data.sets import Pair, from_batch, to_batch
from quantize.plan import Plan
from quantize.timing import HEIGHT, WIDTH
from runtime.environment import processor
from runtime.errors import UserError
from runtime.files import atomic_write, cache_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

HIGHEST_DB = 120.0
"""What equal pictures count for in a mean of PSNR."""
Progress = Callable[[int, int], None]
"""Called with (layers measured, layers in all)."""
_LAYOUT = 3  # of the saved state
_RANKING_PICTURES = 4
_SESSIONS, _ROUNDS = 3, 5
_NOISE = 0.01


@dataclass(frozen=True)
class Sensitivity:
    """One layer: what it costs the picture in 8 bits, and what it costs in time as a float layer."""

    unit: str
    kind: str
    """Operation of the graph, ``Conv`` …"""
    mse: float
    """Mean squared error of the output on [0, 1] against FP32 that it brings: where only this layer is quantized, or,
    in a flavour that quantizes everything, what giving back this layer alone takes away."""
    psnr_against_fp32_db: float
    float_ms: float | None
    """Its time in the FP32 graph on these pictures, by ONNX Runtime's profiler, 0 where it was fused away. In a flavour
    that quantizes everything, by how much the whole file slows down with this layer in float, as there conversions cost
    more than arithmetic; None where it is too harmless to be timed."""


@dataclass(frozen=True)
class Candidate:
    """A choice of float layers, and what it was measured to cost."""

    floats: tuple[str, ...]
    psnr_against_fp32_db: float
    drop_db: float
    """Luma PSNR against HR of FP32 minus that of this candidate, on the search pictures."""
    median_ms: float | None = None
    ratio: float | None = None
    """Median over rounds of its time over that of FP32, in turns in one process; None where it was not timed."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found. ``chosen`` indexes ``candidates``; the first of them has no float layer."""

    sensitivities: tuple[Sensitivity, ...]
    candidates: tuple[Candidate, ...]
    chosen: int
    within: bool
    """Whether the chosen one keeps within the drop; False where even all layers in float did not."""
    pictures: int
    schema: int = 1
    pareto: tuple[int, ...] = field(default=())
    """Candidates that no other beats in both drop and time."""

    @property
    def floats(self) -> tuple[str, ...]:
        return self.candidates[self.chosen].floats


class Judge:
    """FP32's answers to a few pictures, and how far another graph's lie from them."""

    def __init__(self, model: ModelProto, pairs: Sequence[Pair], scale: int) -> None:
        self.pairs, self.scale = pairs, scale
        self._batches = [to_batch(pair.lr) for pair in pairs]
        self._expected = [output.clip(0, 1) for output in self._outputs(model)]
        self._before = self._quality(self._expected)

    def mse(self, model: ModelProto) -> float:
        """Mean squared error against FP32 on [0, 1], on the first few pictures: enough to rank layers by."""
        few = self._outputs(model, _RANKING_PICTURES)
        return float(
            np.mean(
                [
                    np.mean((output.clip(0, 1) - expected) ** 2)
                    for output, expected in zip(few, self._expected, strict=False)
                ]
            )
        )

    def candidate(self, model: ModelProto, floats: Sequence[str]) -> Candidate:
        """Error against FP32 and drop against HR."""
        outputs = [output.clip(0, 1) for output in self._outputs(model)]
        error = np.mean([np.mean((a - b) ** 2) for a, b in zip(outputs, self._expected, strict=True)])
        return Candidate(tuple(floats), decibels(float(error)), self._before - self._quality(outputs))

    def _quality(self, outputs: Sequence[NDArray[np.float32]]) -> float:
        pairs = zip(outputs, self.pairs, strict=True)
        scores = [psnr_y(from_batch(output), pair.hr, crop=self.scale) for output, pair in pairs]
        return float(np.minimum(scores, HIGHEST_DB).mean())

    def _outputs(self, model: ModelProto, most: int | None = None) -> list[NDArray[np.float32]]:
        session = open_session(model)
        (graph_input,) = session.get_inputs()
        return [session.run(None, {graph_input.name: batch})[0] for batch in self._batches[:most]]


def decibels(mse: float) -> float:
    """PSNR of a mean squared error on [0, 1]; 120 where there is none."""
    return float(-10 * np.log10(max(mse, 10 ** (-HIGHEST_DB / 10))))


def open_session(model: ModelProto, *, profile: Path | None = None, threads: int | None = None) -> Any:
    """The graph in ONNX Runtime on the CPU, as the runtime opens it, with as many threads as it likes unless told."""
    import onnxruntime

    from runtime.environment import sums_overflow

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if sums_overflow():  # the library's faster kernels saturate there: what is judged must be what is shown
        options.add_session_config_entry("session.x64quantprecision", "1")
    if threads:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def search(
    plan: Plan,
    judge: Judge,
    *,
    max_drop_db: float,
    state: Path | None = None,
    timer: Callable[[Sequence[ModelProto]], list[tuple[float, float]]] | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Find the layers that must stay float for ``drop_db`` ≤ ``max_drop_db``.

    Args:
        plan: what could be quantized.
        judge: the pictures of the search.
        max_drop_db: luma PSNR against HR that may be lost.
        state: a file that keeps what was measured, so that an interrupted search goes on from there.
        timer: models, FP32 first, to (median ms, ratio to FP32) of each, measured in turns; None leaves times out.
        progress: told after each layer.
    """
    everything = judge.candidate(plan.build(), ())
    sensitivities: tuple[Sensitivity, ...] = ()
    candidates = [everything]
    chosen = 0
    if everything.drop_db > max_drop_db or timer is not None:
        sensitivities = measure_sensitivities(plan, judge, state=state, progress=progress)
        order = give_back_order(sensitivities)
        by_length = {0: everything}

        def at(length: int) -> Candidate:
            if length not in by_length:
                floats = order[:length]
                by_length[length] = judge.candidate(plan.build(floats), floats)
            return by_length[length]

        good = _shortest(at, len(order), max_drop_db)
        for length in (1, 2, 4, 8, 16, 32, 64):  # a few more points of the trade-off, to show and to time
            if timer is not None and length < len(order):
                at(length)
        candidates = [by_length[length] for length in sorted(by_length)]
        chosen = sorted(by_length).index(good)
    if timer is not None:
        built = [plan.build(candidate.floats) for candidate in candidates]
        _, *times = timer([plan.model, *built])
        candidates = [
            Candidate(c.floats, c.psnr_against_fp32_db, c.drop_db, median, ratio)
            for c, (median, ratio) in zip(candidates, times, strict=True)
        ]
    return SearchResult(
        sensitivities=sensitivities,
        candidates=tuple(candidates),
        chosen=chosen,
        within=candidates[chosen].drop_db <= max_drop_db,
        pictures=len(judge.pairs),
        pareto=tuple(_pareto(candidates)),
    )


def measure_sensitivities(
    plan: Plan, judge: Judge, *, state: Path | None = None, progress: Progress | None = None
) -> tuple[Sensitivity, ...]:
    """What each layer costs, against FP32.

    In a flavour that quantizes everything, several layers read one tensor, so that a layer alone in 8 bits would count
    the rounding of its neighbours as its own: there each layer alone is given back instead.
    """
    identity = _identity(plan, judge)
    known = _load(state, identity)
    kinds = {node.name: node.op_type for node in plan.model.graph.node}
    times: Mapping[str, float] = {}
    if plan.target != "cpu" and len(known) < len(plan.units):
        batch = to_batch(judge.pairs[0].lr)
        times = remembered_times(plan, f"float {batch.shape}", lambda: float_times(plan.model, batch))
    whole = judge.mse(plan.build()) if plan.target == "cpu" else None
    results = []
    for done, unit in enumerate(plan.units, 1):
        if unit not in known:
            if whole is None:
                error = judge.mse(plan.build(set(plan.units) - {unit}))
            else:
                error = max(whole - judge.mse(plan.build([unit])), 0.0)
            float_ms = times.get(unit, 0.0) if whole is None else None
            known[unit] = Sensitivity(unit, kinds[unit], error, decibels(error), float_ms)
            if state is not None:
                _save(state, identity, known)
        results.append(known[unit])
        if progress is not None:
            progress(done, len(plan.units))
    if whole is not None:
        worst = worst_layers(results)
        times = remembered_times(plan, f"slowdown {worst}", lambda: slowdowns(plan, worst))
        results = [replace(entry, float_ms=times.get(entry.unit)) for entry in results]
    return tuple(results)


def worst_layers(sensitivities: Sequence[Sensitivity], share: float = 0.9) -> list[str]:
    """The fewest layers that together bring ``share`` of the error, worst first."""
    ranked = sorted(sensitivities, key=lambda s: (-s.mse, s.unit))
    total = np.cumsum([s.mse for s in ranked])
    return [s.unit for s in ranked[: int(np.searchsorted(total, share * total[-1])) + 1]]


def give_back_order(sensitivities: Sequence[Sensitivity]) -> list[str]:
    """Layers by error per millisecond, worst first; those that were not timed come last.

    A layer without a time of its own costs as little as the least.
    """
    least = min((s.float_ms for s in sensitivities if s.float_ms), default=1.0)

    def rank(s: Sensitivity) -> tuple[bool, float, str]:
        return s.float_ms is None, -s.mse / (1.0 if s.float_ms is None else max(s.float_ms, least)), s.unit

    return [s.unit for s in sorted(sensitivities, key=rank)]


def remembered_times(plan: Plan, what: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What ``measure`` finds about a plan, measured once on a machine.

    Times differ from run to run, and the same command twice should choose the same layers.
    """
    import onnxruntime

    digest = hashlib.sha256(plan.model.SerializeToString(deterministic=True))
    digest.update(f"{what} {onnxruntime.__version__} {processor()}".encode())
    path = cache_folder() / "layer_times" / f"{digest.hexdigest()[:32]}.json"
    try:
        known = json.loads(path.read_text("utf-8"))
        return {str(name): float(value) for name, value in known.items()}
    except (OSError, ValueError, AttributeError, TypeError):  # none yet, or half a file
        times = measure()
    with suppress(OSError, UserError):  # a home folder that cannot be written to: measured again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as stream:
            stream.write(json.dumps(times).encode())
    return times


def float_times(model: ModelProto, batch: NDArray[np.float32]) -> dict[str, float]:
    """Milliseconds of each node of an FP32 graph, median of 5 runs, by the profiler of ONNX Runtime.

    A node that was fused into another has no time of its own and is absent.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        session = open_session(model, profile=Path(folder) / "profile")
        (graph_input,) = session.get_inputs()
        for _ in range(6):
            session.run(None, {graph_input.name: batch})
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    known = {label: node.name for node in model.graph.node for label in (node.output[0], node.name)}
    made_by = {node.output[0]: node for node in model.graph.node if node.op_type == "Conv"}
    for node in model.graph.node:  # a convolution that a clip was fused into bears the name of the clip's result
        if node.op_type in ("Clip", "Relu") and node.input[0] in made_by:
            known[node.output[0]] = made_by[node.input[0]].name
    times: dict[str, list[float]] = {}
    for event in events:
        label = event["name"].removesuffix("_kernel_time")
        node = known.get(label.removesuffix("_nchwc"))  # how ONNX Runtime calls convolutions in its own layout
        if event.get("cat") == "Node" and label != event["name"] and node is not None:
            times.setdefault(node, []).append(event["dur"] / 1000)
    return {name: float(np.median(runs[1:])) for name, runs in times.items() if len(runs) > 1}


def slowdowns(plan: Plan, units: Sequence[str]) -> dict[str, float]:
    """Milliseconds that the quantized file takes longer with each unit alone in float, in ONNX Runtime.

    In turns, and the median over several pairs of sessions: where a session's memory lies alone changes its time by
    some percent. At least ``_NOISE`` of the file's time: less cannot be told from nothing.
    """
    name = plan.model.graph.input[0].name
    batch = np.random.default_rng(0).random((1, 3, HEIGHT, WIDTH), np.float32)

    def seconds(session: Any) -> float:
        started = time.perf_counter()
        session.run(None, {name: batch})
        return time.perf_counter() - started

    found = {}
    for unit in units:
        differences, times = [], []
        for _ in range(_SESSIONS):
            pair = [open_session(plan.build(floats)) for floats in ([unit], [])]
            rounds = np.array([[seconds(session) for session in pair] for _ in range(1 + _ROUNDS)])[1:]
            differences.append(np.median(rounds[:, 0] - rounds[:, 1]))
            times.append(np.median(rounds[:, 1]))
        found[unit] = 1000 * float(max(np.median(differences), _NOISE * np.median(times)))
    return found


def _shortest(at: Callable[[int], Candidate], longest: int, max_drop_db: float) -> int:
    """The least length whose candidate keeps within the drop, by doubling, then halving; ``longest`` if none does."""
    length = 0
    while at(length).drop_db > max_drop_db:
        if length == longest:
            return longest
        failed, length = length, min(max(1, 2 * length), longest)
    if length == 0:
        return 0
    while length - failed > 1:
        middle = (failed + length) // 2
        if at(middle).drop_db > max_drop_db:
            failed = middle
        else:
            length = middle
    return length


def _pareto(candidates: Sequence[Candidate]) -> list[int]:
    """Indices of the timed candidates that no other beats in both drop and time."""
    timed = [(i, c.drop_db, c.ratio) for i, c in enumerate(candidates) if c.ratio is not None]
    return [
        i
        for i, drop, ratio in timed
        if not any((d <= drop and r <= ratio) and (d < drop or r < ratio) for _, d, r in timed)
    ]


def _identity(plan: Plan, judge: Judge) -> str:
    """What the measurements depend on."""
    digest = hashlib.sha256(plan.build().SerializeToString(deterministic=True))
    digest.update(plan.model.SerializeToString(deterministic=True))
    for pair in judge.pairs:
        digest.update(pair.name.encode())
    return digest.hexdigest()


def _load(state: Path | None, identity: str) -> dict[str, Sensitivity]:
    if state is None or not state.is_file():
        return {}
    try:
        content: Mapping[str, Any] = json.loads(state.read_text("utf-8"))
        if content["layout"] != _LAYOUT or content["identity"] != identity:
            return {}
        return {entry["unit"]: Sensitivity(**entry) for entry in content["sensitivities"]}
    except (ValueError, KeyError, TypeError):  # half a file, or somebody else's: measure again
        return {}


def _save(state: Path, identity: str, known: Mapping[str, Sensitivity]) -> None:
    entries = [asdict(entry) for entry in known.values()]
    with atomic_write(state) as stream:
        stream.write(json.dumps({"layout": _LAYOUT, "identity": identity, "sensitivities": entries}).encode())
