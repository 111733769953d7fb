"""Four processes read an archive epoch by epoch while this one converts and changes it in place.

Descriptors, threads and anonymous memory of the readers must not grow, and neither may those of a
process that abandons loaders in the middle of an epoch.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import scdl
from benchmarks.common.child import Child
from benchmarks.common.measure import Spread
from benchmarks.common.report import Outcome, at_most
from benchmarks.soak.processes import Usage, growth
from benchmarks.torture.archives import write_archive, write_source
from benchmarks.torture.setting import Setting

READERS = 4
KINDS = ("memmap", "zarr")
EPOCHS, TIMES, CELLS = 150, 1_000, 5_000


def soak(place: Path, kind: str, epochs: int, times: int, cells: int) -> list[Outcome]:
    """Run readers beside a writer, then abandon loaders, on one kind of archive."""
    (home := place / f"soak-{kind}").mkdir()
    source = write_source(home / "cells.h5ad", cells, 200)
    archive = write_archive(source, home / "archive", kind)
    done = threading.Event()
    # Children end before the pool does, also where one of them failed.
    with ThreadPoolExecutor(READERS + 1) as pool, ExitStack() as stack:
        writing = pool.submit(_keep_writing, source, archive, kind, done)
        stack.callback(done.set)
        readers = [stack.enter_context(_child()) for _ in range(READERS)]
        asked = [pool.submit(_grown, child, "read", archive, epochs) for child in readers]
        grown = [reading.result() for reading in asked]
    note = f"{READERS} readers, {epochs} epochs, {writing.result()} conversions and casts meanwhile"
    with _child() as child:
        left = _grown(child, "abandon", archive, times)
    return [
        *outcomes(f"{epochs} epochs, {kind}", grown, note),
        *outcomes(f"{times:,} abandoned loaders, {kind}", [left]),
    ]


def leak(setting: Setting) -> list[Outcome]:
    """The soak test as a row of the table of ``torture``."""
    sizes = (2, 5, 60) if setting.quick else (EPOCHS, TIMES, CELLS)
    return [outcome for kind in KINDS for outcome in soak(setting.place, kind, *sizes)]


def outcomes(title: str, grown: Sequence[Usage], note: str = "") -> list[Outcome]:
    """Growth of the process that grew most."""
    held = max(max(usage.descriptors, usage.threads) for usage in grown)
    leaked = max(usage.anonymous / 1e6 for usage in grown)
    return [
        Outcome(f"leak over {title}", at_most(1, "MB"), Spread.of([leaked]), note=note),
        Outcome(f"descriptors and threads left by {title}", at_most(0, ""), Spread.of([held])),
    ]


def _child() -> Child:
    return Child("benchmarks.soak.processes", threads=None)


def _grown(child: Child, do: str, archive: Path, times: int) -> Usage:
    samples = child.ask(do, archive=archive, times=times)["samples"]
    return growth([Usage(*sample) for sample in samples])


def _keep_writing(source: Path, archive: Path, kind: str, done: threading.Event) -> int:
    """Convert beside the archive and change it in place, until the readers have finished."""
    rounds = 0
    while not done.is_set():
        write_archive(source, archive.with_name("beside"), kind)
        shutil.rmtree(archive.with_name("beside"))
        dtype = "float64" if rounds % 2 else "float32"
        scdl.open(archive).cast_data_to_dtype(dtype)
        rounds += 1
    return rounds
