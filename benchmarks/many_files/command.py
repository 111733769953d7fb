"""The command: ``python -m benchmarks many_files``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from benchmarks.common.options import parse
from benchmarks.common.peers import THEIRS
from benchmarks.common.report import IN_TURN, Report, run
from benchmarks.many_files.cases import CASES, ManyBench

_METHOD = IN_TURN + "The page cache is warm."


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the cases, print the report and write it."""
    options = parse(arguments, __package__, CASES)
    sizes = {"files": [("none", 1)]} if options.quick else {}
    bench = ManyBench.of(options, **sizes)
    outcomes = [*chain.from_iterable(run(CASES, bench, options.only))]
    method = _METHOD.format(repeats=bench.repeats)
    report = Report(outcomes, str(bench.workspace.spec), THEIRS.title, method)
    return report.publish(options.results, "many_files")
