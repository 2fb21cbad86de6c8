"""Everything that the report says, measured: networks against each other, our files against FP32, and a verdict."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.protocol import LATENCY_INPUT, RANDOM, Size
from benchmarks.published import PublishedScore, published
from runtime.errors import UserError

if TYPE_CHECKING:
    from benchmarks.complexity import Complexity
    from benchmarks.latency import Latency
    from quantize.ptq import Target
    from runtime.engines.contract import EngineInfo

SCALE = 4
ABSENT = "weights not present"
ACCEPTED_DROP_DB = 0.1
"""What a file may lose against FP32 and still be recommended: a tenth of what an untrained eye sees."""
ALIKE = 1.05
"""Times within this factor of the fastest count as the same; the smaller drop decides between them."""
TRAINED_LESS_DB = 0.1
"""A network this far below its published figure has not been trained as its paper trained it."""

Kind = Literal["network", "file", "int8", "floor"]
"""In FP32, ours or another; a shipped file; another network through our INT8 path; bicubic."""


@dataclass(frozen=True)
class Entry:
    """What is to be measured, and how the report calls it."""

    label: str
    network: str
    spec: str | None
    """An ENGINE; None where nothing is run and only counts and published figures are shown."""
    kind: Kind
    file: str | None = None
    """Name of the shipped file."""
    target: Target | None = None
    """Flavour of an INT8 file."""


@dataclass(frozen=True)
class Score:
    """Means over a set, on luma."""

    psnr_y_db: float
    ssim_y: float


@dataclass(frozen=True)
class Row:
    """One line of a table. Dictionaries are keyed by the set's name; what was not measured is absent or None."""

    label: str
    network: str
    kind: Kind
    engine: str | None
    file: str | None
    backend: str | None
    precision: str | None
    remark: str = ""
    """What must be said beside the name."""
    parameters: int | None = None
    macs: int | None = None
    flops: int | None = None
    measured: dict[str, Score] = field(default_factory=dict)
    published: dict[str, PublishedScore] = field(default_factory=dict)
    drop_db: dict[str, float] = field(default_factory=dict)
    """Of a file, and of what went through our INT8 path: against the same network in FP32 in ONNX Runtime."""
    median_ms: float | None = None
    p90_ms: float | None = None
    ratio: float | None = None
    """Median over rounds of this time over that of GMIN FP32 in ONNX Runtime in the same round."""
    target: Target | None = None
    """Flavour of an INT8 file."""

    def difference(self, name: str) -> float | None:
        """Measured minus published PSNR on a set, where both are known."""
        printed = self.published[name].psnr_y_db if name in self.published else None
        return self.measured[name].psnr_y_db - printed if printed is not None and name in self.measured else None


@dataclass(frozen=True)
class Verdict:
    """Which file to ship. ``sentence`` says it; ``remarks`` say what else must be known."""

    file: str | None
    backend: str | None
    sentence: str
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a report measures, and how long it takes its time."""

    networks: tuple[str, ...]
    """Besides GMIN, registered names."""
    sets: tuple[str, ...]
    rounds: int
    profile_runs: int
    size: Size = LATENCY_INPUT
    threads: int | None = None
    quick: bool = False
    """Do not time networks whose weights are not here: they are counted and quoted only."""
    int8: tuple[str, ...] = ()
    """Those of ``networks`` that are quantized too, each in every flavour, by the path that GMIN takes."""


QUICK = Plan(("lkdn_x4", "bsrn_x4", "hnct_x4"), ("Set5",), rounds=5, profile_runs=2, quick=True)
FULL = Plan(
    ("lkdn_x4", "bsrn_x4", "hnct_x4", "rlfn_x4", "efdn_x4", "smfanet_x4", "smfanet_plus_x4"),
    ("BSD100", "Set5", "Set14"),
    rounds=30,
    profile_runs=10,
    int8=("lkdn_x4", "bsrn_x4", "hnct_x4"),
)
LABELS = {
    "gmin": "GMIN", "lkdn": "LKDN", "bsrn": "BSRN", "hnct": "HNCT", "rlfn": "RLFN", "efdn": "EFDN",
    "smfanet": "SMFANet", "smfanet_plus": "SMFANet+",
}  # fmt: skip
_FILES: tuple[tuple[str, str, str, Target | None], ...] = (
    # OpenVINO refuses the file for TensorRT: it would lose half a decibel there
    ("GMIN FP32", "ort", "gmin_x4.onnx", None),
    ("GMIN INT8 for ONNX Runtime", "ort", "gmin_x4_int8_cpu.onnx", "cpu"),
    ("GMIN INT8 for TensorRT", "ort", "gmin_x4_int8.onnx", "tensorrt"),
    ("GMIN FP32", "openvino", "gmin_x4.onnx", None),
    ("GMIN FP32, computed in bf16", "openvino-bf16", "gmin_x4.onnx", None),
    ("GMIN INT8 for OpenVINO", "openvino", "gmin_x4_int8_openvino.onnx", "openvino"),
    ("GMIN INT8 for OpenVINO, the rest in bf16", "openvino-bf16", "gmin_x4_int8_openvino.onnx", "openvino"),
)
TARGETS: dict[Target, tuple[str, str]] = {
    "tensorrt": ("ort", "TensorRT"),
    "cpu": ("ort", "ONNX Runtime"),
    "openvino": ("openvino", "OpenVINO"),
}
"""Flavours: the back end that scores one on a CPU, and the library that it is for."""


def label_of(network: str) -> str:
    """A registered name as papers print it: ``lkdn_x4`` is LKDN."""
    family = network.rsplit("_x", 1)[0]
    return LABELS.get(family, family)


def entries(plan: Plan) -> list[Entry]:
    """What a plan measures on this machine, GMIN FP32 in ONNX Runtime first: everything is held against it."""
    from runtime.engines.opening import BACKENDS, installed

    refused = refusals()
    files = [
        Entry(label, "gmin_x4", spec, "file", file, target)
        for spec, (label, _, file, target) in _file_specs().items()
        if spec not in refused
    ]
    if not files or files[0].spec is None or not files[0].spec.startswith("ort:"):
        raise UserError("The report needs ONNX Runtime and the shipped models: pip install 'gmin-edge[report]'.")
    present = {name: has_weights(name) for name in plan.networks}
    networks = [
        Entry(label_of(name), name, None if plan.quick and not there else f"ort:{name}", "network")
        for name, there in present.items()
    ]
    from benchmarks.exported import ENDINGS

    int8 = [
        Entry(
            f"{label_of(name)} INT8 for {library}",
            name,
            f"{backend}:{name}{ENDINGS[target]}" if present[name] else None,
            "int8",
            target=target,
        )
        for name in plan.int8
        for target, (backend, library) in TARGETS.items()
        if installed(BACKENDS[backend]) and not any(spec.endswith(f"{ENDINGS[target]}.onnx") for spec in refused)
    ]
    return [*files, *networks, *int8, Entry("Bicubic", "bicubic", "bicubic", "floor")]


def _file_specs() -> dict[str, tuple[str, str, str, Target | None]]:
    """The rows of ``_FILES`` whose file and back end are here, by ENGINE."""
    from runtime.engines.opening import BACKENDS, MODELS, installed

    here = Path.cwd()  # reports are passed on: as little of this machine in them as can be
    folder = MODELS.relative_to(here) if MODELS.is_relative_to(here) else MODELS
    return {
        f"{row[1]}:{folder / row[2]}": row
        for row in _FILES
        if installed(BACKENDS[row[1]]) and (MODELS / row[2]).is_file()
    }


@functools.cache
def refusals() -> dict[str, str]:
    """Why a back end refuses shipped files on this processor, by ENGINE; the report leaves those out and says so."""
    from runtime.engines.opening import open_engine

    found = {}
    for spec in _file_specs():
        try:
            open_engine(spec).close()
        except UserError as refusal:
            found[spec] = str(refusal)
    return found


def has_weights(name: str) -> bool:
    """Whether the released weights of a registered network are here or can be fetched."""
    from model.engine import weights_path

    try:
        weights_path(name)
    except UserError:  # the report then says "weights not present"
        return False
    return True


def measure_rows(plan: Plan, *, quiet: bool) -> list[Row]:
    """Measure all entries of a plan: accuracy one by one, then time in turns in this process."""
    from tqdm import tqdm

    from benchmarks.accuracy import score
    from benchmarks.complexity import complexity
    from benchmarks.exported import open_timed
    from benchmarks.latency import WARM_UP, Contestant, measure
    from data.sets import image_set
    from runtime.environment import available_cores

    silent = True if quiet else None  # None: only on a terminal
    threads = plan.threads or available_cores()
    sets = [image_set(name, SCALE) for name in plan.sets]
    wanted = entries(plan)
    infos: dict[int, EngineInfo] = {}
    weights: dict[int, str] = {}
    scores: dict[int, dict[str, Score]] = {}
    run = [i for i, entry in enumerate(wanted) if entry.spec is not None]
    for i in tqdm(run, "scoring", leave=False, disable=silent):
        timed = open_timed(wanted[i].spec or "", threads=threads)
        with closing(timed.engine) as engine:  # one at a time: pictures of many sizes make engines hoard memory
            infos[i], weights[i] = engine.info, timed.weights
            means = [score(engine, images)[0] for images in sets if timed.weights != RANDOM]
        scores[i] = {Path(mean.set).name: Score(mean.psnr_y_db, mean.ssim_y) for mean in means}
    racing = [
        i for i in run if wanted[i].kind != "floor" and (wanted[i].kind, wanted[i].target) != ("int8", "tensorrt")
    ]
    with ExitStack() as stack:
        contestants = []
        for i in racing:
            timed = open_timed(wanted[i].spec or "", threads=threads)
            contestants.append(Contestant(stack.enter_context(closing(timed.engine)), wanted[i].label, timed.weights))
        with tqdm(total=plan.rounds + WARM_UP, desc="timing", unit="round", leave=False, disable=silent) as bar:
            times = measure(
                contestants, plan.size, threads=threads, rounds=plan.rounds, warm_up=WARM_UP, after_round=bar.update
            )
    latency = dict(zip(racing, times, strict=True))
    names = sorted({entry.network for entry in wanted if entry.kind in ("file", "network")})
    counts = {name: complexity(name) for name in tqdm(names, "counting", leave=False, disable=silent)}
    printed = {entry.network: entry.scores for entry in published() if entry.network}
    fp32: dict[str, dict[str, Score]] = {}
    for i, entry in enumerate(wanted):
        fp32.setdefault(entry.network, scores.get(i, {}))  # the first of a network is itself in ONNX Runtime
    rows = []
    for i, entry in enumerate(wanted):
        rows.append(
            _row(
                entry,
                info=infos.get(i),
                weights=weights.get(i, ABSENT),
                count=None if entry.kind == "int8" else counts.get(entry.network),
                measured=scores.get(i, {}),
                reference=fp32[entry.network],
                published=printed.get(entry.network, {}),
                latency=latency.get(i),
            )
        )
    return rows


def _row(
    entry: Entry,
    *,
    info: EngineInfo | None,
    weights: str,
    count: Complexity | None,
    measured: Mapping[str, Score],
    reference: Mapping[str, Score],
    published: Mapping[str, PublishedScore],
    latency: Latency | None,
) -> Row:
    drop = {
        name: reference[name].psnr_y_db - score.psnr_y_db
        for name, score in measured.items()
        if entry.kind in ("file", "int8") and name in reference
    }
    return Row(
        label=entry.label,
        network=entry.network,
        kind=entry.kind,
        engine=entry.spec,
        file=entry.file,
        backend=f"{info.backend}, {info.device.removesuffix('ExecutionProvider')}" if info else None,
        precision=info.precision if info else None,
        remark=_remark(entry, weights, timed=latency is not None),
        parameters=count.parameters if count else None,
        macs=count.macs if count else None,
        flops=count.flops if count else None,
        measured=dict(measured),
        published=dict(published),
        drop_db=drop,
        median_ms=latency.median_ms if latency else None,
        p90_ms=latency.p90_ms if latency else None,
        ratio=latency.ratio if latency else None,
        target=entry.target,
    )


def _remark(entry: Entry, weights: str, *, timed: bool) -> str:
    if entry.kind not in ("network", "int8") or weights not in (RANDOM, ABSENT):
        return ""
    return f"{ABSENT}: timed with random ones" if timed else ABSENT


def verdict(rows: Sequence[Row], name: str, *, gpu: bool = False) -> Verdict:
    """Say which file to ship here, from the measurements alone.

    The fastest file wins among those that lose at most ``ACCEPTED_DROP_DB`` on the set ``name``; of those that are as
    fast as it within ``ALIKE``, the one that loses least.
    """
    files = [row for row in rows if row.kind == "file" and row.ratio is not None and name in row.drop_db]
    if not files:
        return Verdict(None, None, "Nothing could be timed here, so no file is recommended.", ())
    base = files[0]
    best = choose(files, name)
    remarks = []
    if best is base:
        sentence = (
            f"Ship {base.file} as it is: no INT8 file was faster in {_library(base)} here and within "
            f"{ACCEPTED_DROP_DB} dB of it on {name}."
        )
    else:
        sentence = f"Ship {best.file} and run it with {_library(best)}: {_gain(best, base, name)}."
        alone = choose([row for row in files if _library(row) == _library(base)], name)
        if _library(best) != _library(base):
            remarks.append(
                f"With {_library(base)} alone, ship {alone.file}: {_gain(alone, base, name)}."
                if alone is not base
                else f"With {_library(base)} alone, stay with {base.file}: no INT8 file is faster there within "
                f"{ACCEPTED_DROP_DB} dB."
            )
    remarks += [
        f"{row.file} in {_library(row)} is faster still ({row.median_ms:.0f} ms), but what it loses was not measured."
        for row in rows
        if row.kind == "file" and row.ratio is not None and name not in row.drop_db and row.ratio < (best.ratio or 1.0)
    ]
    if not gpu:
        remarks.append("gmin_x4_int8.onnx is the file for TensorRT; no GPU took part in these measurements.")
    remarks += training_remarks(rows, name)
    return Verdict(best.file, best.backend, sentence, tuple(remarks))


def choose(files: Sequence[Row], name: str) -> Row:
    """The file to ship among some; the first of them is what the others' drops and times are against."""
    good = [row for row in files if row.ratio is not None and row.drop_db[name] <= ACCEPTED_DROP_DB] or [files[0]]
    fastest = min(row.ratio or 1.0 for row in good)
    alike = [row for row in good if (row.ratio or 1.0) <= ALIKE * fastest]
    return min(alike, key=lambda row: (max(row.drop_db[name], 0.0), row.ratio))


def training_remarks(rows: Sequence[Row], name: str) -> list[str]:
    """What must be known of GMIN's weights: how far they are from the paper, and from the best measured network."""
    ours = rows[0].measured.get(name)
    printed = rows[0].published.get("BSD100")
    rivals = [row for row in rows if row.kind == "network" and name in row.measured]
    best = max(rivals, key=lambda row: row.measured[name].psnr_y_db, default=None)
    if ours is None or best is None or best.measured[name].psnr_y_db - ours.psnr_y_db < TRAINED_LESS_DB:
        return []
    gap = best.measured[name].psnr_y_db - ours.psnr_y_db
    paper = f" (its paper prints {printed.psnr_y_db:.2f} dB on BSD100)" if printed and printed.psnr_y_db else ""
    text = (
        f"GMIN's shipped weights had less training than the others'{paper}: {ours.psnr_y_db:.2f} dB on {name}, "
        f"{gap:.2f} dB below {best.label}. Sizes and times do not depend on weights; quality does."
    )
    if best.ratio is not None:
        text += f" Until they have more, {best.label} gives better pictures at {best.ratio:.2f} times the FP32 time."
    return [text]


def _gain(row: Row, base: Row, name: str) -> str:
    drop = row.drop_db[name]
    cost = f"at a cost of {drop:.3f} dB" if drop >= 0.0005 else "at no cost in PSNR"
    return (
        f"{1 / (row.ratio or 1):.2f} times as fast as FP32 in {_library(base)} ({row.median_ms:.0f} ms against "
        f"{base.median_ms:.0f} ms for one picture), {cost} on {name}"
    )


def _library(row: Row) -> str:
    """A back end without its version: ``OpenVINO (bf16)``."""
    library, _, device = (row.backend or "").partition(", ")
    plain = library.rsplit(" ", 1)[0]
    return f"{plain} in bf16" if "bf16" in device else plain
