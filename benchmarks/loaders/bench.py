"""Archives, the processes that read them, and rates, for all cases."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from benchmarks.common.annbatch import PRELOAD, PRELOAD_CELLS
from benchmarks.common.bench import Bench
from benchmarks.common.child import Child, ChildRun
from benchmarks.common.hardware import copy_rate
from benchmarks.common.libraries import ANNBATCH, BLOCK, MEMMAP, conversion_options, fresh_child
from benchmarks.common.measure import Spread, epoch_rate, spreads
from benchmarks.common.peers import THEIRS

FAST, BALANCED = "fast", "balanced"
BIONEMO, SCDATASET, ANNLOADER = "bionemo-scdl", "scDataset", "AnnLoader"
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
    """A loader: its process, the archive that it reads, and its name in `readers`."""

    process: str
    archive: str
    via: str
    orders: tuple[str, ...] = ("sequential", "random")
    #: Orders in which it is so slow that only a part of an epoch is read, and the cells of that
    #: part: as many as annbatch reads at once, since fewer would take as long.
    slow: tuple[str, ...] = ()
    part: int = PRELOAD_CELLS
    workers: bool = True
    dense: bool = True

    def order(self, wanted: str) -> str:
        """The wanted order, or random order for a loader that lacks it."""
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


@dataclass(kw_only=True)
class LoaderBench(Bench):
    """Archives and the processes that read them, each created on first use.

    Attributes
    ----------
    python
        The interpreter of annbatch; None if it is not available.
    whole
        Whether to measure all loaders in every case.
    """

    python: Path | None
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
        """Loaders that are available here."""
        absent = set()
        if self.python is None:
            absent.add(ANNBATCH)
        if importlib.util.find_spec("scdataset") is None:
            absent.add(SCDATASET)
        return [name for name in READERS if name not in absent]

    def child(self, name: str) -> Child:
        """The process in which a library reads."""
        process = READERS[name].process
        if process not in self._children:
            self._children[process] = self._stack.enter_context(self.fresh(name))
        return self._children[process]

    def fresh(self, name: str) -> Child:
        """Start a process for a loader."""
        if READERS[name].process == ANNBATCH:
            return fresh_child(ANNBATCH, self.python)
        return Child("benchmarks.loaders.child")

    # -- archives --------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """The archive that a loader reads."""
        return self.archive(READERS[name].archive)

    def archive(self, name: str) -> Path:
        """The archive of that name: written once, and compared with the first one."""
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
                source, options = self.workspace.h5ad().absolute(), conversion_options(name)
                child.ask("convert", source=source, target=path, **options)
            return path, child.ask("sums", path=path)["sums"]

    def _file(self, name: str) -> str:
        cells = self.workspace.spec.cells
        return f"{cells}.h5ad" if name == COUNTS else f"{cells}-{name}"

    def large(self) -> Path:
        """The cells of the memmap archive, repeated; kept from run to run."""
        path = self.archive(MEMMAP)
        target = path.with_name(f"{path.name}-{self.times}-times")
        with self.fresh("memmap") as child:
            child.ask("concatenate", path=path, times=self.times, target=target)
        return target

    # -- rates -----------------------------------------------------------------------------

    def rates(self, setting: Setting, needed: Sequence[str] = ()) -> dict[str, Spread]:
        """Thousands of cells a second of all loaders that support a setting, measured once.

        Unless the bench is `whole`, only those that are `needed`; `MEMCPY` only if needed.
        """
        if setting not in self._rates:
            names = [name for name in self.names if _supports(READERS[name], setting)]
            if not self.whole:
                names = [name for name in names if name in needed]
            measures = {name: self.rate(name, setting) for name in names}
            if MEMCPY in needed:
                measures[MEMCPY] = self._copying(setting.batch)
            self._rates[setting] = spreads(measures, self.repeats, warm_up=False)
            for process in {READERS[name].process for name in names} - {ANNBATCH}:
                self._children[process].ask("close")
        return self._rates[setting]

    def rate(self, name: str, setting: Setting, **options: Any) -> Callable[[], float]:
        """Run a first epoch of a loader, and return a measurement of the next ones."""
        epoch = partial(self.child(name).ask, "epoch", **self.request(name, setting) | options)
        epoch()
        return lambda: epoch_rate(epoch, self.seconds)

    def request(self, name: str, setting: Setting) -> dict[str, Any]:
        """The request of an epoch to the process of a loader."""
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
        """One epoch in a fresh process, with its memory over that after import."""
        with self.fresh(name) as child:
            imported: list[int | None] = []
            if name != ANNBATCH:
                imported = child.ask("imports", reader=READERS[name].via)["anonymous"]
            run = child.watched("epoch", **self.request(name, setting))
        return ChildRun(run.report | {"imported": imported}, run.baseline, run.peak)


def _supports(reader: Reader, setting: Setting) -> bool:
    """Whether to measure a loader; where others read blocks, the reference reads single cells."""
    if (setting.workers and not reader.workers) or (setting.layout == "dense" and not reader.dense):
        return False
    return setting.order in reader.orders or reader.archive == BIONEMO


def _write_counts(source: Path, target: Path) -> list[int]:
    """Copy an h5ad file with the counts in X, where loaders of AnnData expect them.

    Returns
    -------
    list
        Sums, as those of `scdl_child` and `annbatch_child`.
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
