"""Parsers of untrusted data as functions of bytes, which may raise nothing but ScdlError."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numcodecs
import numpy as np

from benchmarks.fuzz import frames, seeds
from benchmarks.fuzz.guarded_memory import GuardedMemory
from scdl.collection import manifest
from scdl.errors import ScdlError
from scdl.sources.h5ad import H5adFile
from scdl.sources.matrices import Bounds
from storage_backends.directory import content as content_sums
from storage_backends.directory.checksums import Table
from storage_backends.memmap import features
from storage_backends.memmap import manifest as archive_manifest
from storage_backends.memmap.header import Header
from storage_backends.memmap.tables import ParquetTable
from storage_backends.zarr.chunks.fetching import DirectReader, locate
from storage_backends.zarr.chunks.shards import ShardedChunks
from storage_backends.zarr.codecs.chain import Chain
from storage_backends.zarr.store import ZarrStore

Parser = Callable[[bytes], None]


class Target(NamedTuple):
    """A parser to try.

    Attributes
    ----------
    parser
        Returns the parser, given an empty directory for its files.
    corpus
        Returns valid inputs to mutate, given an empty directory.
    required
        Inputs that it has to survive.
    """

    parser: Callable[[Path], Parser]
    corpus: Callable[[Path], Sequence[bytes]]
    required: int = 100_000


def _header(place: Path) -> Parser:
    def parse(data: bytes) -> None:
        Header.from_bytes(data, "header.sch")

    return parse


def _npy(place: Path) -> Parser:
    def parse(data: bytes) -> None:
        stops = features.parse_stops(data, "stops.npy")
        assert stops == sorted(stops)

    return parse


def _labels(place: Path) -> Parser:
    def parse(data: bytes) -> None:
        found = features.parse_labels_npy(data)
        assert all(isinstance(label, str | None) for label in found or ())
        features.parse_labels_json(data)

    return parse


def _parquet(place: Path) -> Parser:
    file = place / "table.parquet"

    def parse(data: bytes) -> None:
        file.write_bytes(data)
        table = ParquetTable("table", [str(file)], None)
        read = table.read(None, 0, None)
        assert read.schema.names == table.schema.names
        assert len(read) == table.num_rows

    return parse


def _manifest(place: Path) -> Parser:
    def parse(data: bytes) -> None:
        for member in _refused(lambda: manifest.parse_manifest(data, "/archives")) or ():
            assert member.n_obs >= 0
        _refused(lambda: archive_manifest.parse(data, "manifest.json"))

    return parse


def _checksums(place: Path) -> Parser:
    def parse(data: bytes) -> None:
        # An attacker would write a correct checksum.
        content = data[:-4]
        Table.from_bytes(content + content_sums.checksum(content), "checksums.bin")

    return parse


def _zarr_metadata(place: Path) -> Parser:
    archive = seeds.write_zarr(place)

    def parse(data: bytes) -> None:
        (archive / "zarr.json").write_bytes(data)
        with ZarrStore.open(str(archive)) as store:
            for name in store.arrays:
                _refused(lambda name=name: store.read(name))
            for name in store.tables:
                _refused(lambda name=name: store.read_table(name))

    return parse


def _zarr_tables(place: Path) -> Parser:
    archive = seeds.write_zarr(place)
    files = [archive / name for name in seeds.TABLE_CHUNKS]
    sound = [file.read_bytes() for file in files]

    def parse(data: bytes) -> None:
        which = data[0] % len(files) if data else 0
        # An attacker would write a correct checksum, and mostly valid compression.
        body = (
            data[1:] if data[:1] >= b"\x80" else numcodecs.Zstd(level=1).encode(data[1:] or b"\0")
        )
        files[which].write_bytes(body + content_sums.checksum(body))
        try:
            with ZarrStore.open(str(archive)) as store:
                assert len(store.read_table("obs")) == seeds.CELLS
        finally:
            files[which].write_bytes(sound[which])

    return parse


class _Bytes:
    """A file of one shard."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def size(self, key: str) -> int:
        return len(self._data)

    def tail(self, key: str, length: int) -> bytes:
        return self._data[-length:]

    @staticmethod
    def tails(wanted: Sequence[tuple[_Bytes, str, int]]) -> list[bytes]:
        return [files.tail(key, length) for files, key, length in wanted]


def _zarr_chunks(place: Path) -> Parser:
    chains = [Chain.of(codecs, np.dtype(dtype)) for codecs, dtype in seeds.CHAINS]
    memory = GuardedMemory()

    def parse(data: bytes) -> None:
        chain = chains[data[0] % len(chains)] if data else None
        assert chain is None or chain.stored.itemsize
        body = data[1:]
        index = body + content_sums.checksum(body)
        shards = ShardedChunks("x", _Bytes(index), "c/", "", len(body) // 16, complete=False)  # type: ignore[arg-type]
        if len(body) >= 16:
            numbers = np.arange(len(body) // 16)
            reader = DirectReader("x", shards, chain or chains[0], 0)
            _refused(lambda: locate([reader], np.zeros_like(numbers), numbers))
        if chain is None:
            return
        # An attacker would write a correct checksum.
        content = memory.content(index if seeds.is_checked(data[0]) else body)
        out = np.empty((1, seeds.CHUNK_LENGTH), chain.stored)
        chain.decode(content, np.array([out.size]), out)

    return parse


def _hdf5(place: Path) -> Parser:
    path = place / "cells.h5ad"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        with H5adFile(path) as file:
            for _ in file.matrix.blocks(Bounds(target=str(path))):
                pass
            file.obs.read(0, file.n_obs)
            file.var()
            for name in file.names_of_rest():
                _refused(lambda name=name: file.element_of_rest(name))

    return parse


def _refused(work: Callable[[], object]) -> object:
    """Do a part of the work; None if it is refused, so that the rest is still tried."""
    try:
        return work()
    except ScdlError:
        return None


TARGETS = {
    "header": Target(_header, seeds.headers, 1_000_000),
    "npy": Target(_npy, seeds.npy),
    "labels": Target(_labels, seeds.labels),
    "parquet": Target(_parquet, seeds.parquet),
    "manifest": Target(_manifest, seeds.manifests),
    "checksums": Target(_checksums, seeds.checksums),
    "zarr-metadata": Target(_zarr_metadata, seeds.zarr_metadata),
    "zarr-tables": Target(_zarr_tables, seeds.zarr_tables),
    "zarr-chunks": Target(_zarr_chunks, seeds.zarr_chunks),
    "zarr-frames": Target(frames.parser, frames.chunks),
    "hdf5": Target(_hdf5, seeds.hdf5),
}
