"""The command: ``python -m benchmarks scale``.

annbatch runs in an environment of its own, which is created if it is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.annbatch import (
    CELLS_PER_CHUNK,
    DISK_BLOCK,
    DISK_PRELOAD,
    PACKAGES,
)
from benchmarks.common.child import THREADS, Child
from benchmarks.common.environments import peer_python
from benchmarks.common.options import parse
from benchmarks.common.report import IN_TURN, Report
from benchmarks.scale import disk, remote
from benchmarks.scale.cases import CASES as MEMBERS
from benchmarks.scale.cases import CHILD, ScaleBench

CASES = {**MEMBERS, **disk.CASES, **remote.CASES}

_METHOD = IN_TURN + (
    "Rates are those of CSR batches of 1,024 cells, in block order unless a figure says otherwise; "
    f"each process has {THREADS} threads. "
    "Members are one archive many times, by hard links: each has its own directory entries, "
    "mappings and metadata, and shares the pages of the others, so that the page cache is warm. "
    "Archives that are read from disk leave the page cache before each repetition. "
    "Memory is the peak of resident anonymous memory over that after import."
)


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the cases, print the report and write it."""
    options = parse(arguments, __package__, CASES, seconds=5.0, annbatch=True, disk=True)
    python, absence = None, "only the case disk has it"
    if not options.only or "disk" in options.only:
        python, absence = peer_python(options.environment, PACKAGES, make=not options.quick)
    sizes = {"few": 2, "many": 5, "most": 7, "cells": 400, "rows": 3_000, "is_toy": True}
    sizes = sizes | {"disk_cells": 400} if options.quick else {"disk_cells": options.disk_cells}
    with Child(CHILD) as child:
        bench = ScaleBench.of(options, child=child, python=python, **sizes)
        return bench.report(options, CASES, "compared with", _METHOD, [_settings(python, absence)])


def _settings(python: object, absence: str) -> str:
    if python is None:
        return f"annbatch is left out: {absence}."
    return (
        f"{', '.join(PACKAGES)}: the same cells, shuffled in parts of 2 GB as annbatch writes "
        f"them, {CELLS_PER_CHUNK} per chunk, with its default compression, decoded by the pipeline "
        f"of zarrs; its loader takes {DISK_PRELOAD} blocks of {DISK_BLOCK} cells at a time. Its "
        "rates, and those beside them, include the first batch, and no opening."
    )
