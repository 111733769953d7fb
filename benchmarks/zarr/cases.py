"""Measure scdl's Zarr archives side by side with annbatch on the same data, in one run.

annbatch runs in an environment of its own, which is made when it is missing. Run
``make bench-zarr``, or ``python -m benchmarks.zarr.cases --help`` for the options.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
from rich.console import Console

from benchmarks.common.annbatch import (
    CELLS_PER_CHUNK,
    PACKAGES,
    PRELOAD,
    PRELOAD_CELLS,
    SHARD,
    annbatch_python,
    tune,
)
from benchmarks.common.measure import ChildRun, Spread, take_turns
from benchmarks.common.options import add_environment, parser
from benchmarks.common.options import workspace as workspace_of
from benchmarks.common.report import IN_TURN, Outcome, Report, at_least, at_most, run
from benchmarks.common.child import THREADS, Child
from benchmarks.common.workspace import Workspace

_FEW_CELLS = 64

PROFILES = ("fast", "balanced", "archive", "portable")
MEMMAP, ANNBATCH = "memmap", "annbatch"

BLOCK, BATCH, DENSE_BATCH = 64, 1_024, 64
_RANDOM_BATCHES = 8
_RATE = "k cells/s"

_BITS = {"fast": 11.5, "balanced": 8.5, "archive": 5.8}
_EPOCH = {"fast": 2.5, "balanced": 1.25, "archive": 0.8}
_COLD = 2.0
_MEGABYTES = 500

_METHOD = IN_TURN + (
    f"Each library has a process of its own and {THREADS} threads. The page cache is warm, but "
    "where a figure says otherwise. Memory is the peak of resident anonymous memory, seen every "
    f"5 ms, over that after import and a conversion of {_FEW_CELLS} cells. "
    "Archives hold the same matrix, of cells and genes in their "
    f"original order. An epoch reads all cells once, in random order of blocks of {BLOCK}, of "
    f"which both take {PRELOAD} at once, as batches of {BATCH:,}; random cells are {BATCH:,} "
    "single ones a batch."
)


class Figure(Outcome):
    """An outcome of which nothing is required."""

    def cells(self) -> list[str]:
        what, _, *figures, _ = super().cells()
        return [what, "-", *figures, "-"]

    def record(self) -> dict[str, Any]:
        return super().record() | {"required": None, "passed": None}


def figure(what: str, unit: str, ours: Spread, theirs: Spread | None) -> Figure:
    """What scdl reached, over what annbatch reached where both are known."""
    if theirs is None or unit != _RATE:
        return Figure(what, at_least(0, unit), ours, ours, theirs, unit)
    return Figure(what, at_least(0, "x"), ours.over(theirs), ours, theirs, unit)


@dataclass
class Bench:
    """What all cases need.

    Attributes
    ----------
    workspace
        The data.
    ours, theirs
        Processes that read and write; annbatch may be absent.
    python
        The interpreter of annbatch.
    repeats
        Repetitions of each measurement.
    times
        How many times the cells the large file has; 0 leaves out what needs it.
    announce
        Prints a line.
    seconds
        Least duration of a measured rate.
    """

    workspace: Workspace
    ours: Child
    theirs: Child | None
    python: Path | None
    repeats: int
    times: int
    announce: Callable[[str], None]
    seconds: float = 1.0
    _paths: dict[str, Path] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the archives that can be had here."""
        return (*PROFILES, MEMMAP, *((ANNBATCH,) if self.theirs else ()))

    def child(self, name: str) -> Child:
        """The process that reads an archive."""
        if name != ANNBATCH:
            return self.ours
        assert self.theirs is not None
        return self.theirs

    def target(self, name: str) -> Path:
        """Where an archive goes; what was there is removed."""
        path = self.workspace.directory / "zarr" / f"{self.workspace.spec.cells}-{name}.zarr"
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.absolute()

    def archive(self, name: str) -> Path:
        """The archive of that name: written once, and compared with the one that was first."""
        if name not in self._paths:
            path = self.target(name)
            self.child(name).ask("convert", **conversion(name, self.workspace.h5ad(), path))
            self._paths[name] = path
            self._compare(next(iter(self._paths)), name)
        return self._paths[name]

    def _compare(self, first: str, name: str) -> None:
        one, other = (self.child(n).ask("sums", path=self._paths[n]) for n in (first, name))
        if one != other:
            raise RuntimeError(f"{first} and {name} hold different matrices: {one}, {other}")

    def conversion(self, name: str, source: Path) -> ChildRun:
        """Measure one conversion in a fresh process, after that of a few cells."""
        few = self.workspace.h5ad(cells=min(_FEW_CELLS, self.workspace.spec.cells))
        with fresh_child(name, self.python) as child:
            child.ask("convert", **conversion(name, few, self.target("few")))
            target = self.target("measured")
            _read_through(source)
            # What was written before must not be written back at the expense of this conversion.
            os.sync()
            run = child.watched("convert", **conversion(name, source, target))
        shutil.rmtree(target)
        return run


def fresh_child(name: str, python: Path | None) -> Child:
    """Start the process that reads and writes archives of that name."""
    if name == ANNBATCH:
        assert python is not None
        return Child("benchmarks.common.annbatch_child", python)
    return Child("benchmarks.common.scdl_child")


def conversion(name: str, source: Path, target: Path) -> dict[str, Any]:
    """What is asked of the process that writes an archive of that name."""
    paths = {"source": source.absolute(), "target": target}
    if name == ANNBATCH:
        return {**paths, "cells_per_chunk": CELLS_PER_CHUNK, "shard": SHARD}
    return {**paths, "profile": name}


def _read_through(path: Path) -> None:
    """Bring a file into the page cache."""
    buffer = bytearray(1 << 22)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def bits(bench: Bench) -> list[Outcome]:
    sizes = {name: Spread.of([_bits(bench, name)]) for name in bench.names}
    theirs = sizes.pop(ANNBATCH, None)
    outcomes: list[Outcome] = []
    for name, ours in sizes.items():
        what = f"bits per value, {name}"
        if name in _BITS:
            bound = at_most(_BITS[name], "bits")
            outcomes.append(Outcome(what, bound, ours, ours, theirs, "bits"))
        else:
            outcomes.append(figure(what, "bits", ours, theirs))
    packed = Spread.of([_h5ad_bits(bench.workspace.h5ad(compression="gzip-4"))])
    return [*outcomes, Figure("bits per value, h5ad gzip-4", at_least(0, "bits"), packed)]


def _bits(bench: Bench, name: str) -> float:
    answer = bench.child(name).ask("size", path=bench.archive(name))
    return float(8 * sum(answer["bytes"].values()) / answer["values"])


def _h5ad_bits(path: Path) -> float:
    with h5py.File(path) as file:
        arrays = [file["raw/X"][name] for name in ("data", "indices", "indptr")]
        return float(8 * sum(array.id.get_storage_size() for array in arrays) / len(arrays[0]))


def epoch(bench: Bench) -> list[Outcome]:
    rates = _rates(bench, bench.names, block=BLOCK, batch=BATCH, preload=PRELOAD)
    return _over_theirs("CSR epoch", rates, _EPOCH)


def theirs_on_ours(bench: Bench) -> list[Outcome]:
    """Let annbatch train from archives of scdl, and see that it gets what is in them."""
    if bench.theirs is None:
        return []
    outcomes: list[Outcome] = []
    for profile in PROFILES:
        path = bench.archive(profile)
        expected = bench.ours.ask("sums", path=path)["sums"][:3]
        runs = [bench.theirs.ask("train_from_ours", path=path) for _ in range(bench.repeats)]
        if any(run["sums"] != expected for run in runs):
            raise RuntimeError(f"annbatch reads {path} as {runs[0]['sums']}, expected {expected}")
        speeds = Spread.of([expected[0] / run["seconds"] / 1e3 for run in runs])
        outcomes.append(figure(f"annbatch's loader on scdl's {profile}", _RATE, speeds, None))
    return outcomes


def dense(bench: Bench) -> list[Outcome]:
    rates = _rates(bench, bench.names, block=BLOCK, batch=DENSE_BATCH, preload=PRELOAD, dense=True)
    outcomes = _over_theirs("dense epoch", rates, {})
    if "archive" in rates:
        ours = rates["archive"]
        ratio = ours.over(rates["balanced"])
        title = "dense epoch, archive over balanced"
        note = (
            f"batches of {DENSE_BATCH} cells as float32; both take 64 blocks at once; annbatch's "
            "loader shuffles the blocks that it takes, and scipy makes its batches dense"
        )
        outcomes.append(Outcome(title, at_least(1, "x"), ratio, ours, None, _RATE, note))
    return outcomes


def random_cells(bench: Bench) -> list[Outcome]:
    names = [name for name in ("balanced", MEMMAP, ANNBATCH) if name in bench.names]
    options = {"block": 1, "batch": BATCH, "preload": PRELOAD_CELLS, "limit": _RANDOM_BATCHES}
    return _over_theirs("random cells", _rates(bench, names, **options), {})


def _rates(bench: Bench, names: Sequence[str], **options: Any) -> dict[str, Spread]:
    """Thousands of cells a second of each: a warm-up, then the repetitions in turn."""
    paths = {name: bench.archive(name) for name in names}
    measures = {name: _rate(bench, name, paths[name], options) for name in names}
    take_turns(measures, 1)
    return {name: Spread.of(got) for name, got in take_turns(measures, bench.repeats).items()}


def _rate(bench: Bench, name: str, path: Path, options: dict[str, Any]) -> Callable[[], float]:
    seeds = iter(range(1_000_000))

    def measure() -> float:
        cells, seconds = 0, 0.0
        # An epoch may be over in an instant.
        while seconds < bench.seconds:
            request = dict(options)
            # annbatch's loader goes on with random numbers of its own; scdl needs no settings.
            if name != ANNBATCH:
                request["seed"] = next(seeds)
                request.pop("preload")
            answer = bench.child(name).ask("epoch", path=path, **request)
            cells, seconds = cells + answer["cells"], seconds + answer["seconds"]
        return cells / seconds / 1e3

    return measure


def _over_theirs(what: str, rates: dict[str, Spread], required: dict[str, float]) -> list[Outcome]:
    """An outcome for each of our archives; without annbatch only what they reach."""
    theirs = rates.get(ANNBATCH)
    outcomes: list[Outcome] = []
    for name, ours in rates.items():
        title = f"{what}, {name}"
        if theirs is not None and name in required:
            bound = at_least(required[name], "x")
            outcomes.append(Outcome(title, bound, ours.over(theirs), ours, theirs, _RATE))
        elif name != ANNBATCH:
            outcomes.append(figure(title, _RATE, ours, theirs))
    return outcomes


def convert(bench: Bench) -> list[Outcome]:
    source = bench.workspace.h5ad()
    names = ("balanced", *((ANNBATCH,) if bench.theirs else ()))
    measures = {name: partial(bench.conversion, name, source) for name in names}
    runs = take_turns(measures, bench.repeats)
    seconds = {name: Spread.of([run.report["seconds"] for run in runs[name]]) for name in names}
    ours, theirs = seconds["balanced"], seconds.get(ANNBATCH)
    what, note = "convert to balanced: speed", "both include fsync of all that was written"
    if theirs is None:
        speed: Outcome = figure(what, "s", ours, None)
    else:
        speed = Outcome(what, at_least(1, "x"), theirs.over(ours), ours, theirs, "s", note)
    what = "convert to balanced: memory"
    return [speed, *_memory(what, runs["balanced"], runs.get(ANNBATCH, []))]


def convert_large(bench: Bench) -> list[Outcome]:
    if not bench.times:
        return []
    run = bench.conversion("balanced", bench.workspace.h5ad(times=bench.times))
    what = f"convert {bench.times} x the cells to balanced: memory"
    return _memory(what, [run], [], f"one run, of {run.report['seconds']:.1f} s; ")


def _memory(
    what: str, ours: list[ChildRun], theirs: list[ChildRun], note: str = ""
) -> list[Outcome]:
    """Peaks over that after the conversion of a few cells, and from import on in the note."""
    our_peaks, their_peaks = (
        _known([run.peak_megabytes for run in side]) for side in (ours, theirs)
    )
    over_import = _known([run.peak_over(run.report["imported"]) for run in ours])
    if our_peaks is None or over_import is None:
        return []
    note += f"scdl's peak over what it was before those few cells is {over_import.median:.0f} MB"
    bound = at_most(_MEGABYTES, "MB")
    return [Outcome(what, bound, our_peaks, our_peaks, their_peaks, "MB", note)]


def _known(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread.of(known) if known else None


def cold(bench: Bench) -> list[Outcome]:
    if sys.platform != "linux":
        bench.announce("cold: left out, as the page cache is dropped as Linux does it")
        return []
    names = [name for name in ("balanced", MEMMAP) if name in bench.names]
    paths = {name: bench.archive(name) for name in names}

    def measure(name: str) -> dict[str, Any]:
        return bench.ours.ask("cold_epoch", path=paths[name], block=BLOCK, batch=BATCH, seed=0)

    measures = {name: partial(measure, name) for name in names}
    take_turns(measures, 1)
    runs = take_turns(measures, bench.repeats)
    kept = max(run["resident"] for name in names for run in runs[name])
    if kept > 0.05:
        bench.announce(f"cold: left out, as {kept:.0%} of an archive stay in the page cache")
        return []
    rates = {
        name: Spread.of([run["cells"] / run["seconds"] / 1e3 for run in runs[name]])
        for name in names
    }
    read = "; ".join(f"{name} reads {runs[name][0]['read'] / 1e6:,.0f} MB" for name in names)
    note = f"{kept:.1%} of the archives were still cached, and {read}; opening is included"
    what, memmap = "CSR epoch from disk", rates[MEMMAP]
    outcomes: list[Outcome] = [
        Figure(f"{what}, memmap", at_least(0, _RATE), memmap, memmap, None, _RATE, note)
    ]
    if "balanced" in rates:
        ours = rates["balanced"]
        title, bound = f"{what}, balanced over memmap", at_least(_COLD, "x")
        outcomes.append(Outcome(title, bound, ours.over(memmap), ours, None, _RATE))
    return outcomes


CASES: dict[str, Callable[[Bench], list[Outcome]]] = {
    "bits": bits,
    "epoch": epoch,
    "interchange": theirs_on_ours,
    "dense": dense,
    "random": random_cells,
    "convert": convert,
    "convert-large": convert_large,
    "cold": cold,
}


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    described = "Measure Zarr archives side by side with annbatch."
    made = parser(described, CASES, 10, "a second file of N x the cells; 0: none")
    made.add_argument("--tune", action="store_true", help="try settings of annbatch, no more")
    add_environment(made)
    return made.parse_args(arguments)


def main(arguments: list[str] | None = None) -> Report | None:
    """Run the cases, print the report and write it."""
    options = _parse_arguments(arguments)
    console = Console()
    workspace = workspace_of(options)
    python, absence = annbatch_python(options.environment, make=not options.quick)
    repeats, times, seconds = options.repeats, options.large, 1.0
    if options.quick:
        repeats, times, seconds = 1, 2, 0.02
    with ExitStack() as stack:
        theirs = stack.enter_context(fresh_child(ANNBATCH, python)) if python else None
        if options.tune:
            if theirs is None:
                raise SystemExit(f"annbatch is missing: {absence}")
            tune(
                theirs, workspace.h5ad().absolute(), workspace.directory / "zarr", repeats, console
            )
            return None
        ours = stack.enter_context(fresh_child(MEMMAP, None))
        bench = Bench(workspace, ours, theirs, python, repeats, times, console.print, seconds)
        found = run(CASES, bench, options.only, console)
        remarks = [_their_settings(theirs) if theirs else f"annbatch is left out: {absence}."]
    report = Report(
        [*chain.from_iterable(found)],
        str(workspace.spec),
        PACKAGES[0].replace("==", " "),
        _METHOD.format(repeats=repeats),
        remarks,
    )
    return report.publish(console, options.results, "bench-zarr")


def _their_settings(child: Child) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in child.ask("versions").items())
    return (
        f"annbatch: {versions}; the pipeline of zarrs; {CELLS_PER_CHUNK} cells a chunk, shards of "
        f"{SHARD}, its default compression; its loader takes {PRELOAD} blocks at a time, or "
        f"{PRELOAD_CELLS:,} single cells."
    )


if __name__ == "__main__":
    main()
