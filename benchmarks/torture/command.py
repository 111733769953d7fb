"""Damage archives in every way, count what is found, and print it as one table.

Run ``make torture``, or ``python -m benchmarks.torture --help`` for the options. A row is a
function of :class:`benchmarks.torture.setting.Setting`, listed in :data:`ROWS`.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from rich.console import Console

from benchmarks.soak import command as soak
from benchmarks.common.options import parser, workspace
from benchmarks.common.report import IN_TURN, Report, run
from benchmarks.torture import checksums, flips, fuzz, lives
from benchmarks.torture.setting import Row, Setting

#: What can be asked for, in the order of the table.
ROWS: dict[str, Row] = {
    "flips": flips.verified,
    "chunk-flips": flips.read,
    "kills": lives.killed,
    "faults": lives.refused,
    "full": lives.cramped,
    "leak": soak.leak,
    "fuzz": fuzz.survived,
    "checksum-cost": checksums.cost,
    "verify-speed": checksums.speed,
}
_METHOD = IN_TURN + "What is counted is counted once."


def main(arguments: Sequence[str] | None = None) -> Report:
    """Fill the rows, print the table and write it."""
    described = parser("Damage archives, and count what is found.", ROWS, 0, "has no effect here")
    options = described.parse_args(arguments)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="torture-", dir=_directory(options.data)) as place:
        repeats = 1 if options.quick else options.repeats
        setting = Setting(Path(place), workspace(options), options.quick, repeats)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = run(ROWS, setting, options.only, console)
    report = Report(
        [*chain.from_iterable(found)], "Damage survived", None, _METHOD.format(repeats=repeats)
    )
    return report.publish(console, options.results, "torture")


def _directory(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(not all(outcome.passed for outcome in main().outcomes))
