"""Measurements of a loader; see `benchmarks.common.child`."""

from __future__ import annotations

import functools
import gc
import importlib
import shutil
import time
from collections.abc import Iterable
from typing import Any

from benchmarks.common.child import anonymous_bytes, serve
from benchmarks.loaders.readers import READERS


def imports(reader: str) -> dict[str, Any]:
    """Import the modules of a loader; the answer has the memory after each."""
    start = time.perf_counter()
    taken = []
    for module in READERS[reader].modules:
        importlib.import_module(module)
        taken.append(anonymous_bytes())
    return {"seconds": time.perf_counter() - start, "anonymous": taken}


def epoch(
    reader: str, path: str, layout: str = "csr", limit: int | None = None, **settings: Any
) -> dict[str, Any]:
    """Read all cells once; `limit` ends it after so many batches. The first one also opens."""
    cells, start = 0, time.perf_counter()
    loader = _loader(reader, path, layout=layout, **settings)
    for count, batch in enumerate(loader, 1):
        cells += READERS[reader].cells(batch, layout)
        if count == limit:
            break
    return {"seconds": time.perf_counter() - start, "cells": cells}


def close() -> dict[str, Any]:
    """Close all archives and workers, since mapped pages cannot leave the page cache."""
    _loader.cache_clear()
    gc.collect()
    return {}


@functools.cache
def _loader(
    reader: str,
    path: str,
    batch: int,
    order: str = "block",
    layout: str = "csr",
    workers: int = 0,
    **options: Any,
) -> Iterable[Any]:
    return READERS[reader].loader(path, batch, order, layout, workers, **options)


def first_batch(path: str, batch: int) -> dict[str, Any]:
    """Read the first batch, timed from the start of the imports and from opening."""
    start = time.perf_counter()
    imports("SingleCellLoader")
    imported = time.perf_counter()
    batches = iter(_loader("SingleCellLoader", path, batch))
    next(batches)
    end = time.perf_counter()
    return {"seconds": end - imported, "with_imports": end - start}


def entropy(path: str, batch: int, **options: Any) -> dict[str, Any]:
    """Read all cells once, as if they were sorted by cell type, and measure how mixed batches are.

    The entropy of the cell types of a batch, in bits, is averaged over batches: in the order of
    the loader, and in random order.
    """
    import numpy as np

    import scdl

    dataset = scdl.open(path)
    types = np.unique(dataset.obs["cell_type"].to_numpy(str), return_inverse=True)[1]
    loader = _loader("SingleCellLoader", path, batch, **options)
    start = time.perf_counter()
    order = np.concatenate([given.rows.numpy() for given in loader])
    seconds = time.perf_counter() - start
    random = np.random.default_rng(0).permutation(len(dataset))
    entropies = (_mean_entropy(np.sort(types)[rows], batch) for rows in (order, random))
    return dict(zip(("entropy", "random"), entropies, strict=True)) | {
        "seconds": seconds,
        "cells": len(order),
    }


def _mean_entropy(labels: Any, batch: int) -> float:
    import numpy as np

    whole = labels[: len(labels) // batch * batch].reshape(-1, batch)
    shares = np.stack([np.bincount(row, minlength=labels.max() + 1) for row in whole]) / batch
    logarithms = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return float(-(shares * logarithms).sum(axis=1).mean())


def concatenate(path: str, times: int, target: str) -> dict[str, Any]:
    """Write an archive of several times the same cells, unless it is there."""
    import scdl

    dataset = scdl.open(path)
    cells = len(dataset) * times
    try:
        there = len(scdl.open(target)) == cells
    except scdl.errors.ScdlError:
        there = False
    if not there:
        shutil.rmtree(target, ignore_errors=True)
        dataset.concat([dataset] * (times - 1), output_path=target)
    return {"cells": cells}


if __name__ == "__main__":
    serve(imports, epoch, close, first_batch, entropy, concatenate)
