"""What loaders tell about the bytes and requests of an epoch."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from range_server import RangeServer, serving
from training import N_OBS

import scdl
from scdl import SingleCellLoader
from storage_backends.compute import traffic

NAMES = ("data", "indices")


@pytest.fixture
def server(archives: dict[str, Path]) -> Iterator[RangeServer]:
    pytest.importorskip("obstore")
    with serving(archives["balanced"].parent) as server:
        yield server


def test_mapped_cells_ask_for_their_ranges(archives: dict[str, Path]) -> None:
    ds = scdl.open(archives["memmap"])
    data, indices = (ds.store.spec(name) for name in NAMES)
    ranges = ds.number_nonzero_values() * (data.dtype.itemsize + indices.dtype.itemsize)
    for order in ("block", "random", "sequential"):
        loader = SingleCellLoader(ds, 64, order=order, block=16 if order == "block" else None)
        list(loader)
        stats = loader.stats()
        assert stats.cells_read == N_OBS
        assert stats.asked_bytes == ranges
        assert stats.requests is stats.in_flight_bytes is None


def test_only_cells_that_were_read_are_counted(archives: dict[str, Path]) -> None:
    ds = scdl.open(archives["memmap"])
    loader = SingleCellLoader(
        ds, 10, order="sequential", memory_mb=2 * 20 * ds.bytes_per_cell / 1e6
    )
    batches = iter(loader)
    next(batches)
    stats = loader.stats()
    # Buffers of 20 cells: the first, and at most three of which the next are planned.
    assert 20 <= stats.cells_read <= 80
    batches.close()
    assert loader.stats().cells_read <= 80
    asked = loader.stats()
    list(SingleCellLoader(ds, 10))
    assert loader.stats() == asked, "of what comes later nothing is counted"


def test_chunks_are_asked_for_whole_and_compressed(archives: dict[str, Path]) -> None:
    ds = scdl.open(archives["balanced"])
    shards = sum(file.stat().st_size for file in archives["balanced"].glob("X/*/c/*"))
    loader = SingleCellLoader(ds, 64, order="sequential")
    list(loader)
    whole = loader.stats().asked_bytes
    # Shards also have indexes.
    assert 0.8 * shards < whole < shards
    # Chunks that an open archive keeps decoded are not asked for.
    few = SingleCellLoader(
        scdl.open(archives["balanced"]), 4, order="sequential", rows=[5, 6, 7, 8]
    )
    list(few)
    assert few.stats().cells_read == 4
    assert few.stats().asked_bytes > 4 * whole / N_OBS


def test_requests_are_those_of_the_server(archives: dict[str, Path], server: RangeServer) -> None:
    ds = scdl.open(f"{server.url}/balanced")
    loader = SingleCellLoader(ds, 64)
    n_requests, n_bytes = server.n_requests, server.n_bytes
    list(loader)
    stats = loader.stats()
    assert stats.requests == server.n_requests - n_requests > 0
    assert stats.read_bytes == server.n_bytes - n_bytes
    assert 0 < stats.in_flight_bytes <= 2 * stats.read_bytes + 3 * (1 << 20)
    local = SingleCellLoader(scdl.open(archives["balanced"]), 64)
    list(local)
    assert local.stats().requests is None
    assert stats.read_amplification == stats.read_bytes / stats.asked_bytes >= 1


def test_bytes_from_the_disk(
    archives: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = tmp_path / "io"
    monkeypatch.setattr(traffic, "_IO", str(io))
    loader = SingleCellLoader(scdl.open(archives["memmap"]), 64)
    io.write_text("read_bytes: 1000\n")
    batches = iter(loader)
    next(batches)
    io.write_text("read_bytes: 5096\n")
    assert loader.stats().read_bytes == 4096
    list(batches)
    io.write_text("read_bytes: 999999\n")
    stats = loader.stats()
    assert stats.read_bytes == 4096, "the epoch has ended"
    assert stats.read_amplification == 4096 / stats.asked_bytes
    io.unlink()
    list(loader)
    assert loader.stats().read_bytes is loader.stats().read_amplification is None


def test_workers_count_for_themselves(archives: dict[str, Path]) -> None:
    loader = SingleCellLoader(scdl.open(archives["memmap"]), 64, workers=1)
    list(loader)
    stats = loader.stats()
    assert stats.cells == N_OBS
    unknown = (stats.cells_read, stats.asked_bytes, stats.read_bytes, stats.requests)
    assert {*unknown, stats.in_flight_bytes, stats.read_amplification} == {None}


def test_a_loader_with_statistics_is_pickled(archives: dict[str, Path]) -> None:
    loader = SingleCellLoader(scdl.open(archives["memmap"]), 64)
    list(loader)
    assert pickle.loads(pickle.dumps(loader)).stats() == loader.stats()
