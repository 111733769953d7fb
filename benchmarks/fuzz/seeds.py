"""Valid inputs of every parser, which are mutated."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PosixPath
from typing import Any

import anndata as ad
import h5py
import numcodecs
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

import scdl
from storage_backends.directory.checksums import Table, file_checksums
from storage_backends.memmap.header import Header, HeaderArray, HeaderIndex
from storage_backends.zarr.codecs import ans_fitting
from storage_backends.zarr.codecs.chain import Chain
from storage_backends.zarr.codecs.profiles import PROFILES, Codec

#: Cells of small archives, and files of columns in them.
CELLS = 6
TABLE_CHUNKS = ("obs/_index/c/0", "obs/kind/codes/c/0", "obs/kind/categories/c/0")
#: Numbers of a chunk.
CHUNK_LENGTH = 256
_CRC: Codec = {"name": "crc32c"}
#: The profile whose arrays have tables.
_FITTED = replace(
    PROFILES["archive"],
    tables=ans_fitting.fit(
        np.arange(200, dtype=np.uint16), np.array([200]), 200, differences=True
    ).to_text(),
)
_LITTLE: Codec = {"name": "bytes", "configuration": {"endian": "little"}}
#: Chains of codecs and types of numbers, of our archives and of others.
CHAINS: list[tuple[Sequence[Codec], str]] = [
    *(
        (profile.codecs(name, np.dtype(dtype), narrow=False), dtype)
        for profile in (*PROFILES.values(), _FITTED)
        for name, dtype in (("indices", "<u2"), ("data", "<u2"), ("data", "<f4"), ("indptr", "<u4"))
    ),
    ([_LITTLE, {"name": "zstd", "configuration": {"level": 1, "checksum": True}}], "<f4"),
    ([_LITTLE, {"name": "gzip", "configuration": {"level": 1}}], "<i8"),
    ([_LITTLE], "<f8"),
]


def is_checked(number: int) -> bool:
    """Whether chunks of a chain, given by number, end in a checksum."""
    return CHAINS[number % len(CHAINS)][0][-1]["name"] == "crc32c"


def zarr_chunks(place: Path) -> list[bytes]:
    """Chunks without their checksum, each after the number of its chain."""
    rng = np.random.default_rng(0)
    found = []
    for number, (codecs, dtype) in enumerate(CHAINS):
        chain = Chain.of(codecs, np.dtype(dtype))
        assert chain is not None
        values = np.sort(rng.integers(0, 200, CHUNK_LENGTH)).astype(chain.stored)
        data = chain.encode(values)
        found.append(bytes([number]) + (data[:-4] if is_checked(number) else data))
    index = np.array([[0, 50], [50, 7], [2**64 - 1, 2**64 - 1]], "<u8")
    return [*found, bytes([0]) + index.tobytes()]


def headers(place: Path) -> list[bytes]:
    """Headers of the documented format, one with shapes."""
    arrays = [HeaderArray(n, 9, np.dtype(d)) for n, d in (("DATA", "f4"), ("ROWPTR", "u8"))]
    arrays.append(HeaderArray("COLPTR", 2**40, np.dtype("u4")))
    indexes = [HeaderIndex("var_features", 4, ("var_features/labels.json", "x/y.parquet"))]
    plain = Header(tuple(arrays), tuple(indexes)).to_bytes()
    shaped = plain.replace(b"\0\0\0\6\0", b"\0\0\0\6\1\0\0\0\1\0\0\0\t")
    return [plain, shaped, Header(tuple(arrays), ()).to_bytes()]


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npy(place: Path) -> list[bytes]:
    """Row ends of feature blocks."""
    kinds = ("<i8", "<u8", ">i4", "<f8", "<U3")
    return [_npy(np.array([0, 5, 9]).astype(kind)) for kind in kinds] + [_npy([[-1, 3], [4, 5]])]


def labels(place: Path) -> list[bytes]:
    """Labels as BioNeMo-SCDL pickles them, and as scdl writes them."""
    paths = [PosixPath("h5ad/a.h5ad"), PosixPath("/h5ad/b.h5ad")]
    kinds = [["a.h5ad", "b.h5ad"], paths, ["a", None]]
    found = [_npy(np.array(kind, object)) for kind in kinds]
    return [*found, _npy(np.array(["a", "b"])), b'["a.h5ad", null, "b"]']


def parquet(place: Path) -> list[bytes]:
    """Tables of one and several row groups, in encodings that other programs use."""
    table = pa.table(
        {
            "n": pa.array([1, None, 3, 4], pa.int32()),
            "text": ["a", "b", "a", None],
            "flag": [True, False, True, None],
            "kind": pa.array(["x", "y", "x", "x"]).dictionary_encode(),
        }
    )
    options: list[dict[str, Any]] = [
        {"compression": "zstd", "write_page_checksum": True},
        {"compression": "none", "row_group_size": 2, "store_schema": False},
        {"compression": "snappy", "use_dictionary": False, "data_page_version": "2.0"},
        {
            "compression": "gzip",
            "use_dictionary": False,
            "column_encoding": {"n": "DELTA_BINARY_PACKED"},
        },
    ]
    found = []
    for option in options:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **option)
        found.append(sink.getvalue().to_pybytes())
    return found


def manifests(place: Path) -> list[bytes]:
    """Manifests of a collection and of an archive."""
    archive = _archive(place, "memmap")
    collection = scdl.SingleCellCollection([archive, write_zarr(place)])
    collection.save_manifest(place / "all")
    files = [place / "all" / "collection.json", archive / "scdl" / "manifest.json"]
    # Inputs must not depend on the directory.
    return [file.read_bytes().replace(str(place).encode(), b"/place") for file in files]


def checksums(place: Path) -> list[bytes]:
    """Checksums of some files."""
    sums = {f"a/{n}": file_checksums(bytes(n), 64) for n in (0, 1, 64, 200)}
    return [Table(sums, 64).to_bytes(), Table({"x": file_checksums(b"abc")}).to_bytes()]


def zarr_metadata(place: Path) -> list[bytes]:
    """Consolidated metadata of an archive, with and without scdl's attributes."""
    ours = (write_zarr(place) / "zarr.json").read_bytes().replace(str(place).encode(), b"/place")
    foreign = json.loads(ours)
    del foreign["attributes"]["scdl"]
    return [ours, json.dumps(foreign).encode()]


def zarr_tables(place: Path) -> list[bytes]:
    """Chunks of columns after their number, decompressed and as stored."""
    archive = write_zarr(place)
    found = []
    for number, name in enumerate(TABLE_CHUNKS):
        chunk = (archive / name).read_bytes()[:-4]
        found += [
            bytes([number]) + bytes(numcodecs.Zstd().decode(chunk)),
            bytes([128 + number]) + chunk,
        ]
    return found


def hdf5(place: Path) -> list[bytes]:
    """Small h5ad files, by rows, by columns and dense."""
    found = []
    for kind in ("csr", "csc", "dense"):
        path = place / f"{kind}.h5ad"
        cells = _cells()
        matrix = cells.X
        cells.X = matrix.toarray() if kind == "dense" else matrix.asformat(kind)
        with h5py.File(path, "w", libver="latest") as file:
            ad.io.write_elem(file, "/", cells, dataset_kwargs={"compression": "gzip"})
        found.append(path.read_bytes())
    return found


def write_zarr(place: Path) -> Path:
    """A small archive in a Zarr store."""
    return _archive(place, "zarr")


def _archive(place: Path, backend: str) -> Path:
    path = place / f"small.{backend}"
    shutil.rmtree(path, ignore_errors=True)
    source = place / "cells.h5ad"
    _cells().write_h5ad(source)
    scdl.convert(source, path, backend=backend)
    source.unlink()
    return path


def _cells() -> ad.AnnData:
    counts = sp.random(CELLS, 5, 0.5, "csr", np.float32, rng=np.random.default_rng(0))
    kinds = pd.Categorical(["T", "B", "T", "T", "B", "T"])
    obs = pd.DataFrame({"kind": kinds}, index=[f"c{i}" for i in range(CELLS)])
    return ad.AnnData(counts, obs, pd.DataFrame(index=[f"g{i}" for i in range(5)]))
