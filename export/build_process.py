"""A process of its own in which TensorRT-RTX builds, with fixed addresses: the same input gives the same plan.

For a range of sizes the builder numbers the sizes that it derives from height and width in an order that follows from
where its objects lie in memory (docs/decisions/0005-same-plan.md). So they lie in the same places each time: Linux is
asked not to randomise addresses, Python hashes text by a fixed seed, the build has a thread, and with it a part of the
heap, that nothing else has used, and nothing that depends on the clock reaches that heap: the model comes by a file,
whose length is known before it is read, and the C library keeps no caches of threads and moves no thresholds. A plan
counts that came twice all the same. A builder that crashes takes no more than this process with it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.flavour import Flavour
    from runtime.plans import Layer, Profile

MOST_BUILDS = 4
"""Of one plan; with one build in hundreds unlike the others, a third is seldom needed."""
_HEAP = {"glibc.malloc.tcache_count": "0", "glibc.malloc.mmap_threshold": "131072"}
"""Settings of the GNU C library: what another thread frees returns to the heap at once, and what is large has pages of
its own. Left alone, the library learns from what was freed before what is large."""
_NO_RANDOMISATION, _QUERY = 0x0040000, 0xFFFFFFFF  # ADDR_NO_RANDOMIZE of <sys/personality.h>; ask without setting


def build_apart(
    content: bytes,
    library: Flavour,
    profile: Profile,
    *,
    targets: tuple[str, ...] = (),
    workspace_mib: int | None = None,
) -> tuple[bytes, list[Layer], bool]:
    """As ``build_plan``, in processes of their own; for a range of sizes until the same plan comes a second time.

    Returns:
        the plan, its layers, and whether it is for one size or came twice with fixed addresses, so that another build
        almost always gives the same bytes. Linux may refuse to fix addresses, as in a container with a seccomp filter,
        and other systems cannot.

    Raises:
        UserError: with the reason that the library logged, or with the signal that ended it.
    """
    first = _build(content, library, profile, targets=targets, workspace_mib=workspace_mib)
    plan, layers, fixed = first
    if profile.fixed or not fixed:
        return plan, layers, profile.fixed
    seen = [plan]
    while len(seen) < MOST_BUILDS:
        plan, layers, _ = _build(content, library, profile, targets=targets, workspace_mib=workspace_mib)
        if plan in seen:
            return plan, layers, True
        seen.append(plan)
    return first[0], first[1], False


def _build(
    content: bytes, library: Flavour, profile: Profile, *, targets: tuple[str, ...], workspace_mib: int | None
) -> tuple[bytes, list[Layer], bool]:
    """One build in a new process: the plan, its layers, and whether the addresses were fixed."""
    import json
    import os
    import signal
    import subprocess
    import tempfile
    from dataclasses import asdict

    from runtime.errors import UserError
    from runtime.plans import Layer

    order = {
        "flavour": library.name,
        "profile": asdict(profile),
        "targets": targets,
        "workspace_mib": workspace_mib,
    }
    heap = ":".join(f"{name}={value}" for name, value in _HEAP.items())
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        model.write_bytes(content)
        before = personality()
        if before is not None:
            personality(before | _NO_RANDOMISATION)  # of this thread alone, and of what it starts
        try:
            process = subprocess.Popen(  # noqa: S603 - our own script
                [sys.executable, str(Path(__file__).resolve()), str(model)],
                env={**os.environ, "PYTHONHASHSEED": "0", "GLIBC_TUNABLES": heap},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        finally:
            if before is not None:
                personality(before)
        try:
            reply, said = process.communicate(json.dumps(order).encode())
        except BaseException:  # interrupted: the builder shall not go on alone
            process.kill()
            process.wait()
            raise
    if process.returncode < 0:
        raise UserError(
            f"{library} crashed while it built the engine ({signal.Signals(-process.returncode).name}): try a smaller "
            "--shapes maximum, or another version of it."
        )
    if process.returncode:
        raise RuntimeError(f"the process that builds failed: {said.decode(errors='replace').strip()}")
    line, _, plan = reply.partition(b"\n")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise UserError(answer["error"])
    return plan, [Layer(**layer) for layer in answer["layers"]], answer["fixed_addresses"]


def personality(wanted: int = _QUERY) -> int | None:
    """What Linux does differently for this thread, before it is set to ``wanted``; None where that cannot be had."""
    if sys.platform != "linux":
        return None
    import ctypes

    found: int = ctypes.CDLL(None).personality(ctypes.c_ulong(wanted))
    return None if found < 0 else found


def _answer(model: Path) -> None:
    """Build what stdin says from a file; the answer on stdout is a line of JSON, then the plan."""
    import json
    import os
    from dataclasses import asdict

    from export.builder import build_plan
    from runtime.errors import UserError
    from runtime.flavour import load_flavour
    from runtime.plans import Profile

    plan = b""
    with os.fdopen(os.dup(1), "wb") as output:
        os.dup2(2, 1)  # whatever the library prints is no part of the answer
        order = json.loads(sys.stdin.buffer.read())
        content = model.read_bytes()
        profile = Profile(**{name: (height, width) for name, (height, width) in order["profile"].items()})
        answer: dict[str, Any]
        try:
            plan, layers = _in_own_thread(
                lambda: build_plan(
                    content,
                    load_flavour(order["flavour"]),
                    profile,
                    targets=tuple(order["targets"]),
                    workspace_mib=order["workspace_mib"],
                )
            )
            fixed = bool((personality() or 0) & _NO_RANDOMISATION)
            answer = {"layers": [asdict(layer) for layer in layers], "fixed_addresses": fixed}
        except UserError as error:
            answer = {"error": str(error)}
        output.write(json.dumps(answer).encode() + b"\n" + plan)


def _in_own_thread(work: Callable[[], tuple[bytes, list[Layer]]]) -> tuple[bytes, list[Layer]]:
    """What ``work`` gives, run where the C library keeps a heap that is as good as new.

    A bare thread, and one lock that it releases at its end: what ``threading`` makes in one thread and frees in another
    would come back to the builder in an order that depends on the clock.
    """
    import _thread

    results: list[tuple[bytes, list[Layer]]] = []
    failures: list[BaseException] = []
    done = _thread.allocate_lock()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again where it can be caught
            failures.append(error)
        finally:
            done.release()

    done.acquire()
    _thread.start_new_thread(run, ())
    done.acquire()
    if failures:
        raise failures[0]
    return results[0]


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
