"""Comparison of files with their checksums while they are being read."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sources import random_cells, write_h5ad

import scdl
from scdl.verification import structure
from scdl.verification import verify as verification
from storage_backends import registry
from storage_backends.capabilities import Finding, Verdict
from storage_backends.directory import comparison
from storage_backends.directory.checksums import file_checksums
from storage_backends.directory.comparison import ArchivePaths, Comparison
from storage_backends.errors import ArchiveFormatError
from storage_backends.testing.archives import flip_bit

BLOCK = 100
FILES = {"a": 1_000, "b/c": 250, "empty": 0}


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "PIECE", 2 * BLOCK)


@pytest.fixture
def compared(tmp_path: Path) -> Comparison:
    sums = {}
    for key, size in FILES.items():
        data = np.random.default_rng(size).bytes(size)
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(data)
        sums[key] = file_checksums(data, BLOCK)
    return Comparison(ArchivePaths(str(tmp_path), "checksums"), sums, BLOCK)


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Record the pieces that are read."""
    found: list[tuple[str, int]] = []
    read = comparison._read_piece

    def noted(path: str, start: int, nbytes: int) -> memoryview:
        found.append((os.path.relpath(path, tmp_path), start))
        return read(path, start, nbytes)

    monkeypatch.setattr(comparison, "_read_piece", noted)
    return found


PIECES_OF_A = [("a", start) for start in range(0, 1_000, 200)]
PIECES_OF_C = [("b/c", 0), ("b/c", 200)]


def test_pieces_cover_all_bytes_once(compared: Comparison, reads: list[tuple[str, int]]) -> None:
    assert [piece.nbytes for piece in compared] == [200] * 6 + [50]
    assert [piece.check() for piece in compared] == [None] * 7
    assert [piece.check() for piece in compared] == [None] * 7
    assert reads == PIECES_OF_A + PIECES_OF_C


def test_required_files_are_compared_once(
    compared: Comparison, reads: list[tuple[str, int]]
) -> None:
    next(iter(compared)).check()
    compared.require("a")
    compared.require("a")
    compared.require("empty")
    compared.require("none of the archive")
    assert reads == PIECES_OF_A
    assert [piece.check() for piece in compared] == [None] * 7
    assert reads == PIECES_OF_A + PIECES_OF_C


def test_damage_is_reported_to_every_caller(compared: Comparison, tmp_path: Path) -> None:
    flip_bit(str(tmp_path / "a"), 730, 0)
    compared.require("b/c")
    for _ in range(2):
        with pytest.raises(ArchiveFormatError, match="a: bytes 700 to 800 differ from those"):
            compared.require("a")
    found = [piece.check() for piece in compared]
    assert [i for i, finding in enumerate(found) if finding is not None] == [3]


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_only_io_errors_are_damage(
    compared: Comparison, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> memoryview:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(comparison, "_read_piece", refuse)
    if code == errno.EIO:
        with pytest.raises(ArchiveFormatError, match="cannot be read"):
            compared.require("a")
    else:
        compared.require("a")
        assert {piece.check().verdict for piece in compared} == {Verdict.UNKNOWN}  # type: ignore[union-attr]


def test_waits_for_pieces_of_other_threads(
    compared: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, read = threading.Event(), threading.Event(), comparison._read_piece
    n_read = 0

    def slow(path: str, start: int, nbytes: int) -> memoryview:
        nonlocal n_read
        n_read += 1
        begun.set()
        assert go_on.wait(30)
        return read(path, start, nbytes)

    monkeypatch.setattr(comparison, "_read_piece", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(next(iter(compared)).check)
        assert begun.wait(30)
        second = pool.submit(compared.require, "a")
        assert not second.done()
        go_on.set()
        assert first.result(30) is second.result(30) is None
    assert n_read == len(PIECES_OF_A)


# -- reading an archive during the comparison ----------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    source = write_h5ad(tmp_path / "cells.h5ad", random_cells(30, 20, dtype="<u2", seed=1))
    scdl.convert(source, tmp_path / "archive", backend="zarr")
    return tmp_path / "archive"


def test_reading_first_compares_the_needed_files(
    archive: Path, reads: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "PIECE", 1 << 22)
    examined = registry.detect(str(archive)).store.examine(str(archive))
    assert examined.open is not None
    expected = scdl.open(archive).read_rows(slice(None))
    with examined.open() as store:
        reads.clear()
        np.testing.assert_array_equal(store.read("indices"), expected.indices)
        assert reads == [("archive/X/indices/c/0", 0)]
        store.read_table("obs")
    flip_bit(str(archive / "X" / "data" / "c" / "0"), 0, 3)
    examined = registry.detect(str(archive)).store.examine(str(archive))
    assert examined.open is not None
    with examined.open() as store:
        store.read("indices")
        with pytest.raises(ArchiveFormatError, match="X/data/c/0: bytes 0 to"):
            store.read("data")


def test_values_come_last(archive: Path, reads: list[tuple[str, int]]) -> None:
    for piece in registry.detect(str(archive)).store.examine(str(archive)).pieces:
        piece.check()
    keys = [key for key, _ in reads]
    assert "archive/X/indices/c/0" in keys
    assert keys[-1] == "archive/X/data/c/0"


def test_an_interrupt_ends_the_structure_check(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def endless(*_: object, **__: object) -> Iterator[structure.Check]:
        begun.set()
        while True:
            yield structure.Check(0, list)

    def interrupted(*_: object) -> None:
        assert begun.wait(30)
        raise KeyboardInterrupt

    monkeypatch.setattr(structure, "checks", endless)
    monkeypatch.setattr(verification._VerificationRun, "_compare_checksums", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scdl.verify(archive, deep=True)


def test_damage_ends_the_structure_check(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*_: object, **__: object) -> Iterator[structure.Check]:
        while True:
            yield structure.Check(0, lambda: [Finding("follows from it")])

    monkeypatch.setattr(structure, "checks", endless)
    flip_bit(str(archive / "X" / "data" / "c" / "0"), 0, 3)
    found = scdl.verify(archive, deep=True).findings
    assert len(found) == 1
    assert "X/data/c/0: bytes 0 to" in found[0].message
