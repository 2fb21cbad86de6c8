"""Every script as a sub-command, ``gmin export``, ``gmin latency``: the same rooms through another door."""

from __future__ import annotations

from benchmarks import (
    accuracy,
    attribution,
    complexity,
    device,
    interruptions,
    latency,
    long_run,
    peak,
    quantizers,
    report,
    tiling,
)  # fmt: skip
from export import to_onnx, to_tensorrt
from quantize import lint, ptq, qat
from runtime import doctor, infer
from runtime.command_line import new_app, run
from training import restart, train

app = new_app("GMIN super-resolution from a checkpoint to INT8 on edge devices.")
app.command("train")(train.main)
app.command("restart")(restart.main)
app.command("export")(to_onnx.main)
app.command("build")(to_tensorrt.main)
app.command("quantize")(ptq.main)
app.command("qat")(qat.main)
app.command("lint")(lint.main)
app.command("upscale")(infer.main)
app.command("doctor")(doctor.main)
app.command("accuracy")(accuracy.main)
app.command("complexity")(complexity.main)
app.command("latency")(latency.main)
app.command("device")(device.main)
app.command("attribution")(attribution.main)
app.command("quantizers")(quantizers.main)
app.command("peak")(peak.main)
app.command("tiling")(tiling.main)
app.command("interruptions")(interruptions.main)
app.command("long-run")(long_run.main)
app.command("report")(report.main)


def main() -> None:
    """Entry point of the ``gmin`` command."""
    run(app)


if __name__ == "__main__":
    main()
