"""The command ``scdl`` and its subcommands."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated

import typer

from scdl.cli.output import CONTEXT
from storage_backends import __version__

#: Module of each command.
COMMANDS = {
    "append": "appending",
    "bench": "bench",
    "cast": "copies",
    "convert": "conversion",
    "export": "inspection",
    "flatten": "flattening",
    "head": "inspection",
    "info": "inspection",
    "manifest": "manifests",
    "report": "inspection",
    "split": "copies",
    "subset": "copies",
    "verify": "inspection",
}

# \b keeps the lines of a paragraph.
_EXIT_CODES = """\b
Exit codes:
  0    success; of verify: everything is sound
  1    failure, which is told on one line; of verify: something is damaged
  2    wrong usage; of verify also: it is unknown whether everything is sound
  3    of convert --skip-failed or --dry-run: some files could not be converted
  130  interrupted
"""


def app_for(arguments: Sequence[str] = ()) -> typer.Typer:
    """The command for some arguments: with only the subcommand that they name, else with all.

    To build the options of all takes longer than most commands, and their list needs none.
    """
    app = typer.Typer(
        name="scdl",
        help="Convert single-cell data to archives for fast training, and inspect them.",
        no_args_is_help=True,
        epilog=_EXIT_CODES,
        context_settings=CONTEXT,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_root)
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    only_listed = named is None and "_SCDL_COMPLETE" not in os.environ
    for name in [named] if named in COMMANDS else COMMANDS:
        command = getattr(import_module(f"scdl.cli.{COMMANDS[name]}"), name)
        app.command(name)(_without_options(command) if only_listed else command)
    return app


def _without_options(command: Callable[..., None]) -> Callable[[], None]:
    """A command with the same description."""

    def listed() -> None: ...

    listed.__doc__ = command.__doc__
    return listed


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"scdl {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None: ...
