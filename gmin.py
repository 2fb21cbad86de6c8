"""``gmin export | quantize | lint | upscale | accuracy | attribution``: every script as one command's sub-command."""

from __future__ import annotations

from benchmarks import accuracy, attribution
from export import to_onnx
from quantize import lint, ptq
from runtime import infer
from runtime.command_line import new_app, run

app = new_app("GMIN super-resolution from a checkpoint to INT8 on edge devices.")
app.command("export")(to_onnx.main)
app.command("quantize")(ptq.main)
app.command("lint")(lint.main)
app.command("upscale")(infer.main)
app.command("accuracy")(accuracy.main)
app.command("attribution")(attribution.main)


def main() -> None:
    """Entry point of the ``gmin`` command."""
    run(app)


if __name__ == "__main__":
    main()
