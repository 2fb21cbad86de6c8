"""What every script shares: one way to start, to fail and to print JSON."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.errors import UserError
from runtime.files import atomic_write

JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Write the result as JSON to FILE, or - for stdout.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def new_app(summary: str) -> typer.Typer:
    """A command line without completion installers and without decorated tracebacks."""
    return typer.Typer(help=summary, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def run(app: typer.Typer) -> None:
    """Run a script and exit: 0 done, 2 the user's mistake, 3 done in part, 130 interrupted, 1 our fault."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)


def say(text: str, *, quiet: bool = False, json_target: str | None = None) -> None:
    """Print for a person; to stderr where stdout carries JSON, nowhere with ``quiet``."""
    if not quiet:
        typer.echo(_encodable(text), err=json_target == "-")


def write_json(payload: Mapping[str, Any], target: str | None) -> None:
    """Write a result to a file, to stdout ("-"), or nowhere (None).

    JSON has no infinity, as the PSNR of two equal pictures is, and no NaN: both become null.
    """
    if target is None:
        return
    text = _encodable(json.dumps(_finite(payload), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if target == "-":
        typer.echo(text, nl=False)
        return
    with atomic_write(Path(target)) as stream:
        stream.write(text.encode())


def _encodable(text: str) -> str:
    """``text`` with what is no Unicode in it, as names of files may be, written as \\udcff, which JSON reads back."""
    return text.encode("utf-8", "backslashreplace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of one shape as an aligned plain-text table; numbers, formatted ones too, to the right."""
    if not rows:
        return ""
    heads = list(rows[0])
    cells = [[_cell(row.get(head)) for head in heads] for row in rows]
    widths = [max(len(head), *(len(line[i]) for line in cells)) for i, head in enumerate(heads)]
    numeric = [all(_is_number(row.get(head)) for row in rows) for head in heads]

    def line(values: list[str]) -> str:
        padded = [
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(heads), line(["-" * width for width in widths]), *map(line, cells)])


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"-?[\d,]+(\.\d+)?( [kMGT])?", value) is not None
    return value is None or isinstance(value, int | float)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
