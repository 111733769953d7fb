"""The command: ``python -m benchmarks sources``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.child import Child
from benchmarks.common.options import parse
from benchmarks.common.report import IN_TURN, Report
from benchmarks.sources.cases import CASES, SourcesBench

_METHOD = IN_TURN + "Files are in the page cache. Archives are memmap."


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the cases, print the report and write it."""
    options = parse(arguments, __package__, CASES, large=10)
    with Child("benchmarks.sources.child", threads=None) as child:
        bench = SourcesBench.of(options, child=child)
        return bench.report(options, CASES, "other reader", _METHOD)
