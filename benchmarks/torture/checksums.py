"""What checksums cost a conversion, and how fast they are compared."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import scdl
from benchmarks import page_cache
from benchmarks.measure import Spread, take_turns, timed
from benchmarks.outcomes import Outcome, at_least, at_most
from benchmarks.torture.setting import Setting
from scdl.verification import READERS
from storage_backends import _checksums

_READ = 1 << 22


def cost(setting: Setting) -> list[Outcome]:
    """Conversions with and without checksums, in turn."""
    return [_cost(setting, backend) for backend in ("memmap", "zarr")]


def _cost(setting: Setting, backend: str) -> Outcome:
    source, target = setting.workspace.h5ad(), setting.place / "measured"

    def convert() -> float:
        shutil.rmtree(target, ignore_errors=True)
        # What was written before must not be written back at the expense of this conversion.
        os.sync()
        return timed(lambda: scdl.convert(source, target, backend=backend))

    def bare() -> float:
        with without_checksums():
            return convert()

    convert(), bare()
    seconds = take_turns({"with": convert, "without": bare}, setting.repeats)
    shutil.rmtree(target)
    with_, without = (Spread.of(seconds[name]) for name in ("with", "without"))
    more = Spread.of([100 * (ratio - 1) for ratio in with_.over(without).samples])
    note = f"medians {with_.median:.3f} s with and {without.median:.3f} s without"
    return Outcome(
        f"cost of writing checksums, of conversion time, {backend}",
        at_most(10, "%"),
        more,
        with_,
        without,
        "s",
        note,
    )


@contextlib.contextmanager
def without_checksums() -> Iterator[None]:
    """Write archives as if there were no checksums."""
    with mock.patch.object(_checksums.Running, "update", return_value=None):
        yield


def speed(setting: Setting) -> list[Outcome]:
    """``verify --deep`` against plain reading of the same files, from disk."""
    outcomes = []
    for backend in ("memmap", "zarr"):
        archive = setting.place / f"large.{backend}"
        times = 1 if setting.quick else 10
        scdl.convert([setting.workspace.h5ad()] * times, archive, backend=backend)
        outcomes.append(_speed(setting, archive, backend))
        shutil.rmtree(archive)
    return outcomes


def _speed(setting: Setting, archive: Path, backend: str) -> Outcome:
    nbytes = sum(file.stat().st_size for file in page_cache.files(archive))

    def rate(seconds: float) -> float:
        return nbytes / 1e6 / seconds

    def verify() -> float:
        page_cache.drop(archive)
        began = time.perf_counter()
        report = scdl.verify(archive, deep=True)
        assert report.is_sound, str(report)
        return rate(time.perf_counter() - began)

    def read() -> float:
        page_cache.drop(archive)
        return rate(timed(lambda: read_plainly(archive)))

    verify()
    rates = take_turns({"verify": verify, "read": read}, setting.repeats)
    ours, plain = Spread.of(rates["verify"]), Spread.of(rates["read"])
    share = Spread.of([100 * ratio for ratio in ours.over(plain).samples])
    note = f"{nbytes / 1e6:,.0f} MB: {ours.median:,.0f} MB/s, read {plain.median:,.0f} MB/s"
    title = f"speed of verify --deep over plain reading from disk, {backend}"
    return Outcome(title, at_least(60, "%"), share, ours, plain, "MB/s", note)


def read_plainly(archive: Path) -> None:
    """Read all files of an archive, with as many threads as ``verify`` has, and do nothing else."""

    def read(job: tuple[Path, int]) -> None:
        path, start = job
        buffer = bytearray(_READ)
        with path.open("rb", buffering=0) as file:
            os.preadv(file.fileno(), [buffer], start)

    jobs = [
        (path, start)
        for path in page_cache.files(archive)
        for start in range(0, path.stat().st_size, _READ)
    ]
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, jobs))
