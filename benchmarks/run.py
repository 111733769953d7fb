"""Measure scdl side by side with bionemo-scdl on the same data, in one run.

Run ``make bench``, or ``python -m benchmarks.run --help`` for the options.
"""

from __future__ import annotations

import argparse
import warnings
from datetime import UTC, datetime

from rich.console import Console

from benchmarks.cases import CASES, Bench, run
from benchmarks.options import parser, workspace
from benchmarks.outcomes import Report
from benchmarks.peers import THEIRS


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
        outcomes = run(bench, options.only or list(CASES), console.print)
    spec = bench.workspace.spec
    data = f"{spec.cells:,} cells x {spec.genes:,} genes, {spec.nnz_per_cell:,.0f} stored per cell"
    report = Report(outcomes, data, bench.repeats, THEIRS.title)
    report.show(console)
    name = f"bench-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    for path in report.write(options.results, name):
        console.print(f"wrote {path}", highlight=False)
    return report


if __name__ == "__main__":
    main()
