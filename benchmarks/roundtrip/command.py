"""The command: ``python -m benchmarks roundtrip``."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from benchmarks.common.options import subject_parser
from benchmarks.roundtrip.batches import Sources, tried


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the cases; return the number of wrong ones."""
    made = subject_parser(__package__)
    made.add_argument("--cases", type=int, default=5_000, help="of each backend")
    made.add_argument("--backend", choices=("memmap", "zarr"), help="default: both")
    made.add_argument(
        "--first", type=int, default=0, help="number of the first case, to continue a run"
    )
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    made.add_argument(
        "--stores", type=int, choices=(2, 3), help="sources are Zarr stores of this format"
    )
    made.add_argument(
        "--writer", help="Python of another environment, whose anndata writes the sources"
    )
    options = made.parse_args(arguments)
    sources = Sources(options.stores, options.writer)
    failed = 0
    for backend in [options.backend] if options.backend else ["memmap", "zarr"]:
        began, wrong = time.perf_counter(), 0
        stop = options.first + options.cases
        for seed, said in tried(range(options.first, stop), backend, sources, options.workers):
            wrong += 1
            print(f"{backend} {seed}: " + "\n    ".join(said), flush=True)
        seconds = time.perf_counter() - began
        print(
            f"{backend}: {options.cases:,} cases in {seconds:.0f} s, {wrong} of them wrong",
            flush=True,
        )
        failed += wrong
    return failed
