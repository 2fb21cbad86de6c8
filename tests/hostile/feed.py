"""Feed files of the hostile set to the program in one process, and say what happened to each.

python -m tests.hostile.feed KIND FILE...    prints a JSON line for each file
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from runtime.errors import UserError


def picture(path: Path) -> None:
    """Read a picture, as every command does."""
    from runtime.images import read_picture

    read_picture(path)


def streamed(path: Path) -> None:
    """Read a picture by strips, as ``--stream`` does: all of it."""
    from runtime.streaming import _Opened

    opened = _Opened(path)
    read = opened.reader()
    for top in range(0, opened.height, 64):
        read(top, min(top + 64, opened.height))


def model(path: Path) -> None:
    """Open a model on both engines and upscale a small picture."""
    import numpy as np

    from runtime.engines.opening import open_engine
    from runtime.images import Picture
    from runtime.upscale import upscale

    refusals = []
    for backend in ("ort", "openvino"):
        try:
            upscale(open_engine(f"{backend}:{path}", threads=1), Picture(np.zeros((20, 20, 3), np.uint8)))
        except UserError as refusal:
            refusals.append(refusal)
    if len(refusals) == 2:
        raise refusals[0]


def checkpoint(path: Path) -> None:
    """Load a checkpoint into GMIN."""
    from model.checkpoint import load_checkpoint
    from model.registry import create

    load_checkpoint(create("gmin_x4"), path)


def manifest(path: Path) -> None:
    """Read what a folder run left behind."""
    from runtime.manifest import read_manifest

    read_manifest(path)


def peak_megabytes() -> float:
    """The most memory that this process had. On Linux not by getrusage, whose peak starts with that of the parent."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1.024e-3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


FEED = {"picture": picture, "streamed": streamed, "model": model, "checkpoint": checkpoint, "manifest": manifest}

LIBRARIES = {
    "picture": ["cv2"],
    "streamed": ["pyvips", "tifffile"],
    "model": ["cv2", "onnxruntime", "openvino"],
    "checkpoint": ["torch", "safetensors.torch", "model.gmin"],
    "manifest": [],
}

if __name__ == "__main__":
    import importlib
    import logging
    import warnings

    logging.disable(logging.CRITICAL)  # pyvips repeats libvips' warnings
    warnings.simplefilter("ignore")  # torch's, about old pickles
    for library in LIBRARIES[sys.argv[1]]:  # their import is no part of the time for a file
        importlib.import_module(library)
    for name in sys.argv[2:]:
        started = time.perf_counter()
        cpu = time.process_time()
        try:
            FEED[sys.argv[1]](Path(name))
            outcome, reason = "taken", ""
        except UserError as refusal:
            outcome, reason = "refused", str(refusal)
        except Exception as error:
            outcome, reason = "crashed", f"{type(error).__name__}: {error}"
        report = {
            "name": name,
            "outcome": outcome,
            "reason": reason,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
            "peak_megabytes": peak_megabytes(),
        }
        print(json.dumps(report), flush=True)
