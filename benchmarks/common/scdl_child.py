"""Measurements of scdl; see `benchmarks.common.child`."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import scdl
from benchmarks.common.child import anonymous_bytes, serve
from benchmarks.common.page_cache import drop

_MATRIX = ("data", "indices", "indptr")
_imported = anonymous_bytes()


def convert(source: str, target: str, profile: str) -> dict[str, Any]:
    """Write an archive of the raw counts, which syncs it."""
    options: dict[str, Any] = {"backend": "memmap"}
    if profile != "memmap":
        options = {"backend": "zarr", "compression": profile, "only_matrix": True}
    start = time.perf_counter()
    scdl.convert(source, target, **options)
    return {"seconds": time.perf_counter() - start, "imported": _imported}


def size(path: str) -> dict[str, Any]:
    """Bytes of the arrays of the matrix, as stored, and its stored values."""
    store = _dataset(path).store
    stored = {name: int(store.stored_bytes[name]) for name in _MATRIX}
    return {"bytes": stored, "values": store.spec("data").length}


def sums(path: str) -> dict[str, Any]:
    """Sums that are equal for archives of the same matrix; exact for counts."""
    dataset = _dataset(path)
    values = total = weighted = 0
    for rows in _blocks(len(dataset), 512, 1_024, 0):
        batch = dataset.read_rows(rows)
        values += len(batch.data)
        total += int(batch.data.sum(dtype=np.float64))
        weighted += int((batch.data.astype(np.float64) * batch.indices).sum())
    return {"sums": [len(dataset), values, total, weighted]}


#: Blocks that are read at once, as many as by annbatch; batches are slices of them.
_READ_BLOCKS = 64


def epoch(
    path: str, block: int, batch: int, seed: int, dense: bool = False, limit: int | None = None
) -> dict[str, Any]:
    """Read all cells once, in random blocks of `block` cells; `limit` batches at most."""
    return _epoch(_dataset(path), block, batch, seed, dense, limit)


def cold_epoch(path: str, block: int, batch: int, seed: int) -> dict[str, Any]:
    """As `epoch`, after the archive has left the page cache; the time includes opening it.

    The answer also has the share that was still cached, and the bytes read from the disk.
    """
    _dataset.cache_clear()
    gc.collect()  # Mapped pages stay in the cache.
    resident = drop(Path(path))
    read_before = _read_bytes()
    start = time.perf_counter()
    answer = _epoch(scdl.open(path), block, batch, seed)
    answer["seconds"] = time.perf_counter() - start
    return answer | {"resident": resident, "read": _read_bytes() - read_before}


def _epoch(
    dataset: Any, block: int, batch: int, seed: int, dense: bool = False, limit: int | None = None
) -> dict[str, Any]:
    read = max(batch, block * _READ_BLOCKS) if block > 1 else batch
    cells = count = 0
    start = time.perf_counter()
    for rows in _blocks(len(dataset), block, read, seed):
        # Dense arrays do not show in which order the values of a cell are read.
        loaded = dataset.read_rows(rows, ordered=not dense)
        for first in range(0, len(loaded), batch):
            if count == limit:
                return {"seconds": time.perf_counter() - start, "cells": cells}
            part = loaded[first : first + batch]
            if dense:
                part.to_dense().astype(np.float32, copy=False)
            cells += len(part)
            count += 1
    return {"seconds": time.perf_counter() - start, "cells": cells}


def _blocks(cells: int, block: int, batch: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Batches of whole blocks in random order, each shuffled; the last one has the rest."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(-(-cells // block))
    for first in range(0, len(order), batch // block):
        starts = order[first : first + batch // block] * block
        rows = (starts[:, None] + np.arange(block)).ravel()
        yield rng.permutation(rows[rows < cells])


def gather(
    path: str, batch: int, batches: int, seed: int, genes: str | None = None, view: bool = False
) -> dict[str, Any]:
    """Read as many random cells at once, several times; they depend on the seed alone.

    `genes` is a file of genes to select: by their names each time, or once for all with `view`.
    """
    dataset, rng = _dataset(path), np.random.default_rng(seed)
    rows = [rng.permutation(len(dataset))[:batch] for _ in range(batches)]
    names = None if genes is None else Path(genes).read_text().split()
    if names and view:
        dataset, names = dataset.select_genes(names), None
    start = time.perf_counter()
    cells = sum(len(dataset.read_rows(some, genes=names)) for some in rows)
    return {"seconds": time.perf_counter() - start, "cells": cells}


@functools.cache
def _dataset(path: str) -> Any:
    return scdl.open(path)


def _read_bytes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


if __name__ == "__main__":
    serve(convert, size, sums, epoch, cold_epoch, gather)
