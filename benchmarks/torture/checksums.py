"""The cost of checksums for a conversion, and the speed of comparing them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import scdl
from benchmarks.common import page_cache
from benchmarks.common.hardware import disk_seconds
from benchmarks.common.measure import Spread, take_turns, timed
from benchmarks.common.report import Outcome, at_least, at_most
from benchmarks.torture.setting import Setting
from scdl.verification.verify import READERS
from storage_backends import registry
from storage_backends.compute.threads import in_parallel
from storage_backends.directory import checksums


def cost(setting: Setting) -> list[Outcome]:
    """Conversions with and without checksums, in turn."""
    return [_cost(setting, backend) for backend in ("memmap", "zarr")]


def _cost(setting: Setting, backend: str) -> Outcome:
    source, target = setting.workspace.h5ad(), setting.place / "measured"

    def convert() -> float:
        shutil.rmtree(target, ignore_errors=True)
        # Writing back what was written before must not slow this conversion.
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
    with mock.patch.object(checksums.RunningChecksums, "update", _pass_over):
        yield


def _pass_over(running: checksums.RunningChecksums, data: bytes) -> None:
    """Do nothing; a mock would keep its arguments."""


def speed(setting: Setting) -> list[Outcome]:
    """``verify --deep`` against plain reading of the same files, from disk."""
    outcomes = []
    for backend in ("memmap", "zarr"):
        archive = setting.place / f"large.{backend}"
        times = 1 if setting.quick else 10
        scdl.convert([setting.workspace.h5ad()] * times, archive, backend=backend)
        outcomes += _speeds(setting, archive, backend)
        shutil.rmtree(archive)
    return outcomes


def _speeds(setting: Setting, archive: Path, backend: str) -> list[Outcome]:
    """Compare checksums alone, and verify the structure too, which decodes column ids."""
    nbytes = sum(file.stat().st_size for file in page_cache.files(archive))

    def rate(work: Callable[[], object]) -> Callable[[], float]:
        def measure() -> float:
            page_cache.drop(archive)
            return nbytes / 1e6 / timed(work)

        return measure

    works = {
        "comparing checksums": lambda: compare(archive),
        "verify --deep": lambda: check(archive),
        "reading": lambda: disk_seconds(archive),
    }
    check(archive)
    rates = take_turns({name: rate(work) for name, work in works.items()}, setting.repeats)
    found = {name: Spread.of(rates[name]) for name in works}
    plain = found.pop("reading")
    outcomes = []
    for name, ours in found.items():
        share = Spread.of([100 * ratio for ratio in ours.over(plain).samples])
        title = f"speed of {name} over plain reading from disk, {backend}"
        note = f"{nbytes / 1e6:,.0f} MB: {ours.median:,.0f} MB/s, read {plain.median:,.0f} MB/s"
        outcomes.append(Outcome(title, at_least(60, "%"), share, ours, plain, "MB/s", note))
    return outcomes


def check(archive: Path) -> None:
    """Verify everything."""
    report = scdl.verify(archive, deep=True)
    assert report.is_sound, str(report)


def compare(archive: Path) -> None:
    """Compare the checksums, and do nothing else."""
    examined = registry.detect(archive).store.examine(str(archive))
    assert examined.has_checksums
    for _, found in in_parallel(lambda piece: piece.check(), examined.pieces, READERS):
        assert found is None, found
