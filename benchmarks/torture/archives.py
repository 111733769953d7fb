"""Small archives with every kind of file, to be damaged."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scdl

#: Keywords of conversions, by the kind of archive.
KINDS: dict[str, dict[str, str]] = {
    "memmap": {"backend": "memmap"},
    "zarr": {"backend": "zarr", "compression": "balanced"},
    "zarr, archive": {"backend": "zarr", "compression": "archive"},
}


def write_source(path: Path, cells: int, genes: int, seed: int = 0) -> Path:
    """Write an h5ad file with categories, nulls, names, vectors, a graph, layers and uns."""
    rng = np.random.default_rng(seed)

    def draw(n: int) -> np.ndarray:
        return rng.geometric(0.4, n)

    counts = sp.random(cells, genes, 0.2, "csr", np.float32, rng=rng, data_rvs=draw)
    maybe = np.where(rng.random(cells) < 0.2, np.nan, rng.random(cells))
    kinds = np.array(["B", "NK", "T"], object)[rng.integers(0, 3, cells)]
    obs = pd.DataFrame(
        {"type": pd.Categorical(kinds), "age": rng.integers(0, 90, cells), "score": maybe},
        index=[f"cell {i}" for i in range(cells)],
    )
    var = pd.DataFrame({"symbol": [f"G{i}" for i in range(genes)]}, index=_names("gene", genes))
    adata = ad.AnnData(
        counts,
        obs,
        var,
        layers={"counts": counts.copy()},
        obsm={"X_pca": rng.normal(size=(cells, 4)).astype(np.float32)},
        obsp={"next_cell_ids": sp.random(cells, cells, 0.05, "csr", np.float32, rng=rng)},
        uns={"title": "cells to be damaged", "numbers": np.arange(20)},
    )
    adata.write_h5ad(path)
    return path


def _names(prefix: str, n: int) -> list[str]:
    return [f"{prefix} {i}" for i in range(n)]


def write_archive(source: Path, path: Path, kind: str) -> Path:
    """Convert the source to an archive of one kind."""
    scdl.convert(
        source,
        path,
        obsm=["X_pca"],
        neighbor_key="next_cell_ids",
        **KINDS[kind],  # type: ignore[arg-type]
    )
    return path
