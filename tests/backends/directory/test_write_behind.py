"""Files are written in large units, and to the disk while they grow."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_backends.compute.c_library import c_function
from storage_backends.directory import publication, recorder
from storage_backends.directory.checksums import file_checksums
from storage_backends.directory.recorder import Recorder


def noted_writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make units of 50 bytes; the list gets the size of each write."""
    sizes: list[int] = []

    def noted(write: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
        def wrapped(descriptor: int, data: Any) -> int:
            sizes.append(write(descriptor, data))
            return sizes[-1]

        return wrapped

    for name, size in {"_UNIT": 50, "_HUGE_UP_TO": 100, "_SMALL_UNIT": 25}.items():
        monkeypatch.setattr(recorder, name, size)
    for name in ("write", "writev"):
        if hasattr(os, name):
            monkeypatch.setattr(os, name, noted(getattr(os, name)))
    return sizes


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return noted_writes(monkeypatch)


@given(before=st.binary(max_size=120), parts=st.lists(st.binary(max_size=170), max_size=6))
def test_files_are_written_in_whole_units(
    tmp_path_factory: pytest.TempPathFactory, before: bytes, parts: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("units") / "file"
    with pytest.MonkeyPatch.context() as monkeypatch:
        sizes = noted_writes(monkeypatch)
        units = [(0, 50), (50, 100), (100, 125)]
        files = Recorder(str(path.parent))
        files.write(str(path), before)
        assert sizes == [len(before[start:stop]) for start, stop in units if before[start:]]
        sizes.clear()
        with files.grow(str(path)) as file:
            for part in parts:
                assert file.write(part) == len(part)
        content = b"".join([before, *parts])
        assert file.tell() == len(content)
        assert path.read_bytes() == content
        ends = (len(before) + np.cumsum(sizes, dtype=int)).tolist()
        assert all(end % (50 if end < 100 else 25) == 0 for end in ends[:-1])
        assert all(size <= 50 for size in sizes)
        (sums,) = files.table().files.values()
        expected = file_checksums(content)
        assert sums.size == expected.size
        np.testing.assert_array_equal(sums.blocks, expected.blocks)


@pytest.mark.parametrize("has_writev", [True, False])
def test_the_system_may_write_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_writev: bool
) -> None:
    write = os.write
    monkeypatch.setattr(recorder, "_UNIT", 50)
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    if has_writev:

        def writev(descriptor: int, parts: list[memoryview]) -> int:
            return write(descriptor, b"".join(parts)[:33])

        monkeypatch.setattr(os, "writev", writev, raising=False)
    else:
        monkeypatch.delattr(os, "writev", raising=False)
    content = bytes(range(240))
    with Recorder(str(tmp_path)).create(str(tmp_path / "file")) as file:
        for start, stop in ((0, 20), (20, 30), (30, 170), (170, 240)):
            file.write(content[start:stop])
    assert (tmp_path / "file").read_bytes() == content


def test_what_is_kept_is_written_at_the_end_or_never(tmp_path: Path, writes: list[int]) -> None:
    files = Recorder(str(tmp_path))
    first, second = (files.create(str(tmp_path / name)) for name in "ab")
    first.write(bytes(60))
    second.write(bytes(30))
    assert writes == [50]
    first.close()
    assert writes == [50, 10]
    files.discard()
    assert writes == [50, 10]
    assert second.closed
    with contextlib.suppress(RuntimeError), files.create(str(tmp_path / "c")) as third:
        third.write(bytes(10))
        raise RuntimeError
    assert third.closed
    fourth = files.create(str(tmp_path / "d"))
    fourth.write(bytes(20))
    files.close()
    assert writes == [50, 10, 20]
    assert fourth.closed


def test_a_full_disk_is_told_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Recorder(str(tmp_path)).create(str(tmp_path / "file"))
    file.write(bytes(10))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="space"):
        file.close()
    assert file.closed


def test_every_byte_is_sent_once(
    tmp_path: Path, writes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except those at the end, which are written when the file is flushed."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(recorder, "_WRITE_BEHIND_BYTES", 100)
    monkeypatch.setattr(
        recorder, "write_behind", lambda _descriptor, start, n: sent.append((start, n))
    )
    with Recorder(str(tmp_path)).create(str(tmp_path / "file")) as file:
        for size in (60, 30, 20, 250, 99):
            file.write(bytes(size))
    assert sent == [(0, 100), (100, 100), (200, 100), (300, 100)]
    assert sum(writes) == (tmp_path / "file").stat().st_size == 459


@pytest.mark.skipif(sys.platform != "linux", reason="there is no such function")
def test_sync_file_range(tmp_path: Path) -> None:
    types = ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
    function = c_function("sync_file_range", *types)
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"1" * 100_000)
        recorder.write_behind(file.fileno(), 0, 100_000)
        assert function(file.fileno(), 0, 100_000, recorder._SYNC_FILE_RANGE_WRITE) == 0
    assert (tmp_path / "file").read_bytes() == b"1" * 100_000


def test_errors_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    recorder.write_behind(write, 0, 10)
    os.close(read)
    os.close(write)
    recorder.write_behind(write, 0, 10)
    monkeypatch.setattr(recorder, "c_function", lambda *_: None)
    recorder.write_behind(write, 0, 10)


@pytest.mark.parametrize("seconds", [0, 0.001], ids=["in memory", "on a disk"])
def test_every_file_and_directory_is_flushed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    files = [tmp_path / f"{place}{i}" for place in ("", "a/", "a/b/") for i in range(9)]
    for file in files:
        file.write_bytes(b"x")
    (tmp_path / "dangling").symlink_to("nothing")
    flushed: list[str] = []

    def flush(path: str) -> None:
        time.sleep(seconds)
        flushed.append(path)

    monkeypatch.setattr(publication, "flush", flush)
    publication.flush_tree(str(tmp_path))
    assert sorted(flushed) == sorted(map(str, [tmp_path, tmp_path / "a", tmp_path / "a/b", *files]))
