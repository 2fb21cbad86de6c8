"""The log of a run: JSON lines, and TensorBoard events where they are wanted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.files import atomic_write


class Log:
    """One JSON object a line; what was logged past the step that a run resumes from is dropped."""

    def __init__(self, folder: Path, *, step: int, tensorboard: bool) -> None:
        """Open the log of the run in ``folder``, which resumes from ``step``.

        Raises:
            UserError: TensorBoard is wanted but not installed.
        """
        self._path = folder / "log.jsonl"
        kept = [entry for entry in read_log(self._path) if entry["step"] <= step]
        with atomic_write(self._path) as stream:
            stream.write("".join(json.dumps(entry) + "\n" for entry in kept).encode())
        self._events: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError("TensorBoard is not installed: pip install 'gmin-edge[training]'.") from error
            self._events = SummaryWriter(str(folder / "events"), purge_step=step + 1)

    def write(self, entry: dict[str, Any]) -> None:
        """Append one record; it names its step."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        if self._events is not None:
            for name, value in entry.items():
                if name != "step":
                    self._events.add_scalar(name, value, entry["step"])

    def close(self) -> None:
        """Flush what TensorBoard holds back."""
        if self._events is not None:
            self._events.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; none where there is no file. A last line cut short by a crash is left out."""
    if not path.is_file():
        return []
    lines = path.read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def shown(bar: Any, tell: Callable[[str], None], steps: int) -> Callable[[dict[str, Any]], None]:
    """What moves a ``tqdm`` bar by the records of a run, and tells of scores; of every record where no bar is shown."""

    def report(entry: dict[str, Any]) -> None:
        bar.total = max(steps, entry["step"])
        bar.update(entry["step"] - bar.n)
        if bar.disable or "psnr_y_db" in entry:
            tell("  ".join(f"{name} {value:.6g}" for name, value in entry.items()))

    return report
