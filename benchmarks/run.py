"""Measure scdl side by side with bionemo-scdl on the same data, in one run.

Run ``make bench``, or ``python -m benchmarks.run --help`` for the options.
"""

from __future__ import annotations

import argparse
import warnings
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks.cases import CASES, Bench, run
from benchmarks.outcomes import Report
from benchmarks.peers import THEIRS
from benchmarks.real_cells import celltypist_cells, synthetic_cells
from benchmarks.spec import DataSpec
from benchmarks.workspace import Workspace

_HERE = Path(__file__).parent
_TOY = DataSpec(cells=200, genes=500, nnz_per_cell=40)


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure scdl side by side with bionemo-scdl.")
    parser.add_argument("--cells", type=int, default=DataSpec().cells, help="cells of the data")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions of each measurement")
    parser.add_argument(
        "--only", nargs="+", choices=list(CASES), metavar="CASE", help=", ".join(CASES)
    )
    parser.add_argument(
        "--large", type=int, default=10, metavar="N", help="a second file of N x the cells; 0: none"
    )
    parser.add_argument("--quick", action="store_true", help="toy data: does everything run?")
    parser.add_argument("--data", type=Path, default=_HERE / "data", help="directory of the data")
    parser.add_argument("--results", type=Path, default=_HERE / "results", help="of the reports")
    return parser.parse_args(arguments)


def make_bench(options: argparse.Namespace) -> Bench:
    """Turn options into the data and the sizes of the measurements."""
    if options.quick:
        workspace = Workspace(options.data, _TOY, synthetic_cells)
        return Bench(workspace, repeats=1, times=2, calls=100, seconds=0.02, imports=2)
    workspace = Workspace(options.data, DataSpec(cells=options.cells), celltypist_cells)
    return Bench(workspace, repeats=options.repeats, times=options.large)


def main(arguments: list[str] | None = None) -> Report:
    """Run the cases, print the report and write it."""
    options = _parse_arguments(arguments)
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
