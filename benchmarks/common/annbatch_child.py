"""Measurements of annbatch; see `benchmarks.common.child`.

Only documented interfaces are used: `DatasetCollection.add_adatas` writes, `Loader` reads, and
zarr decodes by the codec pipeline of zarrs, which annbatch calls necessary for local files.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import anndata as ad
import dask
import numpy as np
import pandas as pd
import zarr
from annbatch import DatasetCollection, Loader

from benchmarks.common.child import THREADS, anonymous_bytes, serve

#: Size of the parts in which annbatch writes by default, each in memory at once.
DATASET = "20GB"

_imported = anonymous_bytes()
_loaders: dict[tuple[Any, ...], Loader] = {}


def versions() -> dict[str, str]:
    """Versions of annbatch and of what it uses."""
    return {name: metadata.version(name) for name in ("annbatch", "anndata", "zarr", "zarrs")}


def convert(
    source: str,
    target: str,
    cells_per_chunk: int,
    shard: str,
    times: int = 1,
    shuffle: bool = False,
    dataset: str = DATASET,
) -> dict[str, Any]:
    """Write a collection of the raw counts, `times` one after the other, and sync it.

    Without `shuffle` cells keep their order, as in scdl's archives. So much of the `dataset` size
    is in memory at once, and shuffled. Compression is annbatch's default.
    """
    with tempfile.TemporaryDirectory() as links:
        # annbatch needs a name for each.
        names = [Path(links) / f"{i:05}.h5ad" for i in range(times)]
        for name in names:
            name.symlink_to(source)
        start = time.perf_counter()
        DatasetCollection(target).add_adatas(
            names,
            load_adata=_raw_counts,
            n_obs_per_chunk=cells_per_chunk,
            shard_size=shard,
            dataset_size=dataset,
            shuffle=shuffle,
            rng=np.random.default_rng(0),
        )
    for path in Path(target).rglob("*"):
        _sync(path)
    return {"seconds": time.perf_counter() - start, "imported": _imported}


def _raw_counts(path: str) -> ad.AnnData:
    """The counts alone, lazily, as annbatch documents for those who need a part of a file."""
    lazy = ad.experimental.read_lazy(path)
    names = (pd.Index(np.asarray(axis.to_memory().index, str)) for axis in (lazy.obs, lazy.raw.var))
    obs, var = (pd.DataFrame(index=index) for index in names)
    return ad.AnnData(X=lazy.raw.X, obs=obs, var=var)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size(path: str) -> dict[str, Any]:
    """Bytes of the arrays of the matrix, as stored, and its stored values."""
    sizes = dict.fromkeys(("data", "indices", "indptr"), 0)
    values = 0
    for group in DatasetCollection(path, mode="r"):
        values += group["X/data"].shape[0]
        for name in sizes:
            files = (Path(path) / group.path / "X" / name).rglob("*")
            sizes[name] += sum(file.stat().st_size for file in files if file.is_file())
    return {"bytes": sizes, "values": values}


def sums(path: str) -> dict[str, Any]:
    """Sums that are equal for archives of the same matrix; exact for counts."""
    cells = values = total = weighted = 0
    for batch in _batches(path, 512, 2, 1_024):
        cells += batch.shape[0]
        values += batch.nnz
        total += int(batch.data.sum(dtype=np.float64))
        weighted += int((batch.data.astype(np.float64) * batch.indices).sum())
    return {"sums": [cells, values, total, weighted]}


def train_from_ours(path: str) -> dict[str, Any]:
    """One epoch of the loader on the matrix of an archive of scdl, whatever the order of genes."""
    loader = Loader(chunk_size=64, preload_nchunks=16, batch_size=1_024, shuffle=True)
    loader.add_adata(_matrix_alone(zarr.open_group(path, mode="r")))
    cells = values = total = 0
    start = time.perf_counter()
    for loaded in loader:
        batch = loaded["X"]
        cells += batch.shape[0]
        values += batch.nnz
        total += int(batch.data.sum(dtype=np.float64))
    return {"seconds": time.perf_counter() - start, "sums": [cells, values, total]}


def epoch(
    path: str,
    block: int,
    batch: int,
    preload: int,
    dense: bool = False,
    limit: int | None = None,
    shuffle: bool = True,
) -> dict[str, Any]:
    """Read all cells once, in random blocks of `block` cells, `preload` blocks at a time.

    The loader shuffles within what it has loaded, and yields scipy's CSR matrices, of which
    `dense` makes arrays. `limit` ends it after so many batches; without `shuffle` cells come as
    they are stored.
    """
    cells = 0
    start = time.perf_counter()
    for count, matrix in enumerate(_batches(path, block, preload, batch, shuffle), 1):
        cells += (matrix.toarray() if dense else matrix).shape[0]
        if count == limit:
            break
    return {"seconds": time.perf_counter() - start, "cells": cells}


def new_epoch(path: str, block: int, batch: int, preload: int, seconds: float) -> dict[str, Any]:
    """Read with a new loader for some seconds, and to the end of what it loads at a time.

    Opening does not count. The loader shuffles as in `epoch`.
    """
    loader = _loader(path, block, preload, batch, shuffle=True)
    cells, at_once = 0, max(block * preload // batch, 1)
    start = time.perf_counter()
    for count, loaded in enumerate(loader, 1):
        cells += loaded["X"].shape[0]
        if count % at_once == 0 and time.perf_counter() - start > seconds:
            break
    return {"seconds": time.perf_counter() - start, "cells": cells}


def _batches(
    path: str, block: int, preload: int, batch: int, shuffle: bool = True
) -> Iterator[Any]:
    """One pass of a loader; loaders are kept, as each goes on with its own random numbers."""
    key = (path, block, preload, batch, shuffle)
    if key not in _loaders:
        _loaders[key] = _loader(*key)
    return (loaded["X"] for loaded in _loaders[key])


def _loader(path: str, block: int, preload: int, batch: int, shuffle: bool) -> Loader:
    loader = Loader(
        chunk_size=block,
        preload_nchunks=preload,
        batch_size=batch,
        shuffle=shuffle,
        rng=np.random.default_rng(0) if shuffle else None,
    )
    collection = DatasetCollection(path, mode="r")
    return loader.use_collection(collection, load_adata=_matrix_alone)


def _matrix_alone(group: zarr.Group) -> ad.AnnData:
    return ad.AnnData(X=ad.io.sparse_dataset(group["X"]))


if __name__ == "__main__":
    zarr.config.set(
        {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": THREADS}
    )
    dask.config.set(num_workers=THREADS)
    serve(versions, convert, size, sums, train_from_ours, epoch, new_epoch)
