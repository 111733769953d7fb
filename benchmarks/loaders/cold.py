"""Rates with nothing in the page cache."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from benchmarks.common import page_cache
from benchmarks.common.hardware import disk_seconds
from benchmarks.loaders.bench import (
    BALANCED,
    BIONEMO,
    CSR,
    DEFAULTS,
    FAST,
    MEMMAP,
    RANDOM,
    RATE,
    SEQUENTIAL,
    LoaderBench,
    Setting,
)
from benchmarks.loaders.report import Findings
from benchmarks.common.measure import Spread, take_turns
from benchmarks.common.report import Outcome, at_least
from benchmarks.zarr.cases import Figure

_DISK = "the disk"
_STILL_CACHED = 0.05

# Who, in which setting, over whom, in which setting, and what is required of that.
_REQUIRED: tuple[tuple[str, Setting, str, Setting, float | None], ...] = (
    (MEMMAP, RANDOM, BIONEMO, RANDOM, 4),
    (MEMMAP, CSR, _DISK, CSR, 0.6),
    (BALANCED, CSR, MEMMAP, CSR, 1.5),
    (FAST, CSR, MEMMAP, CSR, None),
    (MEMMAP, DEFAULTS, MEMMAP, SEQUENTIAL, 0.6),
)


def cold(bench: LoaderBench) -> Findings:
    if sys.platform != "linux":
        bench.announce("cold: left out, as the page cache is dropped as Linux does it")
        return Findings()
    sides = [side for row in _REQUIRED for side in (row[:2], row[2:4])]
    measures = {_title(*side): partial(_epoch, bench, *side) for side in sides}
    take_turns(measures, 1)
    runs = take_turns(measures, bench.repeats)
    kept = max(run["resident"] for answers in runs.values() for run in answers)
    if kept > _STILL_CACHED:
        bench.announce(f"cold: left out, as {kept:.0%} of an archive stay in the page cache")
        return Findings()
    bench.announce(f"cold: {kept:.1%} of an archive stayed in the page cache at most")
    rates = {
        name: Spread.of([run["cells"] / run["seconds"] / 1e3 for run in answers])
        for name, answers in runs.items()
    }
    return Findings([_outcome(rates, *row) for row in _REQUIRED])


def _title(name: str, setting: Setting) -> str:
    return f"{name}, {setting}"


def _outcome(
    rates: dict[str, Spread],
    ours: str,
    setting: Setting,
    theirs: str,
    their_setting: Setting,
    limit: float | None,
) -> Outcome:
    one, other = rates[_title(ours, setting)], rates[_title(theirs, their_setting)]
    beside = f"{their_setting.order} order" if ours == theirs else theirs
    what = f"from disk, {ours} over {beside}: {setting}"
    kind = Figure if limit is None else Outcome
    return kind(what, at_least(limit or 0, "x"), one.over(other), one, other, RATE)


def _epoch(bench: LoaderBench, name: str, setting: Setting) -> dict[str, Any]:
    """One epoch, opening included; or the same cells as fast as the disk gives them."""
    path = bench.archive(MEMMAP) if name == _DISK else bench.path(name)
    child = bench.child(MEMMAP if name == _DISK else name)
    child.ask("close")
    resident = page_cache.drop(path)
    if name == _DISK:
        answer = {"seconds": disk_seconds(path), "cells": bench.workspace.spec.cells}
    else:
        answer = child.ask("epoch", **bench.request(name, setting))
    return answer | {"resident": resident}
