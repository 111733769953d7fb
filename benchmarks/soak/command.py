"""Four processes read an archive epoch by epoch while another converts and changes it in place.

Descriptors, threads and anonymous memory of the readers must not grow; nor must they where loaders
are abandoned in mid-epoch. ``make soak`` runs it for some minutes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.common.measure import Spread
from benchmarks.common.report import Outcome, at_most
from benchmarks.torture.archives import write_archive, write_source
from benchmarks.torture.setting import Setting

READERS = 4
KINDS = ("memmap", "zarr")
#: Epochs until caches are full, and those that follow: what the allocator keeps of each goes up and
#: down by two megabytes, within ten epochs or so.
_WARM, EPOCHS = 10, 150


class Usage(NamedTuple):
    """What a process holds."""

    descriptors: int
    threads: int
    #: Bytes of anonymous memory.
    anonymous: int

    @classmethod
    def now(cls) -> Usage:
        """Of this process, without what the allocator only keeps."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        status = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        anonymous = 1024 * int(status["RssAnon"].split()[0])
        return cls(len(os.listdir("/proc/self/fd")), int(status["Threads"]), anonymous)


def growth(samples: Sequence[Usage]) -> Usage:
    """By how much the last third of the samples exceeds the first, in the median."""
    n = max(1, len(samples) // 3)
    ends = zip(zip(*samples[:n], strict=True), zip(*samples[-n:], strict=True), strict=True)
    return Usage(*(int(statistics.median(last) - statistics.median(first)) for first, last in ends))


# -- the processes ---------------------------------------------------------------------------------


def read(archive: str, epochs: int) -> list[Usage]:
    """Open an archive anew for each epoch, and read all of it."""
    import scdl
    from scdl import SingleCellLoader

    samples, warm = [], min(_WARM, epochs)
    for _ in range(warm + epochs):
        cells = scdl.open(archive)
        loader = SingleCellLoader(cells, min(256, len(cells)), obs=["type"], obsm=["X_pca"])
        read_cells = sum(map(len, loader))
        assert read_cells == len(cells), f"{read_cells} of {len(cells)} cells"
        del loader, cells
        samples.append(Usage.now())
    return samples[warm:]


def abandon(archive: str, times: int) -> list[Usage]:
    """Begin an epoch again and again, and leave it after its first batch."""
    import scdl
    from scdl import SingleCellLoader

    cells = scdl.open(archive)
    samples, warm = [], min(100, times)
    for i in range(warm + times):
        for _ in SingleCellLoader(cells, 32, prefetch=2):
            break
        if i >= warm and i % max(1, times // 50) == 0:
            samples.append(Usage.now())
    return samples


def _keep_writing(source: Path, archive: Path, kind: str, done: threading.Event) -> int:
    """Convert beside the archive and change it in place, until the readers have finished."""
    import scdl

    rounds = 0
    while not done.is_set():
        write_archive(source, archive.with_name("beside"), kind)
        shutil.rmtree(archive.with_name("beside"))
        dtype = "float64" if rounds % 2 else "float32"
        scdl.open(archive).cast_data_to_dtype(dtype)
        rounds += 1
    return rounds


# -- all of them -----------------------------------------------------------------------------------


def soak(place: Path, kind: str, epochs: int, times: int, cells: int) -> list[Outcome]:
    """Readers beside a converter, then abandoned loaders, on one kind of archive."""
    (home := place / f"soak-{kind}").mkdir()
    source = write_source(home / "cells.h5ad", cells, 200)
    archive = write_archive(source, home / "archive", kind)
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(_keep_writing, source, archive, kind, done)
        readers = [_start("read", archive, epochs) for _ in range(READERS)]
        try:
            grown = [growth(_finish(reader)) for reader in readers]
        finally:
            done.set()
            for reader in readers:
                # Ended already, but where another one failed.
                with reader:
                    reader.kill()
    rounds = writing.result()
    note = f"{READERS} readers, {epochs} epochs, {rounds} conversions and casts meanwhile"
    left = growth(_finish(_start("abandon", archive, times)))
    return [
        *_outcomes(f"{epochs} epochs, {kind}", grown, note),
        *_outcomes(f"{times:,} abandoned loaders, {kind}", [left], ""),
    ]


def leak(setting: Setting) -> list[Outcome]:
    """The soak test, as a row of ``make torture``."""
    sizes = (2, 5, 60) if setting.quick else (EPOCHS, 1_000, 5_000)
    return [outcome for kind in KINDS for outcome in soak(setting.place, kind, *sizes)]


def _outcomes(what: str, grown: Sequence[Usage], note: str) -> list[Outcome]:
    held = [max(use.descriptors, use.threads) for use in grown]
    leaked = [use.anonymous / 1e6 for use in grown]
    # All of the processes must hold, not those in the middle.
    return [
        Outcome(f"leak over {what}", at_most(1, "MB"), Spread.of([max(leaked)]), note=note),
        Outcome(f"descriptors and threads left by {what}", at_most(0, ""), Spread.of([max(held)])),
    ]


def _start(what: str, archive: Path, n: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.soak.command", what, str(archive), str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> list[Usage]:
    told, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a process of the soak test ended with {process.returncode}")
    return [Usage(*sample) for sample in json.loads(told)]


def main() -> int:
    """Run one of the processes, or all."""
    if sys.argv[1:2] in (["read"], ["abandon"]):
        work = {"read": read, "abandon": abandon}[sys.argv[1]]
        print(json.dumps(work(sys.argv[2], int(sys.argv[3]))))
        return 0
    described = argparse.ArgumentParser(description=__doc__)
    described.add_argument("--epochs", type=int, default=EPOCHS)
    described.add_argument("--times", type=int, default=1_000, help="abandoned loaders")
    described.add_argument("--cells", type=int, default=5_000)
    options = described.parse_args()
    began, passed = time.monotonic(), True
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        for kind in KINDS:
            for outcome in soak(Path(place), kind, options.epochs, options.times, options.cells):
                what, required, measured, *_, verdict = outcome.cells()
                print(f"{verdict}  {what}: {measured} (required {required}) {outcome.note}")
                passed &= outcome.passed
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if passed else 1


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
