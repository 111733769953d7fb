"""Rates from disk, with an empty page cache."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.common import page_cache
from benchmarks.common.hardware import disk_seconds
from benchmarks.common.libraries import FRAMES
from benchmarks.common.measure import Spread, take_turns
from benchmarks.common.report import Outcome, ratio
from benchmarks.loaders.bench import (
    BALANCED,
    BIONEMO,
    CSR,
    DEFAULTS,
    FAST,
    MEMMAP,
    RANDOM,
    RATE,
    READERS,
    SEQUENTIAL,
    LoaderBench,
    Setting,
)
from benchmarks.loaders.report import Findings

_DISK = "the disk"
_STILL_CACHED = 0.05

# A loader and its setting, those that it is compared with, and the required ratio.
_Row = tuple[str, Setting, str, Setting, float | None]
_REQUIRED: tuple[_Row, ...] = (
    (MEMMAP, RANDOM, BIONEMO, RANDOM, 4),
    (MEMMAP, CSR, _DISK, CSR, 0.6),
    (BALANCED, CSR, MEMMAP, CSR, 1.5),
    (FAST, CSR, MEMMAP, CSR, None),
    (MEMMAP, DEFAULTS, MEMMAP, SEQUENTIAL, 0.6),
)
_RANDOM_CELLS: tuple[_Row, ...] = tuple((name, RANDOM, MEMMAP, RANDOM, 2) for name in FRAMES)


def cold(bench: LoaderBench) -> Findings:
    return _compared(bench, _REQUIRED)


def cold_random(bench: LoaderBench) -> Findings:
    return _compared(bench, _RANDOM_CELLS)


def _compared(bench: LoaderBench, required: Sequence[_Row]) -> Findings:
    if sys.platform != "linux":
        print("cold: skipped, since only Linux lets a program empty the page cache")
        return Findings()
    sides = [side for row in required for side in (row[:2], row[2:4])]
    measures = {_title(*side): partial(_epoch, bench, *side) for side in sides}
    take_turns(measures, 1)
    runs = take_turns(measures, bench.repeats)
    kept = max(run["resident"] for answers in runs.values() for run in answers)
    if kept > _STILL_CACHED:
        print(f"cold: skipped, since {kept:.0%} of an archive stays in the page cache")
        return Findings()
    print(f"cold: {kept:.1%} of an archive stayed in the page cache at most")
    rates = {
        name: Spread.of([run["cells"] / run["seconds"] / 1e3 for run in answers])
        for name, answers in runs.items()
    }
    return Findings([_outcome(rates, *row) for row in required])


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
    return ratio(what, one, other, RATE, required=limit)


def _epoch(bench: LoaderBench, name: str, setting: Setting) -> dict[str, Any]:
    """One epoch, including opening; or a plain read of the same files."""
    path = bench.archive(MEMMAP if name == _DISK else name)
    # Archives that no loader is named after are read by the loader of memmap.
    reader = name if name in READERS else MEMMAP
    child = bench.child(reader)
    child.ask("close")
    resident = page_cache.drop(path)
    if name == _DISK:
        answer = {"seconds": disk_seconds(path), "cells": bench.workspace.spec.cells}
    else:
        answer = child.ask("epoch", **bench.request(reader, setting) | {"path": path})
    return answer | {"resident": resident}
