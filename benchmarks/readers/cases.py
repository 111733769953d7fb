"""The cases: each measures one thing with both libraries, beside what is required of it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common.bench import Bench, memory_outcome
from benchmarks.common.child import ChildRun
from benchmarks.common.measure import Spread, rate, take_turns, timed
from benchmarks.common.measure import spreads as take_spreads
from benchmarks.common.peers import BATCH_SIZE, OURS, PEERS, THEIRS, Scdl
from benchmarks.common.report import Outcome, at_least, at_most

_OPENS = 10


@dataclass(kw_only=True)
class ReaderBench(Bench):
    """Sizes of the measurements of single cells and imports.

    Attributes
    ----------
    calls
        Calls in a loop over single cells.
    imports
        Repetitions of the import of a package.
    """

    calls: int = 10_000
    imports: int = 10


def convert(bench: ReaderBench) -> list[Outcome]:
    return _conversion(bench, "none", "convert", required=3.0)


def convert_gzip(bench: ReaderBench) -> list[Outcome]:
    return _conversion(bench, "gzip-4", "convert gzip-4", required=2.0)


def _conversion(
    bench: ReaderBench, compression: str, title: str, *, required: float
) -> list[Outcome]:
    source = bench.workspace.h5ad(compression=compression)

    def measure(peer: Scdl) -> Callable[[], ChildRun]:
        return lambda: bench.workspace.conversion(peer, source)

    runs = take_turns({name: measure(peer) for name, peer in PEERS.items()}, bench.repeats)
    ours, theirs = (Spread.of([run.report["seconds"] for run in runs[name]]) for name in PEERS)
    synced = Spread.of([run.report["sync_seconds"] for run in runs[OURS.name]])
    speed = Outcome(
        f"{title}: speed",
        at_least(required, "x"),
        theirs.over(ours),
        ours,
        theirs,
        "s",
        f"scdl's time includes {synced.median:.2f} s in fsync, which bionemo-scdl does not call",
    )
    return [speed, *memory_outcome(f"{title}: memory", 300, runs[OURS.name], runs[THEIRS.name])]


def convert_large(bench: ReaderBench) -> list[Outcome]:
    if not bench.times:
        return []
    sources = {times: bench.workspace.h5ad(times=times) for times in (1, bench.times)}
    small, large = (bench.workspace.conversion(OURS, source) for source in sources.values())
    memory = memory_outcome(f"convert {bench.times} x the cells: memory", 300, [large], [])
    note = (
        f"{_megabytes(small)} at 1 x the cells, one run each; the large conversion took "
        f"{large.report['seconds']:.1f} s"
    )
    return [replace(outcome, note=f"{note}; {outcome.note}") for outcome in memory]


def _megabytes(run: ChildRun) -> str:
    return "unknown" if run.peak_megabytes is None else f"{run.peak_megabytes:.0f} MB"


def open_archive(bench: ReaderBench) -> list[Outcome]:
    outcomes = [_opening(bench, 1, "open")]
    if bench.times:
        outcomes.append(_opening(bench, bench.times, f"open, {bench.times} x the cells"))
    return outcomes


def _opening(bench: ReaderBench, times: int, what: str) -> Outcome:
    def measure(peer: Scdl) -> Callable[[], float]:
        path = bench.workspace.archive(peer, times=times)

        def open_often() -> float:
            return 1e3 * timed(lambda: [peer.open(path) for _ in range(_OPENS)]) / _OPENS

        return open_often

    peers = PEERS if times == 1 else {OURS.name: OURS}
    spreads = take_spreads({name: measure(peer) for name, peer in peers.items()}, bench.repeats)
    ours = spreads[OURS.name]
    return Outcome(what, at_most(10, "ms"), ours, ours, spreads.get(THEIRS.name), "ms")


def get_row(bench: ReaderBench) -> list[Outcome]:
    def loop(dataset: Any, rows: list[int]) -> None:
        for row in rows:
            dataset.get_row(row)

    return [_single_cells(bench, "get_row in a loop", 1.0, loop)]


def getitem(bench: ReaderBench) -> list[Outcome]:
    def loop(dataset: Any, rows: list[int]) -> None:
        for row in rows:
            dataset[row]

    return [_single_cells(bench, "ds[i] in a loop", 1.5, loop)]


def _single_cells(
    bench: ReaderBench, what: str, required: float, loop: Callable[[Any, list[int]], None]
) -> Outcome:
    datasets = _same_datasets(bench)
    rows = np.random.default_rng(0).integers(0, bench.workspace.spec.cells, bench.calls).tolist()

    def measure(dataset: Any) -> Callable[[], float]:
        return lambda: 1e6 * timed(lambda: loop(dataset, rows)) / len(rows)

    spreads = take_spreads({name: measure(ds) for name, ds in datasets.items()}, bench.repeats)
    ours, theirs = spreads[OURS.name], spreads[THEIRS.name]
    return Outcome(what, at_least(required, "x"), theirs.over(ours), ours, theirs, "µs")


def read_rows(bench: ReaderBench) -> list[Outcome]:
    datasets = _same_datasets(bench)

    def measure(peer: Scdl) -> Callable[[], float]:
        dataset = datasets[peer.name]
        seeds = iter(range(1_000_000))

        def epoch() -> int:
            return sum(peer.batches(dataset, next(seeds)))

        return lambda: rate(epoch, bench.seconds) / 1e3

    spreads = take_spreads({name: measure(peer) for name, peer in PEERS.items()}, bench.repeats)
    ours, theirs = spreads[OURS.name], spreads[THEIRS.name]
    what = f"read_rows of {BATCH_SIZE:,} random cells"
    note = "bionemo-scdl by DataLoader(shuffle=True) with collate_sparse_matrix_batch, no workers"
    bound = at_least(10, "x")
    return [Outcome(what, bound, ours.over(theirs), ours, theirs, "k cells/s", note)]


def import_package(bench: ReaderBench) -> list[Outcome]:
    def measure(statement: str) -> Callable[[], float]:
        return lambda: 1e3 * timed(lambda: _fresh_interpreter(statement))

    statements = {name: f"import {peer.module}" for name, peer in PEERS.items()} | {"none": "pass"}
    spreads = take_spreads(
        {name: measure(code) for name, code in statements.items()}, bench.imports
    )
    bare = spreads["none"]
    ours, theirs = (
        Spread.of([a - b for a, b in zip(spreads[name].samples, bare.samples, strict=True)])
        for name in PEERS
    )
    note = (
        f"time of a fresh interpreter less that of one that imports nothing "
        f"({spreads[OURS.name].median:.0f} ms less {bare.median:.0f} ms), {bench.imports} of each"
    )
    return [Outcome("import scdl", at_most(150, "ms"), ours, ours, theirs, "ms", note)]


def _fresh_interpreter(statement: str) -> None:
    root = Path(__file__).parents[2]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-W", "ignore", "-c", statement]
    subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)


def pickled(bench: ReaderBench) -> list[Outcome]:
    sizes = {
        name: Spread.of([len(pickle.dumps(dataset)) / 1e3])
        for name, dataset in _same_datasets(bench).items()
    }
    ours, theirs = sizes[OURS.name], sizes[THEIRS.name]
    return [Outcome("pickled dataset", at_most(10, "kB"), ours, ours, theirs, "kB")]


def _same_datasets(bench: ReaderBench) -> dict[str, Any]:
    """Open the data with both libraries, after comparing some of its cells."""
    datasets = {name: peer.open(bench.workspace.archive(peer)) for name, peer in PEERS.items()}
    last = bench.workspace.spec.cells - 1
    for row in {0, last // 2, last}:
        ours, theirs = (_sorted_row(dataset, row) for dataset in datasets.values())
        if not np.array_equal(ours, theirs):
            raise RuntimeError(f"the libraries read cell {row} differently")
    return datasets


def _sorted_row(dataset: Any, row: int) -> npt.NDArray[np.float64]:
    values, columns = dataset.get_row(row)[0]
    pairs = np.stack([np.asarray(columns, np.float64), np.asarray(values, np.float64)])
    return pairs[:, np.argsort(pairs[0])]


CASES: dict[str, Callable[[ReaderBench], list[Outcome]]] = {
    "convert": convert,
    "convert-gzip": convert_gzip,
    "convert-large": convert_large,
    "open": open_archive,
    "get-row": get_row,
    "getitem": getitem,
    "read-rows": read_rows,
    "import": import_package,
    "pickle": pickled,
}
