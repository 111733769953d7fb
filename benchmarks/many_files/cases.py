"""The cases: neighbours of a batch of cells, and conversion of many files by workers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import scdl
from benchmarks.common.bench import Bench
from benchmarks.common.measure import rate, spreads, timed
from benchmarks.common.report import Figure, Outcome, at_least
from benchmarks.common.workspace import Workspace
from benchmarks.generate.files import NEIGHBOR_KEY

BATCH, K, NEIGHBORS, MEMBERS = 1_024, 4, 15, 20
FILES, WORKERS = 8, 2
_FASTER, _SCALING = 50.0, 1.7


@dataclass(kw_only=True)
class ManyBench(Bench):
    """The files that workers convert.

    Attributes
    ----------
    files
        Compression of the files, and how many times the cells they have.
    """

    files: Sequence[tuple[str, int]] = (("none", 1), ("none", 4), ("gzip-4", 1))

    def place(self, name: str) -> Path:
        """An empty directory."""
        path = (self.workspace.directory / "many" / name).absolute()
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path


def neighbors(bench: ManyBench) -> list[Outcome]:
    """Neighbours of a whole batch, over a loop of the other library over its cells."""
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
    taken = spreads(measures, bench.repeats)
    note = (
        f"{BATCH:,} cells of a graph of {NEIGHBORS} neighbours each, k={K}; bionemo-scdl in a loop "
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


def _members(bench: ManyBench, data: Workspace) -> list[Path]:
    """Equal archives that together have as many cells."""
    place = bench.place("members")
    first = place / "0"
    source = data.h5ad(cells=-(-data.spec.cells // MEMBERS))
    scdl.convert(source, first, neighbor_key=NEIGHBOR_KEY)
    copies = [Path(shutil.copytree(first, place / str(i))) for i in range(1, MEMBERS)]
    return [first, *copies]


def _their_dataset(path: Path) -> Any:
    from bionemo.scdl.io.single_cell_memmap_dataset import SingleCellMemMapDataset

    return SingleCellMemMapDataset(str(path), load_neighbors=True)


def conversion(bench: ManyBench) -> list[Outcome]:
    """Eight files by two workers, over one worker."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < WORKERS:
        print(
            f"conversion: skipped, since this needs {WORKERS} cores that processes can be kept to"
        )
        return []
    return [outcome for kind in bench.files for outcome in _conversion(bench, *kind)]


def _conversion(bench: ManyBench, compression: str, times: int) -> list[Outcome]:
    source = bench.workspace.h5ad(compression=compression, times=times).absolute()
    files = bench.place("files")
    for i in range(FILES):
        os.link(source, files / f"{i}.h5ad")
    cores = sorted(os.sched_getaffinity(0))
    # Workers share the cores that the command may use.
    how = {
        "one": partial(_converted, bench, files, 1, cores[:1]),
        "two": partial(_converted, bench, files, WORKERS, cores[:WORKERS]),
        "all": partial(_converted, bench, files, 1, cores[:WORKERS]),
    }
    taken = spreads(how, bench.repeats, warm_up=bench.repeats > 1)
    nbytes = source.stat().st_size
    what = f"convert {FILES} files of {nbytes / 1e6:,.0f} MB ({compression}), {WORKERS} workers"
    note = (
        "workers have a core each; the whole command is measured; the column of scdl is two "
        "workers, the other one is one worker"
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
    note = "the single worker decompresses in threads, on both cores"
    title = f"{what} over one with the cores of both"
    both = Figure(title, at_least(0, "x"), over_all, taken["two"], taken["all"], "s", note)
    return [one, both]


def _converted(bench: ManyBench, files: Path, workers: int, cores: Iterable[int]) -> float:
    """Seconds of the command on some cores; its archives are removed."""
    target = bench.place("measured")
    command = [sys.executable, "-m", "scdl", "convert", files, target, "--workers", workers, "-q"]
    before = os.sched_getaffinity(0)
    # Writing back what was written before must not slow this conversion.
    os.sync()
    os.sched_setaffinity(0, cores)
    try:
        return timed(lambda: subprocess.run([str(word) for word in command], check=True))
    finally:
        os.sched_setaffinity(0, before)
        shutil.rmtree(target)


CASES: dict[str, Callable[[ManyBench], list[Outcome]]] = {
    "neighbors": neighbors,
    "conversion": conversion,
}
