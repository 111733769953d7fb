"""Measure training loaders side by side on the same data, in one run.

annbatch runs in an environment of its own, which is made when it is missing. Run
``make bench-loader``, or ``python -m benchmarks.loaders --help`` for the options.
"""

from __future__ import annotations

import argparse
import warnings
from importlib import metadata
from pathlib import Path

from rich.console import Console

from benchmarks.common.annbatch import PACKAGES, PRELOAD, annbatch_python
from benchmarks.loaders.bench import ANNBATCH, BIONEMO, SCDATASET, LoaderBench
from benchmarks.loaders.cases import CASES
from benchmarks.loaders.readers import ScDataset
from benchmarks.loaders.report import LoaderReport
from benchmarks.common.options import add_environment, parser, workspace
from benchmarks.common.report import IN_TURN, run
from benchmarks.common.child import THREADS
from benchmarks.zarr.cases import BLOCK

_METHOD = IN_TURN + (
    f"Each library has a process of its own and {THREADS} threads. A rate is over whole "
    "epochs, or over the first thousands of cells where these take "
    "seconds, for at least {seconds} s; workers live from epoch to epoch. The "
    "page cache is warm, but where a figure says otherwise. Memory is the peak of resident "
    "anonymous memory, seen every 5 ms, over that after import."
)


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    described = "Measure training loaders side by side."
    made = parser(described, CASES, 60, "an archive of N x the cells; 0: none")
    add_environment(made)
    return made.parse_args(arguments)


def _make_bench(options: argparse.Namespace, python: Path | None, console: Console) -> LoaderBench:
    whole = not options.only or "matrix" in options.only
    repeats, times, seconds = options.repeats, options.large, 0.5
    if options.quick:
        repeats, times, seconds = 1, 2, 0.02
    data = workspace(options)
    return LoaderBench(data, python, repeats, times, console.print, seconds, whole)


def main(arguments: list[str] | None = None) -> LoaderReport:
    """Run the cases, print the report and write it."""
    options = _parse_arguments(arguments)
    console = Console()
    python, absence = annbatch_python(options.environment, make=not options.quick)
    with warnings.catch_warnings(), _make_bench(options, python, console) as bench:
        warnings.simplefilter("ignore")
        found = run(CASES, bench, options.only, console)
    report = LoaderReport(
        [outcome for one in found for outcome in one.outcomes],
        str(bench.workspace.spec),
        "beside it",
        _METHOD.format(repeats=bench.repeats, seconds=bench.seconds),
        _remarks(bench, absence),
        [grid for one in found for grid in one.grids],
    )
    return report.publish(console, options.results, "bench-loader")


def _remarks(bench: LoaderBench, absence: str) -> list[str]:
    """What the other loaders are, and how they are set."""
    remarks = [
        f"{BIONEMO}: DataLoader with collate_sparse_matrix_batch, which has no block order.",
        "AnnLoader: over a backed AnnCollection, without its converter, of uncompressed h5ad.",
    ]
    if ANNBATCH in bench.names:
        remarks.append(
            f"{', '.join(PACKAGES)}: from annbatch's own Zarr, as tuned by benchmarks.zarr.cases; "
            f"{PRELOAD} blocks of {BLOCK} cells at a time; it gives scipy's CSR matrices."
        )
    else:
        remarks.append(f"annbatch is left out: {absence}.")
    if SCDATASET in bench.names:
        remarks.append(
            f"scDataset {metadata.version('scDataset')}: over a backed AnnCollection of "
            f"uncompressed h5ad; blocks of {ScDataset.BLOCK}, {ScDataset.FETCHED_CELLS:,} cells, "
            f"or {ScDataset.FETCHED_BATCHES} batches, fetched at once; by each worker "
            f"{ScDataset.FETCHED_BY_WORKERS:,}."
        )
    else:
        remarks.append("scDataset is left out: it is not installed.")
    return remarks


if __name__ == "__main__":
    main()
