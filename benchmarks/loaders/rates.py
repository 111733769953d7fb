"""Rates from memory: what is required of them, all of them, and those of a large archive."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from benchmarks.common import page_cache
from benchmarks.loaders.bench import (
    ANNBATCH,
    BATCH,
    BIONEMO,
    CSR,
    DEFAULTS,
    LARGE_BATCH,
    MEMCPY,
    RANDOM,
    RATE,
    READERS,
    LoaderBench,
    Setting,
    in_turn,
)
from benchmarks.loaders.report import Findings, Grid
from benchmarks.common.measure import Spread
from benchmarks.common.report import Outcome, at_least
from benchmarks.zarr.cases import Figure

_DENSE = Setting("dense", "block", BATCH)
_LARGE_SHARE = 0.8

SETTINGS = (
    *(Setting("csr", "random", batch) for batch in (8, BATCH, LARGE_BATCH)),
    *(Setting("csr", "random", batch, 2) for batch in (BATCH, LARGE_BATCH)),
    *(Setting("csr", "block", batch) for batch in (8, BATCH, LARGE_BATCH)),
    Setting("csr", "block", LARGE_BATCH, 2),
    Setting("csr", "sequential", LARGE_BATCH),
    Setting("dense", "random", BATCH),
    _DENSE,
)


class Required(NamedTuple):
    """A rate over that of another loader, in the same setting."""

    setting: Setting
    ours: str
    theirs: str
    ratio: float


REQUIRED = (
    Required(Setting("csr", "random", BATCH), "memmap, DataLoader", BIONEMO, 8),
    Required(RANDOM, "memmap, DataLoader", BIONEMO, 10),
    Required(CSR, "memmap", BIONEMO, 15),
    Required(CSR, "memmap", ANNBATCH, 3),
    Required(CSR, "fast", ANNBATCH, 2.5),
    Required(CSR, "balanced", ANNBATCH, 1.25),
    Required(_DENSE, "memmap", BIONEMO, 8),
)


def required(bench: LoaderBench) -> Findings:
    outcomes: list[Outcome] = []
    for setting in dict.fromkeys(row.setting for row in REQUIRED):
        rows = [row for row in REQUIRED if row.setting == setting]
        needed = [name for row in rows for name in (row.ours, row.theirs)]
        rates = bench.rates(setting, [*needed, MEMCPY] if setting == CSR else needed)
        outcomes += [_over(row, rates) for row in rows if row.theirs in rates]
        if setting == CSR:
            outcomes.append(_share_of_memcpy(rates))
    return Findings(outcomes)


def _over(row: Required, rates: dict[str, Spread]) -> Outcome:
    ours, theirs = rates[row.ours], rates[row.theirs]
    what = f"{row.ours} over {row.theirs}: {row.setting}"
    note = ""
    if READERS[row.theirs].order(row.setting.order) != row.setting.order:
        note = f"{row.theirs} has no block order, and reads in random order"
    return Outcome(what, at_least(row.ratio, "x"), ours.over(theirs), ours, theirs, RATE, note)


def _share_of_memcpy(rates: dict[str, Spread]) -> Outcome:
    ours, theirs = rates["memmap"], rates[MEMCPY]
    note = "the bytes that cells have on disk, copied by one thread, a batch at a time"
    what = f"memmap over memcpy: {CSR}"
    return Figure(what, at_least(0, "x"), ours.over(theirs), ours, theirs, RATE, note)


def matrix(bench: LoaderBench) -> Findings:
    grids: list[Grid] = []
    for layout, order in dict.fromkeys((setting.layout, setting.order) for setting in SETTINGS):
        settings = [s for s in SETTINGS if (s.layout, s.order) == (layout, order)]
        rates = [bench.rates(s, [MEMCPY] if s == CSR else []) for s in settings]
        rows = {
            name if order in READERS[name].orders else f"{name} (random)": [
                column.get(name) for column in rates
            ]
            for name in READERS
            if any(name in column for column in rates)
        }
        columns = [_column(setting) for setting in settings]
        grids.append(Grid(f"{layout} batches in {order} order", RATE, "batch", columns, rows))
    return Findings(grids=grids)


def _column(setting: Setting) -> str:
    return f"{setting.batch:,}" + (f", {setting.workers} workers" if setting.workers else "")


def large(bench: LoaderBench) -> Findings:
    if not bench.times:
        return Findings()
    path = bench.large()
    size = sum(file.stat().st_size for file in page_cache.files(path))
    if size > 0.8 * _available():
        bench.announce(f"large: left out, as memory does not hold its {size / 1e9:.1f} GB")
        return Findings()
    page_cache.bring_in(path)
    measures = {
        "small": bench.rate("memmap", DEFAULTS),
        "large": bench.rate("memmap", DEFAULTS, path=path),
    }
    rates = in_turn(measures, bench.repeats)
    cells = bench.times * bench.workspace.spec.cells
    what = f"memmap, {cells:,} cells over {bench.workspace.spec.cells:,}: {DEFAULTS}"
    ours, theirs = rates["large"], rates["small"]
    note = "whole epochs from memory"
    bound = at_least(_LARGE_SHARE, "x")
    return Findings([Outcome(what, bound, ours.over(theirs), ours, theirs, RATE, note)])


def _available() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    known = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(known[0]) * 1024 if known else float("inf")
