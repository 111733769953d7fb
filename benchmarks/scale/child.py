"""Measurements of collections of many members; see `benchmarks.common.child`."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scdl
import scdl.collection.collection  # with what it imports, which is not measured
from benchmarks.common.child import THREADS, serve
from scdl import SingleCellLoader
from scdl.collection.paths import MANIFEST


def link(source: str, directory: str, members: int) -> dict[str, Any]:
    """Make a collection of hard links of one archive, with a manifest."""
    suffix = Path(source).suffix
    for i in range(members):
        shutil.copytree(source, Path(directory) / f"{i:05}{suffix}", copy_function=os.link)
    return manifest(directory)


def manifest(directory: str) -> dict[str, Any]:
    """Write the manifest of a directory that has none."""
    (Path(directory) / MANIFEST).unlink(missing_ok=True)
    start = time.perf_counter()
    scdl.SingleCellCollection(directory).save_manifest()
    return {"seconds": time.perf_counter() - start}


def opened(path: str) -> dict[str, Any]:
    """Open a collection that has a manifest."""
    start = time.perf_counter()
    cells = scdl.open(path)
    return {"cells": cells.n_obs, "seconds": time.perf_counter() - start}


def with_obs(path: str) -> dict[str, Any]:
    """Make a loader of a new collection that gives one column of obs."""
    start = time.perf_counter()
    loader = SingleCellLoader(scdl.open(path), obs=["cell_type"])
    seconds = time.perf_counter() - start
    return {"labels": len(loader.vocabulary["cell_type"]), "seconds": seconds}


def flattened(path: str, target: str, shuffle: int | None) -> dict[str, Any]:
    """Write a collection as one archive, shuffled with a seed or not, and remove it."""
    cells = scdl.SingleCellCollection(path)
    start = time.perf_counter()
    cells.flatten(target, shuffle=shuffle)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return {"cells": cells.n_obs, "seconds": seconds}


def kept(path: str) -> dict[str, Any]:
    """Have the manifest keep the column of obs."""
    start = time.perf_counter()
    scdl.SingleCellCollection(path).save_manifest(obs=["cell_type"])
    return {"seconds": time.perf_counter() - start}


def forgotten(path: str) -> dict[str, Any]:
    """Have the manifest keep no columns."""
    scdl.SingleCellCollection(path).save_manifest(obs=())
    return {}


def table(path: str, read: str) -> dict[str, Any]:
    """Read something of the table of an archive of many cells."""
    cells = scdl.open(path)
    reads: dict[str, Callable[[], Any]] = {
        "column": lambda: cells.read_obs("donor", index=False),
        "obs": lambda: cells.obs,
        "arrow": lambda: cells.read_obs(arrow_strings=True),
        "where": lambda: cells.where("cell_type == 'type 03' and n_genes > 500"),
        "balanced": lambda: SingleCellLoader(cells, order="balanced", by="cell_type"),
        "split": lambda: scdl.split(cells, (0.8, 0.2), by="donor"),
    }
    # What the first read of a process imports does not count.
    cells.read_rows([0], obs="donor")
    cells.store.read_table("obs", stop=1).to_pandas()
    start = time.perf_counter()
    found = reads[read]()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "found": len(found)}


def epoch(path: str, order: str, cells: int) -> dict[str, Any]:
    """Read some cells of an epoch, each time the next; the first call opens the members."""
    batches, start, n = _batches(path, order), time.perf_counter(), 0
    while n < cells:
        batch = next(batches)
        n += len(batch)
    return {"cells": n, "seconds": time.perf_counter() - start}


@functools.cache
def _batches(path: str, order: str) -> Any:
    cells = scdl.open(path)
    size = min(1_024, cells.n_obs)
    loader = SingleCellLoader(cells, size, order=order, threads=THREADS)
    return (batch for _ in iter(int, 1) for batch in loader)


if __name__ == "__main__":
    serve(link, manifest, opened, with_obs, kept, forgotten, table, flattened, epoch)
