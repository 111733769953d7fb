"""The cases of the loader benchmark, by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from benchmarks.loaders.bench import LoaderBench
from benchmarks.loaders.cold import cold
from benchmarks.loaders.costs import disk, first_batch, memory
from benchmarks.loaders.order import order, randomness
from benchmarks.loaders.rates import large, matrix, required
from benchmarks.loaders.report import Findings

CASES: dict[str, Callable[[LoaderBench], Findings]] = {
    "required": required,
    "matrix": matrix,
    "order": order,
    "randomness": randomness,
    "memory": memory,
    "disk": disk,
    "first-batch": first_batch,
    "cold": cold,
    "large": large,
}


def run(bench: LoaderBench, names: Sequence[str]) -> Findings:
    """Run cases by name, in the order of `CASES`."""
    findings = Findings()
    for name, case in CASES.items():
        if name in names:
            start = time.perf_counter()
            found = case(bench)
            findings.outcomes += found.outcomes
            findings.grids += found.grids
            bench.announce(f"{name}: done in {time.perf_counter() - start:.0f} s")
    return findings
