"""Measure what concerns many cells and files at once: neighbours of a batch, and workers.

Run ``make bench-many``, or ``python -m benchmarks.many_files.cases --help`` for the options.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import scdl
from benchmarks.generate.files import NEIGHBOR_KEY
from benchmarks.common.measure import Spread, rate, take_turns, timed
from benchmarks.common.options import parser
from benchmarks.common.options import workspace as workspace_of
from benchmarks.common.report import IN_TURN, Outcome, Report, at_least, run
from benchmarks.common.peers import THEIRS
from benchmarks.common.workspace import Workspace
from benchmarks.zarr.cases import Figure

BATCH, K, NEIGHBORS, MEMBERS = 1_024, 4, 15, 20
FILES, WORKERS = 8, 2
_FASTER, _SCALING = 50.0, 1.7

_METHOD = IN_TURN + "The page cache is warm."


@dataclass(frozen=True)
class Bench:
    """What all cases need.

    Attributes
    ----------
    workspace
        The data.
    repeats
        Repetitions of each measurement.
    announce
        Prints a line.
    seconds
        Least duration of a measured rate.
    files
        Those that are converted: how they are compressed, and how many times as large.
    """

    workspace: Workspace
    repeats: int
    announce: Callable[[str], None]
    seconds: float = 1.0
    files: Sequence[tuple[str, int]] = (("none", 1), ("none", 4), ("gzip-4", 1))

    def place(self, name: str) -> Path:
        """An empty directory."""
        path = (self.workspace.directory / "many" / name).absolute()
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path


def neighbors(bench: Bench) -> list[Outcome]:
    """A batch at once, over a loop of the other library over its cells."""
    spec = replace(bench.workspace.spec, neighbors=NEIGHBORS, raw=False)
    data = replace(bench.workspace, spec=spec, directory=bench.workspace.directory / "neighbors")
    path = bench.place("neighbors") / "archive"
    scdl.convert(data.h5ad(), path, neighbor_key=NEIGHBOR_KEY)
    theirs = _their_dataset(path)
    rows = np.random.default_rng(0).integers(0, spec.cells, BATCH)

    def loop() -> float:
        cells = np.repeat(rows, K).tolist()
        return 1e3 * timed(lambda: [theirs.sample_neighbor_index(cell) for cell in cells])

    def batch(dataset: Any) -> Callable[[], float]:
        rng = np.random.default_rng(1)

        def sample() -> int:
            dataset.sample_neighbors(rows, K, rng=rng)
            return 1

        return lambda: 1e3 / rate(sample, bench.seconds / 4)

    strategies = list(scdl.NeighborSamplingStrategy)
    opened = {how: scdl.open(path, neighbor_sampling_strategy=how) for how in strategies}
    measures = {"theirs": loop} | {how.value: batch(ds) for how, ds in opened.items()}
    members = _members(bench, data)
    for how in strategies:
        many = scdl.SingleCellCollection(members, neighbor_sampling_strategy=how)
        measures[f"{how.value}, over {MEMBERS} members"] = batch(many)
    take_turns(measures, 1)
    taken = {name: Spread.of(got) for name, got in take_turns(measures, bench.repeats).items()}
    note = (
        f"{BATCH:,} cells of a graph of {NEIGHBORS} neighbours each, k={K}; of bionemo-scdl a loop "
        "of sample_neighbor_index, whose strategy is random"
    )
    bound = at_least(_FASTER, "x")
    return [
        Outcome(
            f"sample_neighbors, {name}",
            bound,
            taken["theirs"].over(ours),
            ours,
            taken["theirs"],
            "ms",
            note,
        )
        for name, ours in taken.items()
        if name != "theirs"
    ]


def _members(bench: Bench, data: Workspace) -> list[Path]:
    """Archives that have as many cells together; each of them is the same."""
    place = bench.place("members")
    first = place / "0"
    source = data.h5ad(cells=-(-data.spec.cells // MEMBERS))
    scdl.convert(source, first, neighbor_key=NEIGHBOR_KEY)
    copies = [Path(shutil.copytree(first, place / str(i))) for i in range(1, MEMBERS)]
    return [first, *copies]


def _their_dataset(path: Path) -> Any:
    from bionemo.scdl.io.single_cell_memmap_dataset import SingleCellMemMapDataset

    return SingleCellMemMapDataset(str(path), load_neighbors=True)


def conversion(bench: Bench) -> list[Outcome]:
    """Eight files by two workers, over one worker."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < WORKERS:
        bench.announce(f"conversion: left out, as there are no {WORKERS} cores to be kept to")
        return []
    return [outcome for kind in bench.files for outcome in _conversion(bench, *kind)]


def _conversion(bench: Bench, compression: str, times: int) -> list[Outcome]:
    source = bench.workspace.h5ad(compression=compression, times=times).absolute()
    files = bench.place("files")
    for i in range(FILES):
        os.link(source, files / f"{i}.h5ad")
    cores = sorted(os.sched_getaffinity(0))
    # What a worker may use is its share of what this process may.
    how = {
        "one": partial(_converted, bench, files, 1, cores[:1]),
        "two": partial(_converted, bench, files, WORKERS, cores[:WORKERS]),
        "all": partial(_converted, bench, files, 1, cores[:WORKERS]),
    }
    if bench.repeats > 1:
        take_turns(how, 1)
    taken = {name: Spread.of(got) for name, got in take_turns(how, bench.repeats).items()}
    nbytes = source.stat().st_size
    what = f"convert {FILES} files of {nbytes / 1e6:,.0f} MB ({compression}), {WORKERS} workers"
    note = (
        "workers have a core each; the whole command is measured; scdl is two workers, and the "
        "other column is one worker of scdl"
    )
    over_one, over_all = (taken[name].over(taken["two"]) for name in ("one", "all"))
    one = Outcome(
        f"{what} over one",
        at_least(_SCALING, "x"),
        over_one,
        taken["two"],
        taken["one"],
        "s",
        note,
    )
    note = "that worker decompresses in threads, on as many cores as both have"
    title = f"{what} over one with the cores of both"
    both = Figure(title, at_least(0, "x"), over_all, taken["two"], taken["all"], "s", note)
    return [one, both]


def _converted(bench: Bench, files: Path, workers: int, cores: Iterable[int]) -> float:
    """Seconds of the command on some cores; what it wrote is removed."""
    target = bench.place("measured")
    command = [sys.executable, "-m", "scdl", "convert", files, target, "--workers", workers, "-q"]
    before = os.sched_getaffinity(0)
    # What was written before must not be written back at the expense of this conversion.
    os.sync()
    os.sched_setaffinity(0, cores)
    try:
        return timed(lambda: subprocess.run([str(word) for word in command], check=True))
    finally:
        os.sched_setaffinity(0, before)
        shutil.rmtree(target)


CASES: dict[str, Callable[[Bench], list[Outcome]]] = {
    "neighbors": neighbors,
    "conversion": conversion,
}


def main(arguments: list[str] | None = None) -> Report:
    """Run the cases, print the report and write it."""
    described = "Measure neighbours of a batch, and workers that convert many files."
    options = parser(described, CASES, 0, "without effect here").parse_args(arguments)
    console = Console()
    workspace = workspace_of(options)
    bench = Bench(workspace, options.repeats, console.print)
    if options.quick:
        bench = replace(bench, repeats=1, seconds=0.02, files=[("none", 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = run(CASES, bench, options.only, console)
    report = Report(
        [*chain.from_iterable(found)],
        str(workspace.spec),
        THEIRS.title,
        _METHOD.format(repeats=bench.repeats),
    )
    return report.publish(console, options.results, "bench-many")


if __name__ == "__main__":
    main()
