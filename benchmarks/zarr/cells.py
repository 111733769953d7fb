"""Cases of random cells that are read at once: all genes, beside cellstream, and some genes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.libraries import CELLSTREAM, FRAMES, MEMMAP
from benchmarks.common.measure import Spread, epoch_rate, spreads
from benchmarks.common.report import Outcome, figure
from benchmarks.zarr.cases import BATCH, RATE, ZarrBench, stored_bits

BESIDE_CELLSTREAM = "at-once"
#: Reads of a request.
_READS = 16


def at_once(bench: ZarrBench) -> list[Outcome]:
    what = f"{BATCH:,} random cells at once"
    if bench.cellstream is None:
        return _compared(bench, what, [*FRAMES, MEMMAP])
    outcomes = _compared(bench, what, [*FRAMES, MEMMAP, CELLSTREAM])
    bits = Spread.of([stored_bits(bench, CELLSTREAM)])
    return [*outcomes, figure(f"bits per value, {CELLSTREAM}, with its tables", "bits", bits)]


def genes(bench: ZarrBench) -> list[Outcome]:
    names, chosen = [*FRAMES, MEMMAP], bench.workspace.gene_list()
    what = f"{BATCH:,} random cells at once"
    return [
        *_compared(bench, f"{what}, genes=", names, genes=chosen),
        *_compared(bench, f"{what}, select_genes", names, genes=chosen, view=True),
    ]


def _compared(bench: ZarrBench, what: str, names: Sequence[str], **options: Any) -> list[Outcome]:
    """Rates of archives, and those of archives that store single cells over the others."""
    paths = {name: bench.archive(name) for name in names}
    measures = {name: _rate(bench, name, paths[name], options) for name in names}
    rates = spreads(measures, bench.repeats)
    over = [
        figure(f"{what}, {name} over {other}", "x", rates[name].over(rates[other]))
        for other in names[len(FRAMES) :]
        for name in FRAMES
    ]
    return [*(figure(f"{what}, {name}", RATE, rate) for name, rate in rates.items()), *over]


def _rate(bench: ZarrBench, name: str, path: Path, options: dict[str, Any]) -> Callable[[], float]:
    seeds = iter(range(1_000_000))
    request = partial(bench.child(name).ask, "gather", path=path, batch=BATCH, batches=_READS)
    return lambda: epoch_rate(lambda: request(seed=next(seeds), **options), bench.seconds)


CASES: dict[str, Callable[[ZarrBench], list[Outcome]]] = {
    BESIDE_CELLSTREAM: at_once,
    "genes": genes,
}
