"""The command: ``python -m benchmarks zarr``.

annbatch and cellstream run in environments of their own, which are created if they are missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.common import cellstream
from benchmarks.common.annbatch import (
    CELLS_PER_CHUNK,
    PACKAGES,
    PRELOAD,
    PRELOAD_CELLS,
    SHARD,
)
from benchmarks.common.child import THREADS, Child
from benchmarks.common.environments import peer_python
from benchmarks.common.libraries import ANNBATCH, BLOCK, CELLSTREAM, MEMMAP, fresh_child
from benchmarks.common.options import parse
from benchmarks.common.report import IN_TURN, Report
from benchmarks.common.workspace import FEW_CELLS
from benchmarks.zarr import cells
from benchmarks.zarr.cases import BATCH, ZarrBench
from benchmarks.zarr.cases import CASES as ARCHIVES
from benchmarks.zarr.tuning import tune

CASES = {**ARCHIVES, **cells.CASES}

_METHOD = IN_TURN + (
    f"Each library has a process of its own and {THREADS} threads. The page cache is warm unless "
    "a figure says otherwise. Memory is the peak of resident anonymous memory, sampled every "
    f"5 ms, over that after import and a conversion of {FEW_CELLS} cells. "
    "Archives hold the same matrix, with cells and genes in their "
    f"original order. An epoch reads all cells once, in random order of blocks of {BLOCK}, of "
    f"which both take {PRELOAD} at once, as batches of {BATCH:,}; random cells are {BATCH:,} "
    "single cells per batch; those at once are read by a single call."
)


def main(arguments: Sequence[str] | None = None) -> Report | None:
    """Run the cases, print the report and write it."""
    options = parse(arguments, __package__, CASES, large=10, annbatch=True, tunable=True)
    workspace = options.workspace
    python, absence = _interpreter(options, ANNBATCH, PACKAGES, ARCHIVES)
    other_python, other_absence = _interpreter(
        options, CELLSTREAM, cellstream.PACKAGES, [cells.BESIDE_CELLSTREAM]
    )
    with ExitStack() as stack:
        theirs = stack.enter_context(fresh_child(ANNBATCH, python)) if python else None
        if options.tune:
            if theirs is None:
                raise SystemExit(f"annbatch is missing: {absence}")
            directory = workspace.directory.absolute() / "zarr"
            tune(theirs, workspace.h5ad().absolute(), directory, options.repeats)
            return None
        other = stack.enter_context(fresh_child(CELLSTREAM, other_python)) if other_python else None
        ours = stack.enter_context(fresh_child(MEMMAP, None))
        bench = ZarrBench.of(options, ours=ours, theirs=theirs, cellstream=other, python=python)
        remarks = [
            _their_settings(theirs) if theirs else f"annbatch is left out: {absence}.",
            f"cellstream: {_versions(other)}; codec {cellstream.CODEC}, {THREADS} threads."
            if other
            else f"cellstream is left out: {other_absence}.",
        ]
        title = PACKAGES[0].replace("==", " ")
        return bench.report(options, CASES, title, _METHOD, remarks)


def _interpreter(
    options: argparse.Namespace, name: str, packages: Sequence[str], cases: Collection[str]
) -> tuple[Path | None, str]:
    """The interpreter of a library, or why it is left out."""
    if options.only and not set(options.only) & set(cases):
        return None, "no case that was asked for needs it"
    environment = options.environment
    if name != ANNBATCH:
        environment = environment.with_name(f".venv-{name}")
    return peer_python(environment, packages, make=not options.quick)


def _versions(child: Child) -> str:
    return ", ".join(f"{name} {version}" for name, version in child.ask("versions").items())


def _their_settings(child: Child) -> str:
    return (
        f"annbatch: {_versions(child)}; the pipeline of zarrs; {CELLS_PER_CHUNK} cells per chunk, "
        f"shards of {SHARD}, its default compression; its loader takes {PRELOAD} blocks at a time, "
        f"or {PRELOAD_CELLS:,} single cells."
    )
