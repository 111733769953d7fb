"""The local directory that keeps pages of remote files."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import WHOLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage_backends.errors import ArchiveWriteError, ScdlWarning
from storage_backends.zarr.chunks.page_cache import PageCache

PAGE, N_PAGES = 64, 40
#: A file of which the last page is short.
DATA = np.random.default_rng(0).integers(0, 256, PAGE * (N_PAGES - 1) + 10, np.uint8)

runs = st.lists(st.tuples(st.integers(0, N_PAGES - 1), st.integers(1, 9)), max_size=6)


def cache_in(directory: Path, megabytes: float = 1.0, identity: bytes = b"a") -> PageCache:
    return PageCache(str(directory), identity, megabytes, PAGE)


def write(cache: PageCache, first: int, n: int, key: str = "X/data/c/0") -> None:
    cache.write(key, first, DATA[first * PAGE : (first + n) * PAGE])


def pages_in(cache: PageCache, key: str = "X/data/c/0") -> set[int]:
    """The pages that are there, which are compared with the file."""
    found: set[int] = set()
    for first, data in cache.read(key, range(N_PAGES)):
        np.testing.assert_array_equal(data, DATA[first * PAGE : first * PAGE + len(data)])
        found.update(range(first, first + -(-len(data) // PAGE)))
    return found


def files_in(directory: Path, suffix: str = "") -> list[Path]:
    return [path for path in directory.rglob(f"*{suffix}") if path.is_file()]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs, st.lists(st.integers(0, len(DATA) - 1), max_size=3))
def test_pages_are_kept_and_damaged_ones_are_not_read(
    tmp_path_factory: pytest.TempPathFactory, written: list[Any], damaged: list[int]
) -> None:
    directory = tmp_path_factory.mktemp("cache")
    cache, expected = cache_in(directory), set[int]()
    for first, n in written:
        write(cache, first, n)
        expected.update(range(first, min(first + n, N_PAGES)))
    assert pages_in(cache) == pages_in(cache_in(directory)) == expected
    assert not pages_in(cache, "X/indices/c/0")
    assert not pages_in(cache_in(directory, identity=b"b"))
    for path in files_in(directory, ".pages"):
        content = bytearray(path.read_bytes())
        for at in damaged:
            if at < len(content):
                content[at] ^= 1
        path.write_bytes(content)
    assert pages_in(cache) == expected - {at // PAGE for at in damaged}


@pytest.mark.parametrize("suffix", [".pages", ".sums"])
@pytest.mark.parametrize("content", [None, b"", b"x", bytes(1000), b"\xff" * 1000])
def test_damaged_files(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    cache = cache_in(tmp_path)
    write(cache, 0, N_PAGES)
    (path,) = files_in(tmp_path, suffix)
    path.unlink() if content is None else path.write_bytes(content)
    assert pages_in(cache) == set()
    write(cache, 3, 4)
    assert pages_in(cache) >= {3, 4, 5, 6}


def test_ends_of_files(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    assert cache.tail("a", 5) is None
    cache.write_tail("a", b"12345")
    assert cache.tail("a", 5) == b"12345"
    assert cache.tail("a", 4) is None
    (path,) = files_in(tmp_path, ".tail")
    path.write_bytes(b"123451234")
    assert cache.tail("a", 5) is None


def test_the_limit(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, megabytes=0.2)
    for i in range(100):
        write(cache, 0, N_PAGES, f"file {i}")
        path = cache._path(f"file {i}")
        # Files of a fast test have one time.
        os.utime(f"{path}.pages", (i, i))
        os.utime(f"{path}.sums", (i, i))
    size = sum(path.stat().st_blocks * 512 for path in files_in(tmp_path))
    assert 0 < size <= 0.2e6 + 2 * 8_192
    assert pages_in(cache, "file 99")
    assert not pages_in(cache, "file 0")


def test_only_own_files_are_removed(tmp_path: Path) -> None:
    kept = tmp_path / "thesis.txt"
    kept.write_bytes(bytes(1 << 20))
    cache_in(tmp_path, megabytes=0.001)
    assert kept.exists()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_in(tmp_path)
    write(cache, 0, 3)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.warns(ScdlWarning, match="No space left on device; make room"):
        write(cache, 5, 3)
    # Only one warning.
    write(cache, 7, 3)
    assert pages_in(cache) == {0, 1, 2}


@pytest.mark.parametrize("place", ["file", "file/cache"])
def test_a_directory_that_cannot_be_made(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveWriteError, match="cannot write"):
        cache_in(tmp_path / place)


def _write_and_read(directory: Path, seed: int) -> bool:
    cache, rng = cache_in(directory, megabytes=0.02), np.random.default_rng(seed)
    for _ in range(150):
        key = f"file {rng.integers(6)}"
        write(cache, int(rng.integers(N_PAGES)), int(rng.integers(1, 9)), key)
        pages_in(cache, f"file {rng.integers(6)}")
    return True


def test_processes_share_it(tmp_path: Path) -> None:
    """While others write and remove files, what is read is right."""
    n = 3 if WHOLE else 2
    with ProcessPoolExecutor(n, get_context("spawn")) as pool:
        assert all(pool.map(_write_and_read, [tmp_path] * n, range(n)))
