"""What all cases of the loader benchmark need: archives, processes that read them, and rates."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from benchmarks.common.annbatch import PRELOAD, PRELOAD_CELLS
from benchmarks.common.hardware import copy_rate
from benchmarks.common.measure import ChildRun, Spread, take_turns
from benchmarks.common.peers import THEIRS
from benchmarks.common.child import Child
from benchmarks.common.workspace import Workspace
from benchmarks.zarr.cases import BLOCK, conversion, fresh_child

MEMMAP, FAST, BALANCED = "memmap", "fast", "balanced"
BIONEMO, ANNBATCH, SCDATASET, ANNLOADER = "bionemo-scdl", "annbatch", "scDataset", "AnnLoader"
COUNTS = "h5ad"
MEMCPY = "memcpy"

RATE = "k cells/s"
BATCH, LARGE_BATCH = 64, 1_024


class Setting(NamedTuple):
    """How cells are read."""

    layout: str
    order: str
    batch: int
    workers: int = 0

    def __str__(self) -> str:
        return f"{self.layout} batches of {self.batch:,}, {self.order} order"


class Reader(NamedTuple):
    """Who reads which archive, and by which of the `readers`."""

    process: str
    archive: str
    via: str
    orders: tuple[str, ...] = ("sequential", "random")
    #: Orders in which it is so slow that a part of an epoch has to do, and the cells of that part:
    #: as many as annbatch reads at once, since fewer would take as long.
    slow: tuple[str, ...] = ()
    part: int = PRELOAD_CELLS
    workers: bool = True
    dense: bool = True

    def order(self, wanted: str) -> str:
        """The order that it has in place of the one wanted: cells one by one in place of blocks."""
        return wanted if wanted in self.orders else "random"


DEFAULTS = Setting("csr", "block", BATCH)
SEQUENTIAL = Setting("csr", "sequential", BATCH)
RANDOM = Setting("csr", "random", LARGE_BATCH)
CSR = Setting("csr", "block", LARGE_BATCH)

_BLOCKS = ("sequential", "block", "random")


def _ours(archive: str, via: str) -> Reader:
    orders = _BLOCKS if via == "SingleCellLoader" else _BLOCKS[::2]
    if archive == MEMMAP:
        return Reader("scdl", archive, via, orders)
    if via == "SingleCellLoader":
        return Reader("scdl", archive, via, orders, workers=False)
    return Reader("scdl", archive, via, orders, orders, workers=False, dense=False)


READERS: dict[str, Reader] = {
    "memmap": _ours(MEMMAP, "SingleCellLoader"),
    "fast": _ours(FAST, "SingleCellLoader"),
    "balanced": _ours(BALANCED, "SingleCellLoader"),
    "memmap, DataLoader": _ours(MEMMAP, "DataLoader"),
    "fast, DataLoader": _ours(FAST, "DataLoader"),
    "balanced, DataLoader": _ours(BALANCED, "DataLoader"),
    BIONEMO: Reader(BIONEMO, BIONEMO, BIONEMO),
    ANNBATCH: Reader(ANNBATCH, ANNBATCH, ANNBATCH, _BLOCKS, ("random",), workers=False),
    SCDATASET: Reader(SCDATASET, COUNTS, SCDATASET, _BLOCKS),
    ANNLOADER: Reader(ANNLOADER, COUNTS, ANNLOADER, slow=_BLOCKS, part=1_024, workers=False),
}


@dataclass
class LoaderBench:
    """Archives and the processes that read them, each made when it is first asked for.

    Attributes
    ----------
    workspace
        The data.
    python
        The interpreter of annbatch; None where it cannot be had.
    repeats
        Repetitions of each measurement.
    times
        How many times the cells the large archive has; 0 leaves out what needs it.
    announce
        Prints a line.
    seconds
        Least duration of a measured rate.
    whole
        Whether all loaders are measured wherever some are.
    """

    workspace: Workspace
    python: Path | None
    repeats: int
    times: int
    announce: Callable[[str], None]
    seconds: float = 0.5
    whole: bool = True
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)
    _paths: dict[str, Path] = field(default_factory=dict)
    _children: dict[str, Child] = field(default_factory=dict)
    _sums: Any = None
    _rates: dict[Setting, dict[str, Spread]] = field(default_factory=dict)

    def __enter__(self) -> LoaderBench:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        """Loaders that can be had here."""
        absent = set()
        if self.python is None:
            absent.add(ANNBATCH)
        if importlib.util.find_spec("scdataset") is None:
            absent.add(SCDATASET)
        return [name for name in READERS if name not in absent]

    def child(self, name: str) -> Child:
        """The process in which a library reads, alone."""
        process = READERS[name].process
        if process not in self._children:
            self._children[process] = self._stack.enter_context(self.fresh(name))
        return self._children[process]

    def fresh(self, name: str) -> Child:
        """A process of its own."""
        if READERS[name].process == ANNBATCH:
            return fresh_child(ANNBATCH, self.python)
        return Child("benchmarks.loaders.child")

    # -- archives --------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """What a loader reads."""
        return self.archive(READERS[name].archive)

    def archive(self, name: str) -> Path:
        """An archive of that name: written once, and compared with the one that was first."""
        if name not in self._paths:
            self._paths[name], sums = self._write(name)
            self._sums = self._sums or sums
            if sums != self._sums:
                raise RuntimeError(f"{name} holds another matrix: {sums}, not {self._sums}")
        return self._paths[name]

    def _write(self, name: str) -> tuple[Path, Any]:
        if name == BIONEMO:
            path = self.workspace.archive(THEIRS).absolute()
        else:
            path = self.workspace.directory.absolute() / "loaders" / self._file(name)
            shutil.rmtree(path, ignore_errors=True)
            path.parent.mkdir(parents=True, exist_ok=True)
        if name == COUNTS:
            return path, _write_counts(self.workspace.h5ad(), path)
        with fresh_child(name, self.python) as child:
            if name != BIONEMO:
                child.ask("convert", **conversion(name, self.workspace.h5ad(), path))
            return path, child.ask("sums", path=path)["sums"]

    def _file(self, name: str) -> str:
        cells = self.workspace.spec.cells
        return f"{cells}.h5ad" if name == COUNTS else f"{cells}-{name}"

    def large(self) -> Path:
        """The cells of the memmap archive many times over; kept from run to run."""
        path = self.archive(MEMMAP)
        target = path.with_name(f"{path.name}-{self.times}-times")
        with self.fresh("memmap") as child:
            child.ask("concatenate", path=path, times=self.times, target=target)
        return target

    # -- rates -----------------------------------------------------------------------------

    def rates(self, setting: Setting, needed: Sequence[str] = ()) -> dict[str, Spread]:
        """Thousands of cells a second of all loaders that know a setting, measured once.

        Without the whole matrix only the loaders that are `needed`; only with them, `MEMCPY`.
        """
        if setting not in self._rates:
            names = [name for name in self.names if _knows(READERS[name], setting)]
            if not self.whole:
                names = [name for name in names if name in needed]
            measures = {name: self.rate(name, setting) for name in names}
            if MEMCPY in needed:
                measures[MEMCPY] = self._copying(setting.batch)
            self._rates[setting] = in_turn(measures, self.repeats)
            for process in {READERS[name].process for name in names} - {ANNBATCH}:
                self._children[process].ask("close")
        return self._rates[setting]

    def rate(self, name: str, setting: Setting, **options: Any) -> Callable[[], float]:
        """What measures a loader: epochs, as many as the time takes; the first is over by now."""
        child, request = self.child(name), self.request(name, setting) | options
        child.ask("epoch", **request)

        def measure() -> float:
            cells, seconds = 0, 0.0
            while seconds < self.seconds:
                answer = child.ask("epoch", **request)
                cells, seconds = cells + answer["cells"], seconds + answer["seconds"]
            return cells / seconds / 1e3

        return measure

    def request(self, name: str, setting: Setting) -> dict[str, Any]:
        """What the process of a loader is asked for."""
        reader = READERS[name]
        order = reader.order(setting.order)
        limit = max(1, reader.part // setting.batch) if order in reader.slow else None
        request = {"path": self.path(name), "batch": setting.batch, "limit": limit}
        if name != ANNBATCH:
            beside = {"layout": setting.layout, "workers": setting.workers}
            return request | beside | {"reader": reader.via, "order": order}
        blocks = {"block": 1, "preload": PRELOAD_CELLS}
        if order != "random":
            blocks = {"block": BLOCK, "preload": PRELOAD}
        dense, shuffle = setting.layout == "dense", order != "sequential"
        return request | blocks | {"dense": dense, "shuffle": shuffle}

    def _copying(self, batch: int) -> Callable[[], float]:
        size = sum(file.stat().st_size for file in self.archive(MEMMAP).glob("*.npy"))
        per_cell = size / self.workspace.spec.cells
        return lambda: copy_rate(int(per_cell * batch), self.seconds) / per_cell / 1e3

    def epoch_watched(self, name: str, setting: Setting) -> ChildRun:
        """One epoch in a fresh process, with the memory that it takes over that after import."""
        with self.fresh(name) as child:
            imported: list[int | None] = []
            if name != ANNBATCH:
                imported = child.ask("imports", reader=READERS[name].via)["anonymous"]
            run = child.watched("epoch", **self.request(name, setting))
        return ChildRun(run.report | {"imported": imported}, run.baseline, run.peak)


def in_turn(measures: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Spread]:
    """The repetitions of rates, in turn."""
    return {name: Spread.of(got) for name, got in take_turns(measures, repeats).items()}


def _knows(reader: Reader, setting: Setting) -> bool:
    """Whether a loader takes part: beside blocks, the reference reads cells one by one."""
    if (setting.workers and not reader.workers) or (setting.layout == "dense" and not reader.dense):
        return False
    return setting.order in reader.orders or reader.archive == BIONEMO


def _write_counts(source: Path, target: Path) -> list[int]:
    """Copy an h5ad file with the counts in X, as loaders of AnnData expect them; and add them up.

    The sums are those of `readers_child` and `annbatch_child`.
    """
    target.unlink(missing_ok=True)
    with h5py.File(source) as file, h5py.File(target, "w") as out:
        out.attrs.update(file.attrs)
        for name in file.keys() - {"X", "raw"}:
            file.copy(name, out)
        file.copy("raw/X", out, "X")
        data, indices = (out["X"][name][:].astype("float64") for name in ("data", "indices"))
        cells = int(out["X"].attrs["shape"][0])
        return [cells, len(data), int(data.sum()), int((data * indices).sum())]
