"""Options that commands share, and the output of their reports."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from scdl.cli.diagnostics import be_verbose

Archive = Annotated[str, typer.Argument(metavar="ARCHIVE", help="An archive.")]
NewArchive = Annotated[str, typer.Argument(metavar="DEST", help="Path of the new archive.")]
GeneColumn = Annotated[
    str | None, typer.Option(help="Column of var with the gene ids. [default: gene names]")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the archive that is at DEST, atomically.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no report.")]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", callback=be_verbose, help="Log each step, and tracebacks of errors."
    ),
]

#: Further names of options, which the help does not list, without dashes.
_ALIASES = {"replace": "overwrite"}
#: Settings of the parser of all commands.
CONTEXT = {"token_normalize_func": lambda name: _ALIASES.get(name, name)}


def show(report: Any, *, quiet: bool, as_json: bool) -> None:
    """Print a report: a dict or a :class:`scdl.reports.Report`, as JSON, or as its text."""
    if as_json:
        text = json.dumps(report, indent=2) if isinstance(report, dict) else report.to_json()
        typer.echo(text)
    elif not quiet:
        typer.echo(str(report))
