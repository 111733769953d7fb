"""The command: ``python -m benchmarks many_files``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.options import parse
from benchmarks.common.peers import THEIRS
from benchmarks.common.report import IN_TURN, Report
from benchmarks.many_files.cases import CASES, ManyBench

_METHOD = IN_TURN + "The page cache is warm."


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the cases, print the report and write it."""
    options = parse(arguments, __package__, CASES)
    sizes = {"files": [("none", 1)]} if options.quick else {}
    return ManyBench.of(options, **sizes).report(options, CASES, THEIRS.title, _METHOD)
