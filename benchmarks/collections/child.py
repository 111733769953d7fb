"""Measurements of collections; see `benchmarks.common.child`."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np

import scdl
from benchmarks.common.child import THREADS, anonymous_bytes, serve
from benchmarks.common.scdl_child import sums

_imported = anonymous_bytes()
_GENES = np.random.default_rng(0)


def split(source: str, directory: str, members: int, kept: float) -> dict[str, Any]:
    """Divide a file among members, files and archives, in one gene space and in two.

    With two gene spaces, every other member has a share `kept` of the genes. The members of
    ``same`` are also flattened, to ``flat``.
    """
    cells, place = anndata.read_h5ad(source), Path(directory)
    counts, var = cells.raw.X, cells.raw.var[[]]
    fewer = np.sort(_GENES.choice(len(var), int(len(var) * kept), replace=False))
    edges = np.linspace(0, cells.n_obs, members + 1).astype(int)
    for kind in ("same", "two"):
        (place / kind).mkdir(parents=True)
        (place / f"{kind}-h5ad").mkdir()
        for i in range(members):
            genes = fewer if kind == "two" and i % 2 else slice(None)
            rows = slice(edges[i], edges[i + 1])
            file = place / f"{kind}-h5ad" / f"{i:04}.h5ad"
            parts = {"obs": cells.obs.iloc[rows], "var": var.iloc[genes]}
            anndata.AnnData(counts[rows][:, genes], **parts).write_h5ad(file)
            scdl.convert(file, place / kind / file.stem, data_dtype="float32")
        made = scdl.SingleCellCollection(place / kind)
        made.save_manifest()
        if kind == "same":
            made.flatten(place / "flat")
    return {"members": members}


def epoch(path: str, genes: int = 0, ordered: bool = True, layout: str = "csr") -> dict[str, Any]:
    """One epoch of a loader in block order; with `genes`, of that many selected genes."""
    cells = _cells(path, genes, ordered)
    # Without selected genes, members of two gene spaces are read by their own genes.
    loader = scdl.SingleCellLoader(
        cells,
        min(1_024, cells.n_obs),
        layout=layout,
        threads=THREADS,
        genes=None if genes or len(cells.n_vars) == 1 else "own",
    )
    start, n, total = time.perf_counter(), 0, 0
    for batch in loader:
        n += len(batch)
        total += batch.x.values().numel() if layout == "csr" else 0
    return {"cells": n, "values": total, "seconds": time.perf_counter() - start}


@functools.cache
def _cells(path: str, genes: int, ordered: bool) -> Any:
    cells = scdl.open(path)
    if not genes:
        return cells
    known = cells.select_genes("union", missing="zero").gene_names
    chosen = np.random.default_rng(1).choice(len(known), genes, replace=False)
    return cells.select_genes(
        known[np.sort(chosen) if ordered else chosen].tolist(), missing="zero"
    )


def flatten(source: str, target: str) -> dict[str, Any]:
    """Write the members of a collection as one archive, which syncs it; opening is included."""
    paths = sorted(path for path in Path(source).iterdir() if path.is_dir())
    # Writing back what was written before must not slow this flattening.
    os.sync()
    start = time.perf_counter()
    scdl.SingleCellCollection(paths).flatten(target)
    return {"seconds": time.perf_counter() - start, "imported": _imported}


def their_flatten(source: str, members: str, target: str) -> dict[str, Any]:
    """Flatten by bionemo-scdl the archives that it has converted from the files in `source`.

    A collection can be flattened once only: that changes its first member.
    """
    from bionemo.scdl.io.single_cell_collection import SingleCellCollection

    collection = SingleCellCollection(members)
    for file in sorted(Path(source).iterdir()):
        collection.load_h5ad(str(file), use_X_not_raw=True)
    os.sync()
    start = time.perf_counter()
    collection.flatten(target)
    return {"seconds": time.perf_counter() - start}


if __name__ == "__main__":
    serve(split, epoch, flatten, their_flatten, sums)
