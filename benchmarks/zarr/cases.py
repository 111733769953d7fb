"""The cases: archives of every profile, of memmap and of annbatch, measured on the same cells."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py

from benchmarks.common.annbatch import PRELOAD, PRELOAD_CELLS
from benchmarks.common.bench import Bench, memory_outcome
from benchmarks.common.child import Child, ChildRun
from benchmarks.common.libraries import (
    ANNBATCH,
    BLOCK,
    CELLSTREAM,
    FRAMES,
    MEMMAP,
    conversion_options,
    fresh_child,
)
from benchmarks.common.measure import Spread, epoch_rate, spreads, take_turns
from benchmarks.common.report import Outcome, at_least, at_most, figure, ratio

#: Profiles that programs without scdl read.
INTERCHANGE = ("fast", "balanced", "archive", "portable")
PROFILES = (*FRAMES, *INTERCHANGE)

BATCH, DENSE_BATCH = 1_024, 64
_RANDOM_BATCHES = 8
RATE = "k cells/s"

_BITS = {"packed": 7.5, "packed-fast": 11.7, "fast": 11.5, "balanced": 8.5, "archive": 5.2}
_EPOCH = {"fast": 2.5, "balanced": 1.25, "archive": 0.8}
_COLD = 2.0
#: Of profiles that read single cells, over memmap: speed of epochs, and time of a conversion.
_OVER_MEMMAP = {"CSR epoch": 0.8, "dense epoch": 0.9, "random cells": 0.8}
_CONVERSION = 1.5
_MEGABYTES = 500


@dataclass(kw_only=True)
class ZarrBench(Bench):
    """Archives and the processes that write and read them.

    Attributes
    ----------
    ours, theirs, cellstream
        The processes; those of annbatch and cellstream may be absent.
    python
        The interpreter of annbatch.
    """

    ours: Child
    theirs: Child | None
    cellstream: Child | None
    python: Path | None
    _paths: dict[str, Path] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The archives that can be written here."""
        return (*PROFILES, MEMMAP, *((ANNBATCH,) if self.theirs else ()))

    def child(self, name: str) -> Child:
        """The process that reads an archive."""
        child = {ANNBATCH: self.theirs, CELLSTREAM: self.cellstream}.get(name, self.ours)
        assert child is not None
        return child

    def target(self, name: str) -> Path:
        """Path for an archive; what was there is removed."""
        path = self.workspace.directory / "zarr" / f"{self.workspace.spec.cells}-{name}.zarr"
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.absolute()

    def archive(self, name: str) -> Path:
        """The archive of that name: written once, and compared with the first one."""
        if name not in self._paths:
            path = self.target(name)
            source = self.workspace.h5ad().absolute()
            options = conversion_options(name)
            self.child(name).ask("convert", source=source, target=path, **options)
            self._paths[name] = path
            self._compare(next(iter(self._paths)), name)
        return self._paths[name]

    def _compare(self, first: str, name: str) -> None:
        one, other = (self.child(n).ask("sums", path=self._paths[n]) for n in (first, name))
        if one != other:
            raise RuntimeError(f"{first} and {name} hold different matrices: {one}, {other}")

    def conversion(self, name: str, source: Path) -> ChildRun:
        """Measure one conversion in a fresh process; its archive is removed."""
        target = self.target("measured")
        with fresh_child(name, self.python) as child:
            options = conversion_options(name)
            run = self.workspace.measure_conversion(child, source, target, **options)
        shutil.rmtree(target)
        return run


def bits(bench: ZarrBench) -> list[Outcome]:
    sizes = {name: Spread.of([stored_bits(bench, name)]) for name in bench.names}
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
    return [*outcomes, figure("bits per value, h5ad gzip-4", "bits", packed)]


def stored_bits(bench: ZarrBench, name: str) -> float:
    """Bits of an archive for each stored value."""
    answer = bench.child(name).ask("size", path=bench.archive(name))
    return float(8 * sum(answer["bytes"].values()) / answer["values"])


def _h5ad_bits(path: Path) -> float:
    with h5py.File(path) as file:
        arrays = [file["raw/X"][name] for name in ("data", "indices", "indptr")]
        return float(8 * sum(array.id.get_storage_size() for array in arrays) / len(arrays[0]))


def epoch(bench: ZarrBench) -> list[Outcome]:
    rates = _rates(bench, bench.names, block=BLOCK, batch=BATCH, preload=PRELOAD)
    return _over_theirs("CSR epoch", rates, _EPOCH)


def theirs_on_ours(bench: ZarrBench) -> list[Outcome]:
    """Let annbatch train from archives of scdl, and check the sums of what it reads."""
    if bench.theirs is None:
        return []
    outcomes: list[Outcome] = []
    for profile in INTERCHANGE:
        path = bench.archive(profile)
        expected = bench.ours.ask("sums", path=path)["sums"][:3]
        runs = [bench.theirs.ask("train_from_ours", path=path) for _ in range(bench.repeats)]
        if any(run["sums"] != expected for run in runs):
            raise RuntimeError(f"annbatch reads {path} as {runs[0]['sums']}, expected {expected}")
        speeds = Spread.of([expected[0] / run["seconds"] / 1e3 for run in runs])
        outcomes.append(figure(f"annbatch's loader on scdl's {profile}", RATE, speeds))
    return outcomes


def dense(bench: ZarrBench) -> list[Outcome]:
    rates = _rates(bench, bench.names, block=BLOCK, batch=DENSE_BATCH, preload=PRELOAD, dense=True)
    outcomes = _over_theirs("dense epoch", rates, {})
    if "archive" in rates:
        ours = rates["archive"]
        over = ours.over(rates["balanced"])
        title = "dense epoch, archive over balanced"
        note = (
            f"batches of {DENSE_BATCH} cells as float32; both take 64 blocks at once; annbatch's "
            "loader shuffles the blocks that it takes, and scipy converts its batches to dense"
        )
        outcomes.append(Outcome(title, at_least(1, "x"), over, ours, None, RATE, note))
    return outcomes


def random_cells(bench: ZarrBench) -> list[Outcome]:
    names = [name for name in (*FRAMES, "balanced", MEMMAP, ANNBATCH) if name in bench.names]
    options = {"block": 1, "batch": BATCH, "preload": PRELOAD_CELLS, "limit": _RANDOM_BATCHES}
    return _over_theirs("random cells", _rates(bench, names, **options), {})


def _rates(bench: ZarrBench, names: Sequence[str], **options: Any) -> dict[str, Spread]:
    """Thousands of cells a second of each archive."""
    paths = {name: bench.archive(name) for name in names}
    measures = {name: _rate(bench, name, paths[name], options) for name in names}
    return spreads(measures, bench.repeats)


def _rate(bench: ZarrBench, name: str, path: Path, options: dict[str, Any]) -> Callable[[], float]:
    seeds = iter(range(1_000_000))

    def epoch() -> dict[str, Any]:
        request = dict(options)
        # annbatch's loader has its own random numbers; only it takes `preload`.
        if name != ANNBATCH:
            request["seed"] = next(seeds)
            request.pop("preload")
        return bench.child(name).ask("epoch", path=path, **request)

    return lambda: epoch_rate(epoch, bench.seconds)


def _over_theirs(what: str, rates: dict[str, Spread], required: dict[str, float]) -> list[Outcome]:
    """Compare each of our archives with annbatch's; without that, only their own rates."""
    theirs, memmap = rates.pop(ANNBATCH, None), rates[MEMMAP]
    bound = at_least(_OVER_MEMMAP[what], "x")
    over = [
        Outcome(
            f"{what}, {name} over memmap", bound, rates[name].over(memmap), rates[name], None, RATE
        )
        for name in FRAMES
    ]
    if theirs is None:
        return [figure(f"{what}, {name}", RATE, ours) for name, ours in rates.items()] + over
    return [
        ratio(f"{what}, {name}", ours, theirs, RATE, required=required.get(name))
        for name, ours in rates.items()
    ] + over


def convert(bench: ZarrBench) -> list[Outcome]:
    source = bench.workspace.h5ad()
    names = ("balanced", *FRAMES, MEMMAP, *((ANNBATCH,) if bench.theirs else ()))
    measures = {name: partial(bench.conversion, name, source) for name in names}
    runs = take_turns(measures, bench.repeats)
    seconds = {name: Spread.of([run.report["seconds"] for run in runs[name]]) for name in names}
    ours, theirs = seconds["balanced"], seconds.get(ANNBATCH)
    what, note = "convert to balanced: speed", "both include fsync of all that was written"
    if theirs is None:
        speed: Outcome = figure(what, "s", ours)
    else:
        speed = Outcome(what, at_least(1, "x"), theirs.over(ours), ours, theirs, "s", note)
    bound, memmap = at_most(_CONVERSION, "x"), seconds[MEMMAP]
    over = [
        Outcome(
            f"convert to {name}: time over memmap's",
            bound,
            seconds[name].over(memmap),
            seconds[name],
            None,
            "s",
        )
        for name in FRAMES
    ]
    what = "convert to balanced: memory"
    return [
        speed,
        *over,
        *memory_outcome(what, _MEGABYTES, runs["balanced"], runs.get(ANNBATCH, [])),
    ]


def convert_large(bench: ZarrBench) -> list[Outcome]:
    if not bench.times:
        return []
    run = bench.conversion("balanced", bench.workspace.h5ad(times=bench.times))
    what = f"convert {bench.times} x the cells to balanced: memory"
    note = f"one run, of {run.report['seconds']:.1f} s; "
    return memory_outcome(what, _MEGABYTES, [run], [], note)


def cold(bench: ZarrBench) -> list[Outcome]:
    if sys.platform != "linux":
        print("cold: skipped, since only Linux lets a program empty the page cache")
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
        print(f"cold: skipped, since {kept:.0%} of an archive stays in the page cache")
        return []
    rates = {
        name: Spread.of([run["cells"] / run["seconds"] / 1e3 for run in runs[name]])
        for name in names
    }
    read = "; ".join(f"{name} reads {runs[name][0]['read'] / 1e6:,.0f} MB" for name in names)
    note = f"{kept:.1%} of the archives were still cached, and {read}; opening is included"
    what, memmap = "CSR epoch from disk", rates[MEMMAP]
    outcomes: list[Outcome] = [replace(figure(f"{what}, memmap", RATE, memmap), note=note)]
    if "balanced" in rates:
        ours = rates["balanced"]
        title, bound = f"{what}, balanced over memmap", at_least(_COLD, "x")
        outcomes.append(Outcome(title, bound, ours.over(memmap), ours, None, RATE))
    return outcomes


CASES: dict[str, Callable[[ZarrBench], list[Outcome]]] = {
    "bits": bits,
    "epoch": epoch,
    "interchange": theirs_on_ours,
    "dense": dense,
    "random": random_cells,
    "convert": convert,
    "convert-large": convert_large,
    "cold": cold,
}
