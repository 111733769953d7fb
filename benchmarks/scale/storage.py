"""Cases whose cells do not come from memory: larger than memory, on disk, and far away."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import page_cache
from benchmarks.common.child import Child
from benchmarks.common.measure import Spread, take_turns
from benchmarks.common.report import Figure, Outcome, at_least, at_most
from benchmarks.scale.cases import ScaleBench

#: Read-ahead settings of the disk to try, in kilobytes.
_READ_AHEAD = (128, 8_192)
#: Latency of a request in seconds, and bytes per second of a connection.
_LATENCY, _BANDWIDTH = 0.04, 60e6
#: Cells of the epochs that are cached, and batches whose labels are counted.
_CACHED_CELLS, _BATCHES = 100_000, 200
_RATE = "k cells/s"
_CHILD = "benchmarks.scale.storage_child"
Run = dict[str, Any]


def disk(bench: ScaleBench) -> list[Outcome]:
    path, outcomes = _larger_than_memory(bench), []
    for kilobytes in _READ_AHEAD[: 1 if bench.is_toy else None]:
        with _read_ahead(path, kilobytes), Child(_CHILD) as child:
            orders = ("block", "sequential", "random")
            measures = {order: partial(_from_disk, child, bench, path, order) for order in orders}
            runs = take_turns(measures, bench.repeats)
        rates = {order: _rates(found) for order, found in runs.items()}
        ahead = f"from disk, read-ahead of {kilobytes:,} kB"
        useful = [run["useful"] / max(run["read"], 1) for run in runs["block"]]
        share = Outcome(f"{ahead}: useful bytes, block order", at_least(0.9, ""), Spread.of(useful))
        outcomes += [share, _over(f"{ahead}: block over sequential order", 0.9, rates["block"],
                                  rates["sequential"])]  # fmt: skip
        random = rates["random"].over(rates["sequential"])
        outcomes.append(Figure(f"{ahead}: random over sequential order", at_least(0, "x"), random,
                               rates["random"], rates["sequential"], _RATE))  # fmt: skip
    return outcomes


def _larger_than_memory(bench: ScaleBench) -> Path:
    """A memmap archive larger than memory, if the disk has room for it."""
    one = bench.one()
    size = sum(file.stat().st_size for file in page_cache.files(one))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    room = shutil.disk_usage(bench.place).free // 2
    members = bench.few if bench.is_toy else int(min(1.1 * memory, room) // size)
    if members * size < memory:
        print(f"disk: the archive of {members * size / 1e9:.1f} GB fits into memory")
    return bench.flattened(members)


def _from_disk(child: Child, bench: ScaleBench, path: Path, order: str) -> Run:
    page_cache.drop(path)
    return child.ask("epoch", path=path, warm=bench.one(), order=order, seconds=bench.seconds)


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


def remote(bench: ScaleBench) -> list[Outcome]:
    source = bench.flattened(bench.few, ".zarr")
    with Child("benchmarks.scale.server") as server, Child(_CHILD) as child:
        url = server.ask("start", directory=source.parent, latency=_LATENCY, rate=_BANDWIDTH)["url"]
        url, warm = f"{url}/{source.name}", bench.one(".zarr")
        measures: dict[str, Callable[[], Run]] = {
            "far": partial(child.ask, "epoch", path=url, warm=warm, seconds=bench.seconds),
            "near": partial(child.ask, "epoch", path=source, warm=warm, seconds=bench.seconds),
            "again": partial(_second_epoch, child, bench, url),
        }
        runs = take_turns(measures, bench.repeats)
        mixed = child.ask("mixing", path=url, batches=_BATCHES)["share"]
    note = f"{_LATENCY * 1e3:.0f} ms a request, {_BANDWIDTH / 1e6:.0f} MB/s per connection"
    first = Spread.of([run["first"] for run in runs["far"]])
    far, near, again = (_rates(runs[name]) for name in measures)
    return [
        _over("remote Zarr over local, block order", 0.8, far, near, note),
        Outcome("first batch of remote Zarr", at_most(3, "s"), first, note=note),
        _over("second epoch with cache_dir over local Zarr", 0.9, again, near, note),
        Outcome("label entropy, remote over random", at_least(0.98, ""), Spread.of([mixed])),
    ]


def _second_epoch(child: Child, bench: ScaleBench, url: str) -> Run:
    cache = bench.place / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    request = {"path": url, "warm": bench.one(".zarr"), "cache_dir": cache, "cells": _CACHED_CELLS}
    child.ask("epoch", **request, seconds=1e9)
    return child.ask("epoch", **request, seconds=bench.seconds)


def _rates(runs: list[Run]) -> Spread:
    return Spread.of([run["cells"] / run["seconds"] / 1e3 for run in runs])


def _over(what: str, bound: float, one: Spread, other: Spread, note: str = "") -> Outcome:
    return Outcome(what, at_least(bound, "x"), one.over(other), one, other, _RATE, note)


CASES: dict[str, Callable[[ScaleBench], list[Outcome]]] = {"disk": disk, "remote": remote}
