"""The command: ``python -m benchmarks torture``; see :data:`ROWS` for the rows of its table."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.options import parse
from benchmarks.common.report import IN_TURN, Report
from benchmarks.soak import cases as soak
from benchmarks.torture import checksums, flips, fuzz, lives
from benchmarks.torture.setting import Row, Setting

#: Rows that --only takes, in the order of the table.
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
_METHOD = IN_TURN + "Counts are taken once."


def fill(arguments: Sequence[str] | None = None) -> Report:
    """Fill the rows, print the table and write it."""
    options = parse(arguments, __package__, ROWS)
    options.data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="torture-", dir=options.data) as place:
        setting = Setting.of(options, place=Path(place), quick=options.quick)
        return setting.report(options, ROWS, None, _METHOD)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the table; return the number of requirements that are not met."""
    return sum(not outcome.passed for outcome in fill(arguments).outcomes)
