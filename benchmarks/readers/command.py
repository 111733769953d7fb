"""Measure scdl side by side with bionemo-scdl on the same data, in one run.

Run ``make bench``, or ``python -m benchmarks.readers.command --help`` for the options.
"""

from __future__ import annotations

import argparse
import warnings
from itertools import chain

from rich.console import Console

from benchmarks.readers.cases import CASES, Bench
from benchmarks.common.options import parser, workspace
from benchmarks.common.report import IN_TURN, Report, run
from benchmarks.common.peers import THEIRS

_METHOD = IN_TURN + (
    "Imports are repeated more often. The page cache is warm. Memory is the peak of resident "
    "anonymous memory, seen every 5 ms, over that after import and a conversion of a few cells."
)


def make_bench(options: argparse.Namespace) -> Bench:
    """Turn options into the data and the sizes of the measurements."""
    data = workspace(options)
    if options.quick:
        return Bench(data, repeats=1, times=2, calls=100, seconds=0.02, imports=2)
    return Bench(data, repeats=options.repeats, times=options.large)


def main(arguments: list[str] | None = None) -> Report:
    """Run the cases, print the report and write it."""
    described = "Measure scdl side by side with bionemo-scdl."
    larger = "a second file of N x the cells; 0: none"
    options = parser(described, CASES, 10, larger).parse_args(arguments)
    console = Console()
    bench = make_bench(options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = run(CASES, bench, options.only, console)
    report = Report(
        [*chain.from_iterable(found)],
        str(bench.workspace.spec),
        THEIRS.title,
        _METHOD.format(repeats=bench.repeats),
    )
    return report.publish(console, options.results, "bench")


if __name__ == "__main__":
    main()
