"""Damage archives in every way, count what is found, and print it as one table.

Run ``make torture``, or ``python -m benchmarks.torture --help`` for the options. A row is a
function of :class:`benchmarks.torture.setting.Setting`, listed in :data:`ROWS`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.options import parser, workspace
from benchmarks.outcomes import Outcome, machine
from benchmarks.torture import checksums, flips, leaks, lives
from benchmarks.torture.setting import Row, Setting

#: What can be asked for, in the order of the table.
ROWS: dict[str, Row] = {
    "flips": flips.verified,
    "chunk-flips": flips.read,
    "kills": lives.killed,
    "faults": lives.refused,
    "leak": leaks.leak,
    "checksum-cost": checksums.cost,
    "verify-speed": checksums.speed,
}
_HEADERS = ("what", "required", "measured", "verdict")


def main(arguments: Sequence[str] | None = None) -> list[Outcome]:
    """Fill the rows, print the table and write it."""
    described = parser("Damage archives, and count what is found.", ROWS, 0, "has no effect here")
    options = described.parse_args(arguments)
    console = Console()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="torture-", dir=_directory(options.data)) as place:
        repeats = 1 if options.quick else options.repeats
        setting = Setting(Path(place), workspace(options), options.quick, repeats)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in options.only or ROWS:
                console.print(f"{name} ...", highlight=False)
                outcomes += ROWS[name](setting)
    show(outcomes, console)
    for path in write(outcomes, options.results):
        console.print(f"wrote {path}", highlight=False)
    return outcomes


def _directory(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def cells_of(outcome: Outcome) -> list[str]:
    """An outcome as a row of the table."""
    what, required, measured, *_, verdict = outcome.cells()
    return [what, required, measured, verdict]


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print the table and the notes."""
    table = Table(*_HEADERS)
    for outcome in outcomes:
        *cells, verdict = map(Text, cells_of(outcome))
        verdict.stylize("green" if outcome.passed else "bold red")
        table.add_row(*cells, verdict)
    console.print(table)
    for line in notes(outcomes):
        console.print(f"- {line}", highlight=False, markup=False, soft_wrap=True)


def notes(outcomes: Sequence[Outcome]) -> list[str]:
    """What must be known to judge the figures."""
    said = [f"{outcome.what}: {outcome.note}." for outcome in outcomes if outcome.note]
    return [*said, "; ".join(f"{key}: {value}" for key, value in machine().items())]


def write(outcomes: Sequence[Outcome], directory: Path) -> list[Path]:
    """Write the table as Markdown, and as JSON with every sample."""
    stem = f"torture-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    files = [_directory(directory) / f"{stem}{suffix}" for suffix in (".md", ".json")]
    rows = [_HEADERS, ["---"] * len(_HEADERS), *map(cells_of, outcomes)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    files[0].write_text("\n".join([*lines, "", *(f"- {n}" for n in notes(outcomes))]) + "\n")
    record = {"machine": machine(), "outcomes": [outcome.record() for outcome in outcomes]}
    files[1].write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return files


if __name__ == "__main__":
    sys.exit(not all(outcome.passed for outcome in main()))
