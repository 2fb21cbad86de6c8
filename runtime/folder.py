"""Which picture of a folder goes where: the tree is mirrored, no source is overwritten, nothing leaves the folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from runtime.errors import UserError
from runtime.images import READABLE_ENDINGS, same_ending
from runtime.manifest import NAME

_TEMPORARY = re.compile(r"\.(?P<stem>.+)\.[a-z0-9_]{8}\.part(?P<ending>\.[^.]+)")
"""What ``runtime.files.replacing`` calls its files."""


@dataclass(frozen=True)
class Job:
    """One picture to upscale. ``name`` and ``result`` are relative with forward slashes, for people and manifests."""

    source: Path
    target: Path
    name: str
    result: str


@dataclass(frozen=True)
class Plan:
    """What a folder run will do. ``refused`` are pictures that cannot be done, with the reason."""

    root: Path
    jobs: tuple[Job, ...]
    refused: tuple[tuple[Path, str], ...] = ()
    ignored: int = 0
    """Files that are no pictures by their ending, and hidden ones."""
    sources: frozenset[Path] = field(default_factory=frozenset)


def plan_folders(inputs: list[Path], root: Path, *, label: str, ending: str | None) -> Plan:
    """Plan a run over folders and pictures.

    Args:
        inputs: folders, searched to the bottom, and pictures. The content of a single folder goes right into ``root``;
            of several, each folder keeps its own name there.
        root: folder of the results.
        label: what is put behind each name, "x4".
        ending: ending of the results with its dot, or None for that of each source.

    Symlinks to folders are not followed; hidden files are left out. Two pictures that differ in their ending only
    (``a.jpg``, ``a.png``) keep it in the name: ``a_jpg_x4.png``, ``a_png_x4.png``.

    Raises:
        UserError: ``root`` is one of the folders, or is no folder.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is no folder; the results of a folder need one.")
    resolved = root.resolve()
    found: list[tuple[Path, PurePosixPath]] = []
    refused: list[tuple[Path, str]] = []
    ignored = 0
    for item in inputs:
        if not item.is_dir():
            found.append((item, PurePosixPath(item.name)))
            continue
        if item.resolve() == resolved:
            raise UserError(f"The results would lie among the pictures of {item}; name another folder with -o.")
        prefix = PurePosixPath(item.resolve().name) if len(inputs) > 1 else PurePosixPath()
        pictures, others, unread = _search(item, resolved)
        refused += [(path, f"{path} cannot be read: {reason}.") for path, reason in unread]
        found += [(item / path, prefix / path.as_posix()) for path in pictures]
        ignored += others
    sources = frozenset(source.resolve() for source, _ in found)
    stems = Counter(str(name.with_suffix("")).casefold() for _, name in found)
    jobs, taken = [], set[str]()
    for source, name in found:
        suffix = ending or same_ending(source)
        stem = name.stem if stems[str(name.with_suffix("")).casefold()] == 1 else name.name.replace(".", "_")
        result = (name.parent / f"{stem}_{label}{suffix}").as_posix()
        target = root / result
        try:
            if result.casefold() in taken:
                raise UserError(f"{source} and another picture would both be written to {target}; rename one.")
            if target.resolve() in sources:
                raise UserError(f"{target} is one of the pictures to upscale and would be overwritten.")
            refuse_links(root, result)
        except UserError as error:
            refused.append((source, str(error)))
            continue
        taken.add(result.casefold())
        jobs.append(Job(source, target, name.as_posix(), result))
    return Plan(root, tuple(jobs), tuple(refused), ignored, sources)


def refuse_links(root: Path, relative: str) -> None:
    """Refuse a result that would leave ``root``; the root itself may be a link, since the user named it.

    Raises:
        UserError: ``..``, an absolute path, or a symlink below the root.
    """
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{relative} leads out of the folder of the results.")
    step = root
    for part in path.parts:
        step = step / part
        if step.is_symlink():
            raise UserError(f"{step} is a symlink; results are not written through symlinks: remove it.")


def make_parent(job: Job, root: Path) -> None:
    """Make the folder of a result, and check again that no link leads out of the root.

    Raises:
        UserError: a link, or the folder cannot be made.
    """
    refuse_links(root, job.result)
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"Cannot make the folder {job.target.parent}: {reason}.") from error


def sweep(plan: Plan) -> int:
    """Remove what a killed run left half-written; the number of files. Only names that our writer would have made.

    Call it while the manifest is held, so that no other run is writing there.
    """
    ours: dict[Path, set[tuple[str, str]]] = {plan.root: {(Path(NAME).stem, Path(NAME).suffix)}}
    for job in plan.jobs:
        ours.setdefault(job.target.parent, set()).add((job.target.stem, job.target.suffix))
    removed = 0
    for folder, names in ours.items():
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            match = _TEMPORARY.fullmatch(path.name)
            if match and (match["stem"], match["ending"]) in names and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)
                removed += 1
    return removed


def _search(folder: Path, without: Path) -> tuple[list[Path], int, list[tuple[Path, str]]]:
    """Pictures below ``folder``, relative and sorted; how many other files; and what cannot be read, with reasons."""
    pictures, others = [], 0
    unread: list[tuple[Path, str]] = []

    def note(error: OSError) -> None:
        unread.append((Path(error.filename), (error.strerror or str(error)).lower()))

    for where, folders, files in os.walk(folder, onerror=note):
        here = Path(where)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and (here / f).resolve() != without)
        for file in sorted(files):
            if file.startswith(".") or Path(file).suffix.lower() not in READABLE_ENDINGS:
                others += 1
            elif not (here / file).is_file():  # a link to a device gives bytes for ever, a pipe none
                unread.append((here / file, "it is no file"))
            else:
                pictures.append((here / file).relative_to(folder))
    return sorted(pictures), others, unread
