"""The command ``scdl`` and its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from scdl.cli import appending, bench, conversion, flattening, inspection, manifests
from storage_backends import __version__

app = typer.Typer(
    name="scdl",
    help="Convert single-cell data to archives for fast training, and inspect them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"scdl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None: ...


for _command in (
    appending.append,
    bench.bench,
    conversion.convert,
    flattening.flatten,
    inspection.export,
    inspection.info,
    manifests.manifest,
    inspection.verify,
):
    app.command()(_command)
