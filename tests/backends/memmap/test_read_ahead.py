"""Read-ahead of ranges of mapped files."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.common import page_cache
from storage_backends.compute import read_ahead
from storage_backends.compute.read_ahead import SinglePages
from storage_backends.memmap import gather

N = 1 << 21


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.random.default_rng(0).integers(0, 1 << 30, N).astype(np.int32).tofile(tmp_path / "numbers")
    return tmp_path / "numbers"


def ranges(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted ranges that begin within a page, with and without gaps."""
    starts = np.sort(np.random.default_rng(1).integers(0, N - 500, n))
    return starts, starts + np.random.default_rng(2).integers(0, 500, n)


@pytest.mark.skipif(sys.platform != "linux", reason="the page cache is dropped as Linux does")
def test_what_is_on_disk_comes_into_memory(file: Path) -> None:
    if page_cache.drop(file) > 0.01:
        pytest.skip("files stay in the page cache here")
    array = np.memmap(file, np.int32, "r")
    gather.read_ahead(array, np.arange(0, N, 1_000), np.arange(0, N, 1_000) + 900)
    # The system reads in the background; sampling touched a dozen pages, which load few others.
    end = time.monotonic() + 60
    while page_cache.cached(file) < 0.9 and time.monotonic() < end:
        time.sleep(0.01)
    assert page_cache.cached(file) > 0.9


@pytest.mark.skipif(sys.platform != "linux", reason="the page cache is dropped as Linux does")
def test_pages_are_cold_if_they_must_be_waited_for(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine, too, where reading a page from memory may take long."""
    addresses = np.arange(0, 4 * N, 4 * N // 16)

    def are_cold() -> bool:
        array = np.memmap(file, np.int32, "r")
        return read_ahead.are_cold(array.ctypes.data + addresses)

    touch = read_ahead.ctypes.string_at

    def interrupted(address: int, size: int) -> bytes:
        end = time.perf_counter() + 1e-4
        while time.perf_counter() < end:
            pass
        return touch(address, size)

    with monkeypatch.context() as patch:
        patch.setattr(read_ahead.ctypes, "string_at", interrupted)
        assert not are_cold()
    if page_cache.drop(file) > 0.01:
        pytest.skip("files stay in the page cache here")
    assert are_cold()
    file.read_bytes()
    assert not are_cold()


@pytest.mark.parametrize("n", [0, 1, 5, 1_000])
def test_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    # A new file is in the page cache, so that read-ahead would do nothing.
    monkeypatch.setattr(gather, "are_cold", lambda addresses: True)
    array = np.memmap(file, np.int32, "r")
    gather.read_ahead(array, *ranges(n))
    np.testing.assert_array_equal(array, np.fromfile(file, np.int32))


def test_an_empty_array_is_left_alone() -> None:
    empty = np.empty(0, np.int64)
    gather.read_ahead(np.empty(0, np.float32), empty, empty)


def flags(array: np.ndarray) -> str:
    """Flags of the memory mapping of an array."""
    found, address = "", array.ctypes.data
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(" ")[0]
        if "-" in first and ":" not in first:
            start, stop = (int(part, 16) for part in first.split("-"))
            inside = start <= address < stop
        elif line.startswith("VmFlags:") and inside:
            found = line
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="flags of mappings are those of Linux")
def test_pages_come_alone_while_ranges_are_announced(file: Path) -> None:
    """Else what surrounds a page displaces announced ones where memory is scarce."""
    array = np.asarray(np.memmap(file, np.int32, "r"))
    other = np.asarray(np.memmap(file, np.int32, "r"))
    one, two = SinglePages([array, other[:0]]), SinglePages([array[5:9], array])
    assert " rr" in flags(array)
    assert " rr" not in flags(other)
    del one
    assert " rr" in flags(array)
    del two
    assert " rr" not in flags(array)


@given(st.lists(st.tuples(st.integers(0, 1 << 24), st.integers(1, 1 << 20)), min_size=1))
def test_requests_are_small_and_cover_all(ranges: list[tuple[int, int]]) -> None:
    """Linux reads only the beginning of a larger one."""
    begin, length = np.array(ranges, np.int64).T
    requested: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            read_ahead, "_start", lambda *pair: requested.extend(zip(*map(list, pair), strict=True))
        )
        read_ahead.will_need(begin, begin + length)
    assert all(0 < stop - start <= 1 << 17 and start % 4096 == 0 for start, stop in requested)
    needed = np.zeros((1 << 24) + (1 << 20), bool)
    for start, size in ranges:
        needed[start : start + size] = True
    for start, stop in requested:
        needed[start:stop] = False
    assert not needed.any()
