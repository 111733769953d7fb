"""Cases whose cells come from the disk: with an empty page cache, and with little memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.common import page_cache
from benchmarks.common.annbatch import DISK_BLOCK, DISK_PRELOAD
from benchmarks.common.child import Child, ChildRun
from benchmarks.common.control_group import memory_limit
from benchmarks.common.libraries import ANNBATCH, conversion_options, fresh_child
from benchmarks.common.measure import Spread, take_turns
from benchmarks.common.report import Outcome, at_least, figure, ratio
from benchmarks.scale.cases import RATE, ScaleBench
from benchmarks.scale.remote import STORAGE_CHILD, Run, rates

#: Read-ahead settings of the disk to try, in kilobytes.
_READ_AHEAD = (128, 8_192)
#: Memory of the control group, and what an epoch reads in it at most, bytes.
_LIMIT, _LIMITED_EPOCH = 2_000_000_000, 8_000_000_000
#: Its longest duration over that of a rate: most of it must come after the first 2 GB.
_LONGEST = 6
_ORDERS = ("block", "sequential", "random")
_BATCH = 1_024
#: Size of the files of all libraries over that of the memmap archive.
_FILES = 1.7
#: Share of an archive that may stay in the page cache.
_STILL_CACHED = 0.05


def disk(bench: ScaleBench) -> list[Outcome]:
    if (members := _members(bench)) is None:
        return []
    archives = {suffix: bench.flattened(members, suffix) for suffix in ("", ".zarr")}
    outcomes = []
    for kilobytes in _READ_AHEAD[: 1 if bench.is_toy else None]:
        with ExitStack() as stack:
            stack.enter_context(_read_ahead(archives[""], kilobytes))
            child = stack.enter_context(Child(STORAGE_CHILD))
            measures = {
                order: partial(_epoch, child, bench, archives[""], order) for order in _ORDERS
            }
            measures["Zarr"] = partial(_epoch, child, bench, archives[".zarr"], "block")
            if bench.python is not None:
                theirs = stack.enter_context(fresh_child(ANNBATCH, bench.python))
                measures[ANNBATCH] = _their_epoch(theirs, bench, _their_archive(bench, members))
            runs = take_turns(measures, bench.repeats)
        outcomes += _compared(f"from disk, read-ahead of {kilobytes:,} kB", runs)
    return outcomes


def _compared(ahead: str, runs: dict[str, list[Run]]) -> list[Outcome]:
    kept = max(run["kept"] for found in runs.values() for run in found)
    if kept > _STILL_CACHED:
        print(f"disk: left out, since {kept:.0%} of an archive stays in the page cache")
        return []
    useful = [run["useful"] / max(run["read"], 1) for run in runs["block"]]
    block, sequential, random = (rates(runs[order]) for order in _ORDERS)
    outcomes = [
        Outcome(f"{ahead}: useful bytes, block order", at_least(0.9, ""), Spread.of(useful)),
        ratio(f"{ahead}: block over sequential order", block, sequential, RATE, required=0.9),
        ratio(f"{ahead}: random over sequential order", random, sequential, RATE),
    ]
    for what, name, required in (("memmap", "block", 2.0), ("Zarr balanced", "Zarr", 1.5)):
        if ANNBATCH in runs:
            ours, theirs = _with_first(runs[name]), rates(runs[ANNBATCH])
            beside = f"{ahead}: {what} over annbatch, block order"
            outcomes.append(ratio(beside, ours, theirs, RATE, required=required))
    return outcomes


def _with_first(runs: list[Run]) -> Spread:
    """Thousands of cells a second since the archive was open, as they are counted of annbatch."""
    return Spread.of([run["all_cells"] / run["all_seconds"] / 1e3 for run in runs])


# -- archives ------------------------------------------------------------------------------


def _members(bench: ScaleBench) -> int | None:
    """How many times an archive from disk has the cells; None if it cannot be measured here."""
    if sys.platform != "linux":
        print("disk: left out, since only Linux lets a program empty the page cache")
        return None
    one = sum(file.stat().st_size for file in page_cache.files(bench.one()))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    members = int(1.1 * memory) // one + 1
    if bench.disk_cells is not None:
        members = max(bench.disk_cells // bench.workspace.spec.cells, 1)
    made = (bench.place / f"flat-{members}").exists()
    if not made and members * one * _FILES > shutil.disk_usage(bench.place).free:
        print(f"disk: left out, since its files need {members * one * _FILES / 1e9:.0f} GB: "
              "--disk-cells makes them smaller")  # fmt: skip
        return None
    if members * one < memory:
        print(f"disk: the archive of {members * one / 1e9:.1f} GB fits into memory")
    return members


def _their_archive(bench: ScaleBench, members: int) -> Path:
    """The same cells as annbatch stores them, shuffled as it recommends; made if missing."""
    path = bench.place / f"{ANNBATCH}-{members}"
    if not path.exists():
        scratch = path.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        with fresh_child(ANNBATCH, bench.python) as child:
            source = bench.workspace.h5ad().absolute()
            more = {"times": members, "shuffle": True, "dataset": "2GB"}
            child.ask("convert", source=source, target=scratch, **more,
                      **conversion_options(ANNBATCH))  # fmt: skip
        scratch.rename(path)
    return path


# -- epochs --------------------------------------------------------------------------------


def _epoch(child: Child, bench: ScaleBench, path: Path, order: str) -> Run:
    kept = page_cache.drop(path)
    warm = bench.one(path.suffix)
    run = child.ask("epoch", path=path, warm=warm, order=order, seconds=bench.seconds)
    return run | {"kept": kept}


def _their_epoch(child: Child, bench: ScaleBench, path: Path) -> Callable[[], Run]:
    """Start a loader of annbatch, and return a measurement of another one."""
    settings = {"block": DISK_BLOCK, "preload": DISK_PRELOAD, "batch": _BATCH}

    def measure() -> Run:
        kept = page_cache.drop(path)
        run = child.ask("new_epoch", path=path, seconds=bench.seconds, **settings)
        return run | {"kept": kept}

    child.ask("new_epoch", path=path, seconds=0, **settings)
    return measure


@contextlib.contextmanager
def _read_ahead(path: Path, kilobytes: int) -> Iterator[None]:
    """Set the read-ahead of the disk, where that is allowed."""
    device = path.stat().st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    setting, before = Path(f"/sys/dev/block/{numbers}/queue/read_ahead_kb"), None
    if not setting.exists():
        # A partition has the setting of its disk.
        setting = Path(f"/sys/dev/block/{numbers}/../queue/read_ahead_kb")
    with contextlib.suppress(OSError):
        before = setting.read_text()
        setting.write_text(str(kilobytes))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            setting.write_text(before or "")


# -- little memory -------------------------------------------------------------------------


def memory(bench: ScaleBench) -> list[Outcome]:
    if (members := _members(bench)) is None:
        return []
    archives = {"memmap": bench.flattened(members), "Zarr": bench.flattened(members, ".zarr")}
    outcomes = []
    with ExitStack() as stack:
        joins: dict[str, Callable[[int], None] | None] = {"free": None}
        try:
            joins["limited"] = stack.enter_context(memory_limit(_LIMIT))
        except OSError as error:
            print(f"memory: measured without a limit, as no control group can be made: {error}")
        for kilobytes in _READ_AHEAD[: 1 if bench.is_toy else None]:
            for kind, path in archives.items():
                turns = {name: partial(_limited, bench, path, join) for name, join in joins.items()}
                with _read_ahead(path, kilobytes):
                    runs = take_turns(turns, bench.repeats)
                outcomes += _judged(f"{kind} from disk, read-ahead of {kilobytes:,} kB", runs)
    return outcomes


def _limited(bench: ScaleBench, path: Path, join: Callable[[int], None] | None) -> ChildRun:
    """Part of an epoch in a new process, from disk, in a control group or not."""
    with Child(STORAGE_CHILD) as child:
        if join is not None:
            join(child.pid)
        request = {"path": path, "warm": bench.one(path.suffix)}
        cells = child.ask("cells_of", path=path, nbytes=_LIMITED_EPOCH)["cells"]
        page_cache.drop(path)
        return child.watched("epoch", **request, cells=cells, seconds=_LONGEST * bench.seconds)


def _judged(what: str, runs: dict[str, list[ChildRun]]) -> list[Outcome]:
    reports = {name: [run.report for run in found] for name, found in runs.items()}
    limit, outcomes = f"{_LIMIT / 1e9:.0f} GB of memory", []
    if "limited" in reports:
        limited, free = (rates(reports[name]) for name in ("limited", "free"))
        outcomes.append(ratio(f"{what}: with {limit} over all", limited, free, RATE, required=0.9))
    for name, found in runs.items():
        where = f"{what}, with {limit if name == 'limited' else 'all memory'}"
        if peak := Spread.of_known(run.peak_megabytes for run in found):
            outcomes.append(figure(f"{where}: anonymous memory", "MB", peak))
        dirty = Spread.of([run["private_dirty"] / 1e6 for run in reports[name]])
        outcomes.append(figure(f"{where}: private dirty memory at the end", "MB", dirty))
    return outcomes


CASES: dict[str, Callable[[ScaleBench], list[Outcome]]] = {"disk": disk, "memory": memory}
