"""Rates from memory: those of which something is required, all, and those of large data."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from benchmarks.common import page_cache
from benchmarks.common.measure import Spread, spreads
from benchmarks.common.report import Outcome, ratio
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
)
from benchmarks.loaders.report import Findings, Grid

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
    """The required ratio of a rate to that of another loader, in the same setting."""

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
    what = f"{row.ours} over {row.theirs}: {row.setting}"
    note = ""
    if READERS[row.theirs].order(row.setting.order) != row.setting.order:
        note = f"{row.theirs} has no block order, and reads in random order"
    rated = rates[row.ours], rates[row.theirs]
    return ratio(what, *rated, RATE, required=row.ratio, note=note)


def _share_of_memcpy(rates: dict[str, Spread]) -> Outcome:
    note = "one thread copies the bytes that the cells of a batch have on disk"
    return ratio(f"memmap over memcpy: {CSR}", rates["memmap"], rates[MEMCPY], RATE, note=note)


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
        print(f"large: skipped, since its {size / 1e9:.1f} GB do not fit into memory")
        return Findings()
    page_cache.bring_in(path)
    measures = {
        "small": bench.rate("memmap", DEFAULTS),
        "large": bench.rate("memmap", DEFAULTS, path=path),
    }
    rates = spreads(measures, bench.repeats, warm_up=False)
    cells = bench.times * bench.workspace.spec.cells
    what = f"memmap, {cells:,} cells over {bench.workspace.spec.cells:,}: {DEFAULTS}"
    over = ratio(
        what,
        rates["large"],
        rates["small"],
        RATE,
        required=_LARGE_SHARE,
        note="whole epochs from memory",
    )
    return Findings([over])


def _available() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    known = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(known[0]) * 1024 if known else float("inf")
