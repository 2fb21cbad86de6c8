"""Fuzzers for what reads files of strangers. Nothing but the documented refusals may come out, and soon.

python tests/fuzz/fuzz.py onnx --runs 100000            # the nightly dose, by plain mutation
python tests/fuzz/fuzz.py onnx --runs 100000 --guided   # led by coverage, where atheris is installed

Seeds are the files under ``corpus/TARGET``; a file that crashed becomes one. What fails is left as ``fuzz-TARGET.bin``.
"""

from __future__ import annotations

import argparse
import atexit
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])
os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")

CORPUS = Path(__file__).with_name("corpus")
SLOW_SECONDS = 2.0
MAX_LENGTH = 8192
INTERESTING = [0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 63, 64, 100, 126, 127, 128, 129, 254, 255]
Target = Callable[[bytes], None]


def onnx() -> Target:
    """The reader of models, the check, and the cut at the global means."""
    from runtime.errors import UserError
    from runtime.global_means import take_apart
    from runtime.model_check import check_content

    def run(content: bytes) -> None:
        try:
            take_apart(check_content(content, "model"))
        except UserError:
            return

    return run


def onnx_load() -> Target:
    """ONNX Runtime, opened as the program does, on what the check lets through."""
    from runtime.engines.ort import OrtEngine
    from runtime.errors import UserError

    path = scratch_folder() / "model.onnx"

    def run(content: bytes) -> None:
        path.write_bytes(content)
        try:
            OrtEngine(path, threads=1).close()
        except UserError:
            return

    return run


def ir() -> Target:
    """The reader of OpenVINO IR and the check, weights beside it being zeros."""
    from runtime.errors import UserError
    from runtime.ir_check import check_ir_content

    def run(content: bytes) -> None:
        try:
            checked = check_ir_content(content, bytes(4096), "model")
        except UserError:
            return
        assert check_ir_content(checked.xml, checked.weights, "model").xml == checked.xml

    return run


def ir_load() -> Target:
    """OpenVINO, as the program opens it, on what the check lets through."""
    from runtime.engines.openvino import OpenVinoEngine
    from runtime.errors import UserError

    path = scratch_folder() / "model.xml"
    path.with_suffix(".bin").write_bytes(bytes(4096))

    def run(content: bytes) -> None:
        path.write_bytes(content)
        try:
            OpenVinoEngine(path, threads=1).close()
        except UserError:
            return

    return run


def exif() -> Target:
    """The tags of EXIF and TIFF that are read and changed."""
    from runtime.tiff_tags import ORIENTATION, exif_of, read_directory, set_upright

    def run(content: bytes) -> None:
        directory = read_directory(content)
        if directory is not None:
            directory.number(ORIENTATION)
            read_directory(exif_of(directory))
        assert len(set_upright(content)) == len(content)

    return run


def header() -> Target:
    """What is read of a picture before it is decoded."""
    from runtime.errors import UserError
    from runtime.headers import check_budget, read_header
    from runtime.picture_check import png_fault

    def run(content: bytes) -> None:
        found = read_header(content)
        png_fault(content)
        if found is not None:
            try:
                check_budget(found, "picture", scale=4, budget_bytes=1 << 30)
            except UserError:
                return

    return run


def manifest() -> Target:
    """The manifest of a folder run."""
    from runtime.errors import UserError
    from runtime.manifest import read_manifest

    path = scratch_folder() / "manifest.jsonl"

    def run(content: bytes) -> None:
        path.write_bytes(content)
        try:
            entries = read_manifest(path)
        except UserError:
            return
        for name, entry in entries.items():
            assert name == entry.output
            assert ".." not in name.split("/")

    return run


def picture() -> Target:
    """Whole pictures, decoder and all."""
    from runtime.errors import UserError
    from runtime.images import read_picture

    path = scratch_folder() / "picture"

    def run(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read_picture(path)
        except UserError:
            return

    return run


TARGETS: dict[str, Callable[[], Target]] = {
    "onnx": onnx, "onnx_load": onnx_load, "ir": ir, "ir_load": ir_load, "exif": exif, "header": header,
    "picture": picture, "manifest": manifest,
}  # fmt: skip
"""By name. Another kind of file is one function here and one folder of seeds."""
_SEEDS = {"onnx_load": "onnx", "ir_load": "ir", "header": "picture"}


def scratch_folder() -> Path:
    """A folder in memory, where the system has one, that goes when the process ends."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="gmin-fuzz-", dir=memory if memory.is_dir() else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def seeds(target: str) -> list[bytes]:
    """The corpus of a target, in order."""
    folder = CORPUS / _SEEDS.get(target, target)
    return [path.read_bytes() for path in sorted(folder.iterdir())] or [b""]


def mutate(content: bytes, others: list[bytes], source: random.Random) -> bytes:
    """One to eight changes: bits, bytes, numbers, pieces cut, doubled, moved or taken from another seed."""
    data = bytearray(content)
    for _ in range(source.choice((1, 1, 1, 2, 3, 5, 8))):
        at = source.randrange(len(data) + 1)
        length = min(source.choice((1, 1, 2, 4, 8, 32, 200)), len(data) - at)
        kind = source.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << source.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = source.choice(INTERESTING)
        elif kind == 2:
            size = source.choice((2, 4, 8))
            value = source.choice((0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)) % 256**size
            data[at : at + size] = value.to_bytes(size, source.choice(("little", "big")))
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length] * source.choice((1, 2, 50))
        elif kind == 5:
            data[at:at] = source.randbytes(length)
        elif kind == 6:
            other = source.choice(others)
            start = source.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + length]
        else:
            del data[at:]
    return bytes(data[:MAX_LENGTH])


def fuzz(target: str, runs: int, seed: int = 0, *, last: Path | None = None) -> float:
    """Run a target on ``runs`` mutated seeds and return the seconds.

    A native crash cannot be caught: the input of the moment is in ``last`` then.

    Raises:
        AssertionError: an input took too long. Any other exception is the target's own.
    """
    run, corpus, source = TARGETS[target](), seeds(target), random.Random(seed)
    pool = list(corpus)
    for content in corpus:
        run(content)
    started = time.perf_counter()
    for i in range(runs):
        content = mutate(source.choice(pool), corpus, source)
        if i % 50 == 0:  # mutations of mutations, now and then
            pool[len(corpus) :] = [*pool[len(corpus) :][-50:], content]
        if last is not None:
            last.write_bytes(content)
        before = time.process_time()
        try:
            run(content)
        except BaseException:
            Path(f"fuzz-{target}.bin").write_bytes(content)
            raise
        if time.process_time() - before > SLOW_SECONDS:
            Path(f"fuzz-{target}.bin").write_bytes(content)
            raise AssertionError(f"{target}: an input of {len(content)} bytes took too long")
    return time.perf_counter() - started


def guided(target: str, runs: int) -> None:
    """The same, led by coverage. Ends the process; libFuzzer's own limits on time and memory hold."""
    import atheris

    with atheris.instrument_imports(include=["runtime"]):
        run = TARGETS[target]()
    folder = CORPUS / _SEEDS.get(target, target)
    with tempfile.TemporaryDirectory() as grown:
        options = [f"-runs={runs}", "-timeout=2", "-rss_limit_mb=1024", f"-max_len={MAX_LENGTH}", "-verbosity=1"]
        atheris.Setup([sys.argv[0], *options, grown, str(folder)], run)
        atheris.Fuzz()


def main() -> None:
    """Fuzz a target, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true", help="Let atheris choose the inputs by coverage.")
    options = parser.parse_args()
    if options.guided:
        guided(options.target, options.runs)
    for target in TARGETS if options.target == "all" else [options.target]:
        with tempfile.TemporaryDirectory() as folder:
            seconds = fuzz(target, options.runs, options.seed, last=Path(folder) / "last")
        print(f"{target}: {options.runs:,} executions without a crash, {options.runs / seconds:,.0f} a second")


if __name__ == "__main__":
    main()
