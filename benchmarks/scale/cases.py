"""The cases: epochs of collections of many members, their obs, their manifests, and shuffling."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import scdl
from benchmarks.common.bench import Bench
from benchmarks.common.child import Child, ChildRun
from benchmarks.common.measure import Spread, epoch_rate, spreads, take_turns
from benchmarks.common.report import Outcome, at_most, ratio
from benchmarks.scale.tables import write_archive
from scdl.collection.paths import MANIFEST

CHILD = "benchmarks.scale.child"
RATE = "k cells/s"


@dataclass(kw_only=True)
class ScaleBench(Bench):
    """Numbers of members.

    Attributes
    ----------
    child
        Measures rates, so that its collections stay open from one repetition to the next.
    few, many, most
        Numbers of members.
    cells
        Cells to read before a rate is measured, by which most members have been opened.
    is_toy
        Whether the data is tiny.
    rows
        Cells of the archive with a large table.
    disk_cells
        Cells of the archives that are read from disk; None: as many as are larger than memory.
    python
        The interpreter of annbatch; None if it is not available.
    """

    child: Child
    few: int = 20
    many: int = 400
    most: int = 4_000
    cells: int = 500_000
    is_toy: bool = False
    rows: int = 20_000_000
    disk_cells: int | None = None
    python: Path | None = None

    @property
    def place(self) -> Path:
        """Directory of the archives."""
        return self.workspace.directory.absolute() / "scale"

    def one(self, suffix: str = "") -> Path:
        """The archive that collections link, made if it is missing."""
        source = self.place / f"one{suffix}"
        if not source.exists():
            self.place.mkdir(parents=True, exist_ok=True)
            options = {"compression": "balanced"} if suffix else {}
            scdl.convert(self.workspace.h5ad(), source, **options)
        return source

    def flattened(self, members: int, suffix: str = "") -> Path:
        """One archive with the cells of a collection, made if it is missing."""
        path, options = self.place / f"flat-{members}{suffix}", {}
        if not path.exists():
            if suffix:
                options["compression"] = "balanced"
            scdl.open(self.collection(members, suffix)).flatten(path, **options)
        return path

    def table(self) -> Path:
        """An archive of many cells with few values, made if it is missing."""
        path = self.workspace.directory.absolute() / "scale" / f"table-{self.rows}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_archive(path, self.rows)
        return path

    def collection(self, members: int, suffix: str = "") -> Path:
        """A collection of links of one archive, made if it is missing."""
        source, links = self.one(suffix), self.place / f"{members}{suffix}"
        if not (links / MANIFEST).exists():
            shutil.rmtree(links, ignore_errors=True)
            self.child.ask("link", source=source, directory=links, members=members)
        return links

    def rates(self, *places: Path, order: str = "block", cells: int | None = None) -> list[Spread]:
        """Thousands of cells a second from each collection."""

        def measure(place: Path) -> float:
            request = partial(self.child.ask, "epoch", path=place, order=order)
            return epoch_rate(partial(request, cells=1_024), self.seconds)

        for place in places:
            first = self.cells if cells is None else cells
            self.child.ask("epoch", path=place, order=order, cells=first)
        return list(spreads({str(p): partial(measure, p) for p in places}, self.repeats).values())


def memmap(bench: ScaleBench) -> list[Outcome]:
    few, many, most = map(bench.collection, (bench.few, bench.many, bench.most))
    rates = bench.rates(few, many, most)
    outcomes = [
        ratio(
            f"{n:,} memmap members over {bench.few}, block order",
            rate,
            rates[0],
            RATE,
            required=bound,
        )
        for n, bound, rate in ((bench.many, 0.85, rates[1]), (bench.most, 0.7, rates[2]))
    ]
    rates = bench.rates(few, most, order="random")
    what = f"{bench.most:,} memmap members over {bench.few}, random order"
    return [*outcomes, ratio(what, rates[1], rates[0], RATE, required=0.5)]


def zarr(bench: ScaleBench) -> list[Outcome]:
    places = [bench.collection(n, ".zarr") for n in (bench.few, bench.many)]
    few, many = bench.rates(*places, cells=bench.cells // 5)
    what = f"{bench.many:,} Zarr members over {bench.few}, block order"
    return [ratio(what, many, few, RATE, required=0.85)]


def obs(bench: ScaleBench) -> list[Outcome]:
    path = bench.collection(bench.most)
    what = f"loader of {bench.most:,} members with one column of obs"
    bench.child.ask("forgotten", path=path)
    outcomes = _watched(bench, what, 3, 300, "with_obs", path=path)
    bench.child.ask("kept", path=path)
    outcomes += _watched(bench, f"{what} that the manifest keeps", 0.5, 300, "with_obs", path=path)
    bench.child.ask("forgotten", path=path)
    return outcomes


def _watched(
    bench: ScaleBench, what: str, seconds: float, megabytes: float, do: str, **arguments: Any
) -> list[Outcome]:
    """Time and memory of a command, each time in a new process."""
    runs = []
    for _ in range(bench.repeats):
        with Child(CHILD) as child:
            runs.append(child.watched(do, **arguments))
    times = Spread.of([run.report["seconds"] for run in runs])
    outcomes = [Outcome(f"{what}: time", at_most(seconds, "s"), times)]
    if memory := Spread.of_known(run.peak_megabytes for run in runs):
        outcomes.append(Outcome(f"{what}: memory", at_most(megabytes, "MB"), memory))
    return outcomes


#: What is read of a large table, and the most seconds and megabytes of that for 20 M cells.
_READS = {
    "column": ("one column of obs, without names", 0.3, 300),
    "obs": ("obs", 6, 3_000),
    "arrow": ("obs, with text in Arrow's memory", 6, 1_500),
    "where": ("where, of two columns", 1, 300),
    "balanced": ("loader in balanced order", 1.5, 500),
    "split": ("split by donor", 1.5, 500),
}


def tables(bench: ScaleBench) -> list[Outcome]:
    path, outcomes = bench.table(), []
    for read, (what, seconds, megabytes) in _READS.items():
        described = f"{bench.rows:,} cells: {what}"
        outcomes += _watched(bench, described, seconds, megabytes, "table", path=path, read=read)
    return outcomes


def manifest(bench: ScaleBench) -> list[Outcome]:
    path, written, opened = bench.collection(bench.most), [], []
    for _ in range(bench.repeats):
        with Child(CHILD) as child:
            child.ask("ready")
            written.append(child.ask("manifest", directory=path)["seconds"])
            opened.append(child.ask("opened", path=path)["seconds"])
    what = f"manifest of {bench.most:,} members"
    return [
        Outcome(f"{what}: written", at_most(6, "s"), Spread.of(written)),
        Outcome(f"{what}: opened with it", at_most(0.3, "s"), Spread.of(opened)),
    ]


def shuffle(bench: ScaleBench) -> list[Outcome]:
    path = bench.collection(bench.few)
    target = path.with_name("flattened")

    def flatten(seed: int | None) -> ChildRun:
        shutil.rmtree(target, ignore_errors=True)
        # Writing back what was written before must not slow this one.
        os.sync()
        with Child(CHILD) as child:
            return child.watched("flattened", path=path, target=target, shuffle=seed)

    seeds: dict[str, int | None] = {"plain": None, "shuffled": 0}
    turns = {name: partial(flatten, seed) for name, seed in seeds.items()}
    runs = take_turns(turns, bench.repeats)
    plain, shuffled = (
        Spread.of([run.report["cells"] / run.report["seconds"] / 1e3 for run in runs[name]])
        for name in seeds
    )
    what = f"shuffled flatten of {bench.few} memmap members"
    outcomes = [ratio(f"{what} over plain", shuffled, plain, RATE, required=0.35)]
    if memory := Spread.of_known(run.peak_megabytes for run in runs["shuffled"]):
        outcomes.append(Outcome(f"{what}: memory", at_most(500, "MB"), memory))
    return outcomes


CASES: dict[str, Callable[[ScaleBench], list[Outcome]]] = {
    "memmap": memmap,
    "zarr": zarr,
    "obs": obs,
    "manifest": manifest,
    "shuffle": shuffle,
    "tables": tables,
}
