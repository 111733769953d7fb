"""Entry points of the commands; errors are printed on one line, with an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from scdl.cli import diagnostics
from scdl.errors import ScdlError


def _run(command: Callable[[], Any], name: str) -> None:
    """Run a command and print errors on one line."""
    diagnostics.begin(name)
    try:
        command()
    except (ScdlError, ValueError, OSError) as error:
        diagnostics.tell("error", str(error))
        diagnostics.tell_where()
        sys.exit(1)
    finally:
        diagnostics.end()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``scdl``."""
    from scdl.cli.app import app_for

    given = sys.argv[1:] if arguments is None else arguments
    _run(lambda: app_for(given)(args=arguments, prog_name="scdl"), "scdl")


def convert_h5ad_to_scdl(arguments: Sequence[str] | None = None) -> None:
    """Run ``convert_h5ad_to_scdl``, as BioNeMo-SCDL documents it."""
    from scdl.cli import documented

    name = "convert_h5ad_to_scdl"
    _run(lambda: documented.command(args=arguments, prog_name=name), name)
