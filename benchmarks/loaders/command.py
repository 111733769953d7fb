"""The command: ``python -m benchmarks loaders``.

annbatch runs in an environment of its own, which is created if it is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata

from benchmarks.common.annbatch import PACKAGES, PRELOAD
from benchmarks.common.child import THREADS
from benchmarks.common.environments import peer_python
from benchmarks.common.libraries import BLOCK
from benchmarks.common.options import parse
from benchmarks.common.report import IN_TURN, run
from benchmarks.loaders.bench import ANNBATCH, BIONEMO, SCDATASET, LoaderBench
from benchmarks.loaders.cold import cold, cold_random
from benchmarks.loaders.contents import contents
from benchmarks.loaders.costs import disk, first_batch, memory
from benchmarks.loaders.order import order, randomness
from benchmarks.loaders.rates import large, matrix, required
from benchmarks.loaders.readers import ScDataset
from benchmarks.loaders.report import Findings, LoaderReport

CASES: dict[str, Callable[[LoaderBench], Findings]] = {
    "required": required,
    "matrix": matrix,
    "order": order,
    "randomness": randomness,
    "memory": memory,
    "disk": disk,
    "first-batch": first_batch,
    "cold": cold,
    "cold-random": cold_random,
    "contents": contents,
    "large": large,
}

_METHOD = IN_TURN + (
    f"Each library has a process of its own and {THREADS} threads. A rate is over whole "
    "epochs, or over the first thousands of cells of a loader that would take seconds, for at "
    "least {seconds} s; workers live from epoch to epoch. The page cache is warm unless a figure "
    "says otherwise. Memory is the peak of resident anonymous memory, sampled every 5 ms, over "
    "that after import."
)


def main(arguments: Sequence[str] | None = None) -> LoaderReport:
    """Run the cases, print the report and write it."""
    options = parse(arguments, __package__, CASES, large=60, seconds=0.5, annbatch=True)
    python, absence = peer_python(options.environment, PACKAGES, make=not options.quick)
    whole = not options.only or "matrix" in options.only
    with LoaderBench.of(options, python=python, whole=whole) as bench:
        found = run(CASES, bench, options.only)
    report = LoaderReport(
        [outcome for one in found for outcome in one.outcomes],
        str(bench.workspace.spec),
        "compared",
        _METHOD.format(repeats=bench.repeats, seconds=bench.seconds),
        _remarks(bench, absence),
        [grid for one in found for grid in one.grids],
    )
    return report.publish(options.results, "loaders")


def _remarks(bench: LoaderBench, absence: str) -> list[str]:
    """The other loaders and their settings."""
    remarks = [
        f"{BIONEMO}: DataLoader with collate_sparse_matrix_batch, which has no block order.",
        "AnnLoader: over a backed AnnCollection, without its converter, of uncompressed h5ad.",
    ]
    if ANNBATCH in bench.names:
        remarks.append(
            f"{', '.join(PACKAGES)}: from annbatch's own Zarr, as tuned by benchmarks.zarr.tuning; "
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
