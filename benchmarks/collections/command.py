"""The command: ``python -m benchmarks collections``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.collections.cases import CASES, CHILD, CollectionBench
from benchmarks.common.child import Child
from benchmarks.common.options import parse
from benchmarks.common.peers import THEIRS
from benchmarks.common.report import IN_TURN, Report

_METHOD = IN_TURN + (
    "The page cache is warm. Memory is the peak of resident anonymous memory, sampled every 5 ms, "
    "over that after import."
)


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the cases, print the report and write it."""
    options = parse(arguments, __package__, CASES)
    sizes = {"genes": 100} if options.quick else {}
    with Child(CHILD) as child:
        bench = CollectionBench.of(options, child=child, **sizes)
        return bench.report(options, CASES, THEIRS.title, _METHOD)
