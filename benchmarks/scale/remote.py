"""Cases whose cells are far away: a slow web server, and an S3 server on loopback."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.common.child import Child
from benchmarks.common.measure import Spread, take_turns
from benchmarks.common.report import Outcome, at_least, at_most, figure, ratio
from benchmarks.scale.cases import RATE, ScaleBench

#: Latency of a request in seconds, and bytes per second of a connection.
_LATENCY, _BANDWIDTH = 0.04, 60e6
#: Cells of the epochs that are cached, and batches whose labels are counted.
_CACHED_CELLS, _BATCHES = 100_000, 200
STORAGE_CHILD = "benchmarks.scale.storage_child"
Run = dict[str, Any]


def remote(bench: ScaleBench) -> list[Outcome]:
    source = bench.flattened(bench.few, ".zarr")
    with Child("benchmarks.scale.server") as server, Child(STORAGE_CHILD) as child:
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
    first = spread(runs["far"], "first")
    far, near, again = (rates(runs[name]) for name in measures)
    return [
        ratio("remote Zarr over local, block order", far, near, RATE, required=0.8, note=note),
        Outcome("first batch of remote Zarr", at_most(3, "s"), first, note=note),
        ratio("second epoch with cache_dir over local Zarr", again, near, RATE, required=0.9,
              note=note),
        Outcome("label entropy, remote over random", at_least(0.98, ""), Spread.of([mixed])),
    ]  # fmt: skip


def _second_epoch(child: Child, bench: ScaleBench, url: str) -> Run:
    cache = bench.place / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    request = {"path": url, "warm": bench.one(".zarr"), "cache_dir": cache, "cells": _CACHED_CELLS}
    child.ask("epoch", **request, seconds=1e9)
    return child.ask("epoch", **request, seconds=bench.seconds)


def s3(bench: ScaleBench) -> list[Outcome]:
    if importlib.util.find_spec("moto") is None:
        print("s3: left out, since moto is not installed: pip install 'scdl-store[test]'")
        return []
    source, warm = bench.flattened(bench.few, ".zarr"), bench.one(".zarr")
    with Child("benchmarks.scale.s3_server") as server, Child(STORAGE_CHILD) as child:
        served = server.ask("start", archive=source)
        child.ask("set_variables", variables=served["variables"])
        places = {"s3": served["url"], "local": source}
        request = partial(child.ask, "epoch", warm=warm, seconds=bench.seconds)
        measures = {name: partial(request, path=place) for name, place in places.items()}
        take_turns(measures, 1)
        runs = take_turns(measures, bench.repeats)
    note = "moto in a process of its own, on the same cores, without a simulated latency"
    ours, local = rates(runs["s3"]), rates(runs["local"])
    outcomes = [ratio("Zarr in S3 over local, block order", ours, local, RATE, note=note)]
    for what, name in (("opening", "opened"), ("first batch, with opening", "first")):
        s3, near = spread(runs["s3"], name), spread(runs["local"], name)
        outcomes.append(figure(f"Zarr in S3: {what}", "s", s3, near))
    return outcomes


def rates(runs: list[Run]) -> Spread:
    """Thousands of cells a second after the first batch."""
    return Spread.of([run["cells"] / run["seconds"] / 1e3 for run in runs])


def spread(runs: list[Run], name: str) -> Spread:
    """One figure of all runs."""
    return Spread.of([run[name] for run in runs])


CASES: dict[str, Callable[[ScaleBench], list[Outcome]]] = {"remote": remote, "s3": s3}
