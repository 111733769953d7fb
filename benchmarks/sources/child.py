"""Conversions, and other readers of the same files; see `benchmarks.common.child`."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import anndata
import pyarrow.parquet as pq
import scanpy

import scdl
from benchmarks.common.child import serve


def _timed(function: Callable[[], Any]) -> dict[str, Any]:
    start = time.perf_counter()
    function()
    return {"seconds": time.perf_counter() - start}


def convert(source: str, target: str, **options: Any) -> dict[str, Any]:
    """Convert a file to memmap."""
    shutil.rmtree(target, ignore_errors=True)
    return _timed(lambda: scdl.convert(source, target, backend="memmap", **options))


def convert_object(source: str, target: str) -> dict[str, Any]:
    """Convert an AnnData object that is in memory; reading it does not count."""
    shutil.rmtree(target, ignore_errors=True)
    adata = anndata.read_h5ad(source)
    return _timed(lambda: scdl.convert(adata, target, backend="memmap"))


def convert_with_scanpy(source: str, target: str) -> dict[str, Any]:
    """Read a file of Cell Ranger with scanpy, and convert the object."""
    shutil.rmtree(target, ignore_errors=True)
    return _timed(
        lambda: scdl.convert(scanpy.read_10x_h5(source), target, backend="memmap", matrix="X")
    )


def read_with_scanpy(source: str, target: str) -> dict[str, Any]:
    """Read a directory of Cell Ranger with scanpy."""
    return _timed(lambda: scanpy.read_10x_mtx(source, cache=False))


def read_with_pyarrow(source: str, target: str) -> dict[str, Any]:
    """Read a parquet file with pyarrow, batch by batch."""

    def read() -> None:
        with pq.ParquetFile(source) as file:
            for batch in file.iter_batches():
                del batch

    return _timed(read)


def append(source: str, target: str, base: str) -> dict[str, Any]:
    """Append a file to a copy of an archive; copying it does not count."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(base, target)
    # Else the append, which flushes the files that it changes, would wait for the copy.
    os.sync()
    data = scdl.open(target)
    return _timed(lambda: data.append(source))


if __name__ == "__main__":
    serve(convert, convert_object, convert_with_scanpy, read_with_scanpy, read_with_pyarrow, append)
