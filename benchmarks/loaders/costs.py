"""Memory, space on disk, and the time until the first batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.common import page_cache
from benchmarks.common.child import ChildRun
from benchmarks.common.measure import Spread, take_turns
from benchmarks.common.report import Outcome, at_most
from benchmarks.loaders.bench import (
    ANNBATCH,
    ANNLOADER,
    BATCH,
    BIONEMO,
    DEFAULTS,
    READERS,
    SCDATASET,
    LoaderBench,
)
from benchmarks.loaders.report import Findings, Grid

_DISTINCT = ("memmap", BIONEMO, ANNBATCH, SCDATASET, ANNLOADER)
_MEGABYTES = 36.5
_FIRST_SECONDS = 0.5


def memory(bench: LoaderBench) -> Findings:
    names = [name for name in _DISTINCT if name in bench.names]
    measures = {name: partial(bench.epoch_watched, name, DEFAULTS) for name in names}
    if bench.repeats > 1:
        measures["memmap"]()  # The first run on a machine compiles.
    runs = take_turns(measures, bench.repeats)
    peaks = {name: Spread.of_known(run.peak_megabytes for run in runs[name]) for name in names}
    title, rows = "peak memory of an epoch over that after import", {n: [peaks[n]] for n in names}
    grid = Grid(title, "MB", "loader", [f"batches of {BATCH}"], rows)
    ours = peaks["memmap"]
    if ours is None:
        return Findings(grids=[grid])
    note = f"over the import of torch and scdl without its loader: {_bare(runs['memmap'])}"
    what = f"memory of an epoch, memmap, batches of {BATCH}"
    bound = at_most(_MEGABYTES, "MB")
    return Findings([Outcome(what, bound, ours, ours, peaks[BIONEMO], "MB", note)], [grid])


def _bare(runs: Sequence[ChildRun]) -> str:
    known = Spread.of_known(run.peak_over(run.report["imported"][1]) for run in runs)
    return "unknown" if known is None else f"{known.median:.0f} MB"


def disk(bench: LoaderBench) -> Findings:
    """Bytes of all files of the same cells, in each format."""
    names = dict.fromkeys(READERS[name].archive for name in bench.names)
    rows: dict[str, list[Spread | None]] = {}
    for name in names:
        size = sum(file.stat().st_size for file in page_cache.files(bench.archive(name)))
        rows[name] = [Spread.of([size / 1e6])]
    return Findings(grids=[Grid("space on disk", "MB", "archive", ["all files"], rows)])


def first_batch(bench: LoaderBench) -> Findings:
    path = bench.path("memmap")

    def measure() -> dict[str, Any]:
        with bench.fresh("memmap") as child:
            return child.ask("first_batch", path=path, batch=BATCH)

    if bench.repeats > 1:
        measure()  # The first run on a machine compiles.
    runs = [measure() for _ in range(bench.repeats)]
    seconds, whole = (Spread.of([run[key] for run in runs]) for key in ("seconds", "with_imports"))
    note = f"in a fresh process after its imports; with them {whole.median:.2f} s"
    what, bound = "first batch after opening", at_most(_FIRST_SECONDS, "s")
    return Findings([Outcome(what, bound, seconds, seconds, None, "s", note)])
