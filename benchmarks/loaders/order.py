"""The randomness of block order, and its cost."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.common.measure import Spread, spreads, take_turns
from benchmarks.common.report import Outcome, at_least, ratio
from benchmarks.loaders.bench import BATCH, DEFAULTS, RATE, SEQUENTIAL, LoaderBench
from benchmarks.loaders.report import Findings, Grid

BLOCKS = (8, 16, 32, 64, 128, 256)
BUFFERS = (1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15)

_ENTROPY = 0.98


def order(bench: LoaderBench) -> Findings:
    """Label entropy of the default order, and its rate over that of sequential order."""
    child, path = bench.child("memmap"), bench.path("memmap")
    runs = [
        child.ask("entropy", path=path, batch=BATCH, seed=seed) for seed in range(bench.repeats)
    ]
    entropy, random = (Spread.of([run[key] for run in runs]) for key in ("entropy", "random"))
    what = "label entropy of block order over that of random order"
    note = "cells counted as if sorted by cell type; mean entropy of the types of a batch"
    bound = at_least(_ENTROPY, "x")
    outcome = Outcome(what, bound, entropy.over(random), entropy, random, "bits", note)
    settings = {"block": DEFAULTS, "sequential": SEQUENTIAL}
    measures = {name: bench.rate("memmap", setting) for name, setting in settings.items()}
    rates = spreads(measures, bench.repeats, warm_up=False)
    what = f"memmap, block over sequential order: csr, batches of {BATCH}"
    over = ratio(what, rates["block"], rates["sequential"], RATE)
    return Findings([outcome, over])


def randomness(bench: LoaderBench) -> Findings:
    """Entropy and rate over blocks and buffers."""
    child, path = bench.child("memmap"), bench.path("memmap")
    sizes = [(block, buffer) for block in BLOCKS for buffer in BUFFERS]

    def measure(block: int, buffer: int) -> dict[str, Any]:
        return child.ask("entropy", path=path, batch=BATCH, block=block, buffer=buffer)

    measures = {f"{block} {buffer}": partial(measure, block, buffer) for block, buffer in sizes}
    take_turns(measures, 1)
    runs = take_turns(measures, bench.repeats)
    child.ask("close")
    shares: dict[str, list[Spread | None]] = {}
    rates: dict[str, list[Spread | None]] = {}
    for block, buffer in sizes:
        answers = runs[f"{block} {buffer}"]
        share = Spread.of([answer["entropy"] / answer["random"] for answer in answers])
        rate = Spread.of([answer["cells"] / answer["seconds"] / 1e3 for answer in answers])
        shares.setdefault(str(block), []).append(share)
        rates.setdefault(str(block), []).append(rate)
    columns = [f"{buffer:,}" for buffer in BUFFERS]
    corner = "block \\ buffer"
    entropy = Grid("label entropy over that of random order", "x", corner, columns, shares)
    return Findings(grids=[entropy, Grid("rate of block order", RATE, corner, columns, rates)])
