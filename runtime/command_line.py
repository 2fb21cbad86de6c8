"""How every script ends: the user's mistakes as one sentence and exit code 2."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from runtime.errors import UserError

if TYPE_CHECKING:
    import typer


def run(app: typer.Typer) -> None:
    """Run a script's command line and exit."""
    try:
        app()
    except UserError as error:
        print(error, file=sys.stderr)  # noqa: T201 -- this is where messages to the user go
        sys.exit(2)
