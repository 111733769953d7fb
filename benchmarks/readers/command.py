"""The command: ``python -m benchmarks readers``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.options import parse
from benchmarks.common.peers import THEIRS
from benchmarks.common.report import IN_TURN, Report
from benchmarks.readers.cases import CASES, ReaderBench

_METHOD = IN_TURN + (
    "Imports are repeated more often. The page cache is warm. Memory is the peak of resident "
    "anonymous memory, sampled every 5 ms, over that after import and a conversion of a few cells."
)


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the cases, print the report and write it."""
    options = parse(arguments, __package__, CASES, large=10)
    sizes = {"calls": 100, "imports": 2} if options.quick else {}
    return ReaderBench.of(options, **sizes).report(options, CASES, THEIRS.title, _METHOD)
