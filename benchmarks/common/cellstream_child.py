"""Measurements of cellstream, by its documented interface; see `benchmarks.common.child`."""

from __future__ import annotations

import functools
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import anndata as ad
import cellstream
import numpy as np

from benchmarks.common.cellstream import CODEC
from benchmarks.common.child import THREADS, serve

#: Cells of a block, of those that are summed together.
_BLOCK = 8_192


def versions() -> dict[str, str]:
    """Versions of cellstream and of what it uses; fails without its compiled part."""
    assert cellstream.rust_available(), cellstream.rust_status()
    return {name: metadata.version(name) for name in ("cellstream", "numpy", "scipy")}


def convert(source: str, target: str) -> dict[str, Any]:
    """Write an archive of the raw counts, one frame for each cell."""
    cells = ad.read_h5ad(source, backed="r")  # X, which is not needed, stays in the file.
    counts = ad.AnnData(cells.raw.X.to_memory(), obs=cells.obs, var=cells.raw.var)
    cellstream.write_sharded(counts, target, layout="cell", codec=CODEC, overwrite=True)
    return {}


def size(path: str) -> dict[str, Any]:
    """Bytes of the archive, with its tables, and its stored values."""
    return {"bytes": {"all": Path(path).stat().st_size}, "values": int(_store(path).indptr[-1])}


def sums(path: str) -> dict[str, Any]:
    """Sums that are equal for archives of the same matrix; exact for counts."""
    store, values, total, weighted = _store(path), 0, 0, 0
    for first in range(0, store.n_obs, _BLOCK):
        cells = store.gather_rows(range(first, min(first + _BLOCK, store.n_obs)), n_threads=THREADS)
        values += cells.nnz
        total += int(cells.data.sum(dtype=np.float64))
        weighted += int((cells.data.astype(np.float64) * cells.indices).sum())
    return {"sums": [store.n_obs, values, total, weighted]}


def gather(path: str, batch: int, batches: int, seed: int) -> dict[str, Any]:
    """Read as many random cells at once, several times; they depend on the seed alone."""
    store, rng = _store(path), np.random.default_rng(seed)
    rows = [rng.permutation(store.n_obs)[:batch] for _ in range(batches)]
    start = time.perf_counter()
    cells = sum(store.gather_rows(some, n_threads=THREADS).shape[0] for some in rows)
    return {"seconds": time.perf_counter() - start, "cells": cells}


@functools.cache
def _store(path: str) -> Any:
    return cellstream.open(path)


if __name__ == "__main__":
    serve(versions, convert, size, sums, gather)
