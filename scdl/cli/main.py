"""Entry points of the commands; errors are printed on one line, with an exit code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import typer

from scdl.cli import documented
from scdl.cli.app import app
from scdl.errors import ScdlError, ScdlWarning


def _run(command: Callable[[], Any], name: str) -> None:
    """Run a command and print errors on one line."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        kind = "warning" if issubclass(category, ScdlWarning) else category.__name__
        typer.echo(f"{name}: {kind}: {message}", err=True)

    warnings.showwarning = show
    try:
        command()
    except (ScdlError, ValueError, OSError) as error:
        typer.echo(f"{name}: error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo(f"{name}: interrupted", err=True)
        sys.exit(130)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``scdl``."""
    _run(lambda: app(args=arguments, prog_name="scdl"), "scdl")


def convert_h5ad_to_scdl(arguments: Sequence[str] | None = None) -> None:
    """Run ``convert_h5ad_to_scdl``, as BioNeMo-SCDL documents it."""
    name = "convert_h5ad_to_scdl"
    _run(lambda: documented.command(args=arguments, prog_name=name), name)
