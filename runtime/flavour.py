"""The two flavours of TensorRT behind one door: ``tensorrt`` (data centre, Jetson) and ``tensorrt_rtx`` (RTX cards).

Both have one Python interface, and both say why something failed nowhere but in their log: their functions return None
or False. They keep the first logger that they are given for the life of the process, so there is one logger here.
"""

from __future__ import annotations

import importlib
import re
import threading
from dataclasses import dataclass
from typing import Any, Literal

from runtime.errors import UserError

FlavourName = Literal["tensorrt", "rtx"]
FlavourOption = Literal["auto", "tensorrt", "rtx"]

MODULES: dict[FlavourName, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
"""Module of each flavour, in the order in which ``auto`` tries them."""
INSTALL: dict[FlavourName, str] = {"tensorrt": "pip install 'gmin-edge[tensorrt]'",
                                   "rtx": "pip install 'gmin-edge[tensorrt-rtx]'"}  # fmt: skip
OLDEST = (10, 3)
"""Of ``tensorrt``: what JetPack 6 has. Every ``tensorrt_rtx`` is newer than that."""
ERROR, VERBOSE = 1, 4  # severities, equal in both flavours: 0 internal error, 1 error, 2 warning, 3 info, 4 verbose
_NO_DRIVER = re.compile(r"CUDA driver version is insufficient|no CUDA-capable device|CUDA initialization failure")


@dataclass(frozen=True)
class Flavour:
    """An imported TensorRT with its logger."""

    name: FlavourName
    version: str
    module: Any
    log: Any
    """An ``ILogger`` that is also a ``Log``."""

    def __str__(self) -> str:
        return f"TensorRT{'-RTX' if self.name == 'rtx' else ''} {self.version}"


class Log:
    """What the library said since the last ``clear``; safe to write to from any thread, as its builders do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[tuple[int, str]] = []
        self.kept = ERROR
        """Messages up to this severity are kept."""

    def add(self, severity: int, message: str) -> None:
        """Take a message."""
        if severity <= self.kept:
            with self._lock:
                self._entries.append((severity, message))

    def clear(self, kept: int = ERROR) -> None:
        """Forget all messages and keep those up to severity ``kept`` from now on."""
        with self._lock:
            self._entries.clear()
            self.kept = kept

    def messages(self, severity: int = VERBOSE) -> list[str]:
        """Messages of at most this severity, oldest first."""
        with self._lock:
            return [message for level, message in self._entries if level <= severity]

    def reason(self) -> str:
        """Why the last call failed, in one line: the first error, but one about a missing driver only if it is alone.

        Without a driver each error is followed by one about CUDA, which says nothing about the model.
        """
        errors = [one_line(message) for message in self.messages(ERROR)]
        telling = [error for error in errors if not _NO_DRIVER.search(error)]
        return (telling or errors or ["the library gave no reason"])[0]


_loaded: dict[FlavourName, Flavour] = {}


def load_flavour(wanted: FlavourOption = "auto") -> Flavour:
    """Import a flavour; ``auto`` takes ``tensorrt`` where it can be imported, else ``tensorrt_rtx``.

    Raises:
        UserError: none can be imported, or it is older than we support; the message has the reason of each.
    """
    names: list[FlavourName] = list(MODULES) if wanted == "auto" else [wanted]
    refusals = []
    for name in names:
        try:
            return _load(name)
        except UserError as refusal:
            refusals.append(str(refusal).rstrip("."))
    if wanted == "auto" and all("is not installed" in refusal for refusal in refusals):
        raise UserError(
            "TensorRT is not installed: on RTX cards "
            f"{INSTALL['rtx']}, elsewhere {INSTALL['tensorrt']}; JetPack brings it along."
        )
    raise UserError("; ".join(refusals) + ".")


def _load(name: FlavourName) -> Flavour:
    if name in _loaded:
        return _loaded[name]
    module_name = MODULES[name]
    try:
        module: Any = importlib.import_module(module_name)
        version = str(module.__version__)
    except ModuleNotFoundError as error:
        if error.name == module_name:
            raise UserError(f"{module_name} is not installed: {INSTALL[name]}.") from error
        raise UserError(
            f"{module_name} is installed without its module {error.name}: {INSTALL[name]} --force-reinstall."
        ) from error
    except (ImportError, OSError, FileNotFoundError) as error:  # its shared libraries, loaded at import
        raise UserError(
            f"{module_name} is installed, but its libraries do not load ({one_line(str(error))}): "
            f"{INSTALL[name]} --force-reinstall."
        ) from error
    except AttributeError as error:  # an empty folder of that name imports as a package without content
        raise UserError(
            f"{module_name} is installed without its bindings: {INSTALL[name]} --force-reinstall."
        ) from error
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if name == "tensorrt" and numbers < OLDEST:
        raise UserError(f"TensorRT {version} is too old: 10.3, which JetPack 6 has, is the oldest that is supported.")
    _loaded[name] = Flavour(name, version, module, _logger(module))
    return _loaded[name]


def _logger(module: Any) -> Any:
    """An object that the library takes as its logger and that collects into a ``Log``."""

    class CollectingLogger(module.ILogger, Log):  # type: ignore[misc]  # the base is known only at run time
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            Log.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            self.add(int(severity), msg)

    return CollectingLogger()


def one_line(text: str) -> str:
    """What a library's message says, without its source files and error codes, ready to stand in a sentence of ours."""
    line = next((line.strip() for line in text.strip().splitlines() if line.strip()), "no reason given")
    line = re.sub(r"[.\s]*\bIn \w+ at /?\S+:\d+\)?", "", line)
    coded = re.match(r"(?:\S+ )?Error Code \d+: [\w ]+ \((.*)$", line)
    return (coded[1] if coded else line).strip(" .")
