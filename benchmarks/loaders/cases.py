"""The cases of the loader benchmark, by name."""

from __future__ import annotations

from collections.abc import Callable

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
