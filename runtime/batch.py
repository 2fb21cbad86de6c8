"""Many pictures: while one is in the engine, the next is decoded and the last is encoded and written."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from runtime.engines.contract import Engine, ShapedEngine
from runtime.errors import UserError
from runtime.folder import Job, Plan, make_parent
from runtime.headers import read_header
from runtime.manifest import Entry, Manifest
from runtime.rows import Progress
from runtime.steps import Computed, Loaded, Options, compute, load, store
from runtime.upscale import default_tile

AHEAD = 2
"""Decoded pictures that may wait for the engine."""
WRITERS = max(1, min(4, (os.cpu_count() or 2) // 2))
"""Threads that encode: a PNG of 4096 pixels a side takes a second, which a GPU does not wait for."""
UNWRITTEN_BYTES = 1 << 30
"""Results that may wait to be written; one may always."""
_HEADER_BYTES = 1 << 18

J = TypeVar("J")
L = TypeVar("L")
C = TypeVar("C")
R = TypeVar("R")


def overlapped(
    jobs: Iterable[J],
    read: Callable[[J], L],
    compute: Callable[[L], C],
    write: Callable[[J, C], R],
    size_bytes: Callable[[C], int] = lambda _: 0,
    *,
    writers: int = WRITERS,
) -> Generator[tuple[J, R | Exception], None, None]:
    """Run three steps over many jobs, each step in its own thread; results come in the order of the jobs.

    ``compute`` runs in the calling thread. An exception of a step is the result of that job alone; what is no
    ``Exception`` (Ctrl-C) ends the run after the writes that have begun. With one of ``writers`` they begin in order.
    """
    remaining = iter(jobs)
    reads: deque[tuple[J, Future[L]]] = deque()
    writes: deque[tuple[J, Future[R], int]] = deque()
    with ThreadPoolExecutor(1, "decode") as reader, ThreadPoolExecutor(writers, "encode") as writer:
        try:
            while True:
                reads.extend((job, reader.submit(read, job)) for job in islice(remaining, AHEAD - len(reads) + 1))
                if not reads:
                    break
                job, loaded = reads.popleft()
                finished: Future[R] = Future()
                size = 0
                try:
                    computed = compute(loaded.result())
                except Exception as error:
                    finished.set_exception(error)
                else:
                    size = size_bytes(computed)
                    finished = writer.submit(write, job, computed)
                    del computed
                del loaded
                writes.append((job, finished, size))
                while writes and (
                    writes[0][1].done()
                    or len(writes) > writers + 1
                    or (len(writes) > 1 and sum(waiting for _, _, waiting in writes) > UNWRITTEN_BYTES)
                ):
                    job, finished, _ = writes.popleft()
                    yield job, _outcome(finished)
            while writes:
                job, finished, _ = writes.popleft()
                yield job, _outcome(finished)
        finally:
            reader.shutdown(wait=True, cancel_futures=True)
            writer.shutdown(wait=True, cancel_futures=True)


def run_batch(
    plan: Plan,
    engine: Engine,
    options: Options,
    *,
    manifest: Manifest | None = None,
    options_sha256: str = "",
    skip_existing: bool = False,
    progress: Progress | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Upscale the pictures of a plan; what happened to each, in their order. Close it where it is not run to its end.

    Args:
        plan: what to do; ``refused`` is left to the caller.
        engine: an open engine.
        options: what was asked for.
        manifest: what was done before, which is not done again where input, options and result are the same. Without
            one, tiles may be smaller where little memory is free.
        options_sha256: of ``runtime.steps.options_hash``, for the manifest.
        skip_existing: leave pictures alone whose result is there, whoever made it.
        progress: told after each tile.

    Yields:
        As ``runtime.steps.store``; or "input", "output" and "skipped" with the reason; or "input" and "error".
    """
    before = dict(manifest.entries) if manifest else {}
    if isinstance(engine, ShapedEngine):
        engine.expect(expected_shape(plan, options, engine.info.minimum_size))

    def read(job: Job) -> tuple[Loaded | None, str, str]:
        if skip_existing and job.target.exists():
            return None, "", "the result is there"
        if manifest is None:
            return load(job.source, options, engine.info.scale), "", ""
        content = _content(job.source, options.budget_bytes)
        sha256 = hashlib.sha256(content).hexdigest()
        entry = before.get(job.result)
        if (
            entry is not None
            and (entry.status, entry.input_sha256, entry.options_sha256) == ("done", sha256, options_sha256)
            and file_sha256(job.target) == entry.output_sha256
        ):
            return None, sha256, "done before"
        try:
            return load(job.source, options, engine.info.scale, content), sha256, ""
        except UserError as error:
            raise _PictureError(str(error), sha256) from error

    def infer(value: tuple[Loaded | None, str, str]) -> tuple[Computed | None, str, str]:
        loaded, sha256, reason = value
        if loaded is None:
            return None, sha256, reason
        try:
            return compute(engine, loaded, options, progress, repeatable=manifest is not None), sha256, ""
        except UserError as error:
            raise _PictureError(str(error), sha256) from error

    def write(job: Job, value: tuple[Computed | None, str, str]) -> dict[str, Any]:
        computed, sha256, reason = value
        if computed is None:
            return {"input": str(job.source), "output": str(job.target), "skipped": reason}
        if manifest is not None:
            make_parent(job, plan.root)
        result = store(job.source, job.target, computed, options)
        if manifest is not None:
            manifest.add(Entry(job.name, job.result, sha256, options_sha256, "done", file_sha256(job.target)))
        return result

    def size_bytes(value: tuple[Computed | None, str, str]) -> int:
        return value[0].size_bytes if value[0] else 0

    with closing(overlapped(plan.jobs, read, infer, write, size_bytes)) as outcomes:
        for job, result in outcomes:
            if not isinstance(result, Exception):
                yield result
                continue
            sentence = _sentence(job, result)
            if manifest is not None:
                sha256 = result.sha256 if isinstance(result, _PictureError) else ""
                manifest.add(Entry(job.name, job.result, sha256, options_sha256, "failed", error=sentence))
            yield {"input": str(job.source), "error": sentence}


def expected_shape(plan: Plan, options: Options, minimum: int) -> tuple[int, ...] | None:
    """The shape of batches, (1, 3, H, W), that these pictures will most often be; None where none comes twice.

    It is a fact of the folder and the options, and not of what has been done: an engine that prepares for it gives the
    same bytes after an interruption.
    """
    shapes: Counter[tuple[int, ...]] = Counter()
    for job in plan.jobs:
        try:
            with job.source.open("rb") as stream:
                start = stream.read(_HEADER_BYTES)  # a TIFF's header may be anywhere, a JPEG's behind a long profile
                header = read_header(start) or read_header(start + stream.read(options.budget_bytes))
        except OSError:  # said when the picture's turn comes
            continue
        if header is None:
            continue
        tile = options.tile if options.tile is not None else default_tile(header.height, header.width)
        height, width = ((min(n, tile) if tile else n) for n in (header.height, header.width))
        count = 1 if not tile else -(-header.width // tile) * -(-header.height // tile)
        shapes[(1, 3, max(height, minimum), max(width, minimum))] += count
    ((shape, count),) = shapes.most_common(1) or [((), 0)]
    return shape if count > 1 else None


class _PictureError(Exception):
    """A picture that failed after its content was read and summed."""

    def __init__(self, sentence: str, sha256: str) -> None:
        super().__init__(sentence)
        self.sha256 = sha256


def _outcome(future: Future[Any]) -> Any:
    try:
        return future.result()
    except Exception as error:
        return error


def _sentence(job: Job, error: Exception) -> str:
    if isinstance(error, UserError | _PictureError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"{job.source} does not fit into memory."
    return f"{job.source} failed in an unforeseen way: {type(error).__name__}: {error}"


def _content(path: Path, budget_bytes: int) -> bytes:
    try:
        if path.stat().st_size > budget_bytes:
            raise UserError(f"{path} is larger than the budget of {budget_bytes} bytes (--budget).")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from error


def file_sha256(path: Path) -> str:
    """The sum of a file; "" where it is not there, or is a link."""
    if path.is_symlink() or not path.is_file():
        return ""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
