"""Measurements of cells that do not come from memory; see `benchmarks.common.child`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

import scdl
from benchmarks.common.child import THREADS, serve
from scdl import SingleCellLoader

_BATCH = 1_024


def epoch(
    path: str, warm: str, seconds: float, order: str = "block", cells: int | None = None,
    cache_dir: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Read batches of an epoch for some seconds, and tell what was read from storage for them.

    Parameters
    ----------
    warm
        A small local archive of the backend, which is read first, so that kernels are compiled.
    cells
        Leave out the others.

    Returns
    -------
    dict
        Seconds until the archive is open and until there is a first batch (``opened``, ``first``);
        cells and seconds after that batch, and since the archive is open (``all_cells``,
        ``all_seconds``); bytes of these cells, and that came from disks (``useful``, ``read``);
        and memory at the end that would have to be swapped out (``private_dirty``, bytes).
    """
    next(iter(_loader(scdl.open(warm))))
    began = time.perf_counter()
    data = scdl.open(path) if cache_dir is None else scdl.open(path, cache_dir=cache_dir)
    opened = time.perf_counter()
    rows = None if cells is None else range(min(cells, data.n_obs))
    batches: Any = iter(_loader(data, order=order, rows=rows))
    before, n = _read_bytes(), len(next(batches))
    first = start = time.perf_counter()
    n_measured = 0
    for batch in batches:
        n_measured += len(batch)
        if time.perf_counter() - start > seconds:
            break
    ended = time.perf_counter()
    useful, read = (n + n_measured) * data.bytes_per_cell, _read_bytes() - before
    private_dirty = _private_dirty()
    # Mapped pages would stay in the page cache.
    batches.close()
    data.close()
    return {
        "opened": opened - began,
        "first": first - began,
        "cells": n_measured,
        "seconds": ended - start,
        "all_cells": n + n_measured,
        "all_seconds": ended - opened,
        "useful": useful,
        "read": read,
        "private_dirty": private_dirty,
    }


def _loader(data: Any, **options: Any) -> SingleCellLoader:
    return SingleCellLoader(data, min(_BATCH, data.n_obs // 4), threads=THREADS, **options)


def cells_of(path: str, nbytes: int) -> dict[str, Any]:
    """Cells of an archive that need so many bytes of it, all at most."""
    data = scdl.open(path)
    return {"cells": int(min(nbytes / data.bytes_per_cell, data.n_obs))}


def set_variables(variables: dict[str, str]) -> dict[str, Any]:
    """Set variables of the environment of this process."""
    os.environ.update(variables)
    return {}


def mixing(path: str, batches: int) -> dict[str, Any]:
    """Label entropy of batches of the default order over that of random ones, for sorted labels."""
    data = scdl.open(path)
    loader = _loader(data)
    batch_size = loader.batch_size
    shares = np.random.default_rng(0).dirichlet(np.ones(40))
    labels = np.searchsorted(np.cumsum(shares)[:-1], np.arange(data.n_obs) / data.n_obs)
    means = []
    for order in (loader.order, scdl.training.orders.Random()):
        positions = order.positions(data.n_obs, 0, 0)
        found = positions[0 : min(batches, data.n_obs // batch_size) * batch_size]
        counts = [np.bincount(part) for part in labels[found].reshape(-1, batch_size)]
        parts = [count[count > 0] / batch_size for count in counts]
        means.append(np.mean([-(part * np.log(part)).sum() for part in parts]))
    return {"share": float(means[0] / means[1])}


def _read_bytes() -> int:
    """Bytes that this process had read from disks."""
    return _number("io", "read_bytes:")


def _private_dirty() -> int:
    """Memory of this process that only swapping could free, bytes."""
    return _number("smaps_rollup", "Private_Dirty:") * 1024


def _number(name: str, field: str) -> int:
    """A field of a file that Linux has of this process; 0 elsewhere."""
    file = Path("/proc/self", name)
    for line in file.read_text().splitlines() if file.exists() else ():
        if line.startswith(field):
            return int(line.split()[1])
    return 0


if __name__ == "__main__":
    serve(epoch, cells_of, set_variables, mixing)
