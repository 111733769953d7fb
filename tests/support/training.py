"""Cells to train from, in every kind of archive, and what batches of them must hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sources import Cells, names, random_cells, write_h5ad

import scdl

N_OBS, N_VARS = 1_009, 40
#: Cells without a value.
EMPTY = [0, 500, N_OBS - 1]
#: Cells without a neighbour.
ALONE = [3, 700]

ARCHIVES: dict[str, dict[str, Any]] = {
    "memmap": {"backend": "memmap"},
    "fast": {"backend": "zarr", "compression": "fast"},
    "balanced": {"backend": "zarr", "compression": "balanced"},
}


def without(cells: Cells, rows: list[int]) -> Cells:
    kept = ~np.isin(cells.rows, rows)
    return replace(
        cells, rows=cells.rows[kept], columns=cells.columns[kept], values=cells.values[kept]
    )


CELLS = without(random_cells(N_OBS, N_VARS, dtype="<u2", seed=11), EMPTY).astype("<f4")
X = CELLS.csr()
DENSE = X.toarray()
GRAPH = without(random_cells(N_OBS, N_OBS, density=0.006, seed=12), ALONE)
VECTORS = np.random.default_rng(13).normal(size=(N_OBS, 3)).astype("f4")


def _obs() -> pd.DataFrame:
    """Columns of every kind; the rows are sorted by ``type``."""
    rng = np.random.default_rng(14)
    types = np.repeat(["T", "B", "NK"], [600, 300, N_OBS - 900])
    some = rng.random(N_OBS) < 0.2
    guides = np.array(["control", "A", "B", "C"], object)[rng.integers(0, 4, N_OBS)]
    return pd.DataFrame(
        {
            "type": pd.Categorical(types, ["NK", "unused", "B", "T"]),
            "guide": pd.Categorical(np.where(some, None, guides), ["A", "B", "C", "control"]),
            "donor": np.array([f"d{i}" for i in rng.integers(0, 9, N_OBS)], object),
            "line": rng.choice([7, 3], N_OBS),
            "age": rng.integers(-9, 90, N_OBS),
            "small": rng.integers(0, 9, N_OBS).astype(np.uint8),
            "score": np.where(some, np.nan, rng.random(N_OBS)),
            "half": rng.random(N_OBS).astype(np.float32),
            "flag": rng.random(N_OBS) < 0.5,
            "perhaps": pd.arrays.BooleanArray(rng.random(N_OBS) < 0.5, some),
        },
        index=names("cell", N_OBS),
    )


OBS = _obs()
GENES = names("gene", N_VARS)


def write_archives(place: Path) -> dict[str, Path]:
    """The same cells in archives of all kinds, by name, and as ``h5ad``."""
    source = write_h5ad(
        place / "a.h5ad", CELLS, obs=OBS, obsm={"X_pca": VECTORS}, obsp={"next_cell_ids": GRAPH}
    )
    for name, options in ARCHIVES.items():
        scdl.convert(source, place / name, obsm=["X_pca"], neighbor_key="next_cell_ids", **options)
    return {"h5ad": source, **{name: place / name for name in ARCHIVES}}


def normalized(dense: np.ndarray, target: float) -> np.ndarray:
    """What ``scanpy.pp.normalize_total`` makes of cells."""
    totals = dense.sum(axis=1, keepdims=True, dtype=np.float64)
    return dense / np.where(totals == 0, 1.0, totals / target)


def padded(cells: np.ndarray, length: int, by_value: bool) -> tuple[np.ndarray, np.ndarray]:
    """Values and genes of dense cells in rows of one length."""
    values = np.zeros((len(cells), length), cells.dtype)
    genes = np.full((len(cells), length), cells.shape[1])
    for i, cell in enumerate(cells):
        stored = np.flatnonzero(cell)
        if by_value:
            stored = stored[np.argsort(-cell[stored], kind="stable")]
        stored = stored[:length]
        values[i, : len(stored)], genes[i, : len(stored)] = cell[stored], stored
    return values, genes
