"""Measurements of cells that do not come from memory; see `benchmarks.common.child`."""

from __future__ import annotations

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
    """
    next(iter(_loader(scdl.open(warm))))
    began = time.perf_counter()
    data = scdl.open(path) if cache_dir is None else scdl.open(path, cache_dir=cache_dir)
    rows = None if cells is None else range(min(cells, data.n_obs))
    batches: Any = iter(_loader(data, order=order, rows=rows))
    before, n = _read_bytes(), len(next(batches))
    first = start = time.perf_counter()
    n_measured = 0
    for batch in batches:
        n_measured += len(batch)
        if time.perf_counter() - start > seconds:
            break
    measured = time.perf_counter() - start
    useful, read = (n + n_measured) * data.bytes_per_cell, _read_bytes() - before
    # Mapped pages would stay in the page cache.
    batches.close()
    data.close()
    return {
        "first": first - began,
        "cells": n_measured,
        "seconds": measured,
        "useful": useful,
        "read": read,
    }


def _loader(data: Any, **options: Any) -> SingleCellLoader:
    return SingleCellLoader(data, min(_BATCH, data.n_obs // 4), threads=THREADS, **options)


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
    io = Path("/proc/self/io")
    lines = io.read_text().splitlines() if io.exists() else ["read_bytes: 0"]
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


if __name__ == "__main__":
    serve(epoch, mixing)
