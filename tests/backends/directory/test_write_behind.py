"""Write-behind: files are written to the disk while they grow."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest

from storage_backends.compute.c_library import c_function
from storage_backends.directory import recorder
from storage_backends.directory.recorder import Recorder


def test_every_byte_is_sent_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Except those at the end, which are written when the file is flushed."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(recorder, "_WRITE_BEHIND_BYTES", 100)
    monkeypatch.setattr(
        recorder, "write_behind", lambda _descriptor, start, n: sent.append((start, n))
    )
    with Recorder(str(tmp_path)).create(str(tmp_path / "file")) as file:
        for size in (60, 30, 20, 250, 99):
            file.write(bytes(size))
    assert sent == [(0, 110), (110, 250)]
    assert (tmp_path / "file").stat().st_size == 459


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
