"""The command: ``python -m benchmarks zarr``.

annbatch runs in an environment of its own, which is created if it is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.common.annbatch import (
    CELLS_PER_CHUNK,
    PACKAGES,
    PRELOAD,
    PRELOAD_CELLS,
    SHARD,
    annbatch_python,
)
from benchmarks.common.child import THREADS, Child
from benchmarks.common.libraries import ANNBATCH, BLOCK, MEMMAP, fresh_child
from benchmarks.common.options import parse
from benchmarks.common.report import IN_TURN, Report
from benchmarks.common.workspace import FEW_CELLS
from benchmarks.zarr.cases import BATCH, CASES, ZarrBench
from benchmarks.zarr.tuning import tune

_METHOD = IN_TURN + (
    f"Each library has a process of its own and {THREADS} threads. The page cache is warm unless "
    "a figure says otherwise. Memory is the peak of resident anonymous memory, sampled every "
    f"5 ms, over that after import and a conversion of {FEW_CELLS} cells. "
    "Archives hold the same matrix, with cells and genes in their "
    f"original order. An epoch reads all cells once, in random order of blocks of {BLOCK}, of "
    f"which both take {PRELOAD} at once, as batches of {BATCH:,}; random cells are {BATCH:,} "
    "single cells per batch."
)


def main(arguments: Sequence[str] | None = None) -> Report | None:
    """Run the cases, print the report and write it."""
    options = parse(arguments, __package__, CASES, large=10, annbatch=True, tunable=True)
    workspace = options.workspace
    python, absence = annbatch_python(options.environment, make=not options.quick)
    with ExitStack() as stack:
        theirs = stack.enter_context(fresh_child(ANNBATCH, python)) if python else None
        if options.tune:
            if theirs is None:
                raise SystemExit(f"annbatch is missing: {absence}")
            directory = workspace.directory.absolute() / "zarr"
            tune(theirs, workspace.h5ad().absolute(), directory, options.repeats)
            return None
        ours = stack.enter_context(fresh_child(MEMMAP, None))
        bench = ZarrBench.of(options, ours=ours, theirs=theirs, python=python)
        remark = _their_settings(theirs) if theirs else f"annbatch is left out: {absence}."
        title = PACKAGES[0].replace("==", " ")
        return bench.report(options, CASES, title, _METHOD, [remark])


def _their_settings(child: Child) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in child.ask("versions").items())
    return (
        f"annbatch: {versions}; the pipeline of zarrs; {CELLS_PER_CHUNK} cells per chunk, shards "
        f"of {SHARD}, its default compression; its loader takes {PRELOAD} blocks at a time, or "
        f"{PRELOAD_CELLS:,} single cells."
    )
