"""The archives of a release that later ones have to read: `python release_archives.py` writes them.

They are packed into one file of ``tests/golden``, which never changes. Run it once for each release
that changes a format, in an environment with that release.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from places import GOLDEN

import scdl
from storage_backends.zarr.codecs.profiles import PROFILES

N_OBS, N_VARS = 40, 30
#: Name of the archive that grew from 20 cells.
GROWN = "grown.scdl"
ARCHIVES = ("cells.scdl", GROWN, *(f"{profile}.zarr" for profile in PROFILES))


def cells() -> ad.AnnData:
    """The cells of all archives, computed without random numbers, which differ among versions."""
    at = np.arange(N_OBS * N_VARS).reshape(N_OBS, N_VARS)
    counts = np.where(at * at % 7 < 3, at * 37 % 251, 0).astype(np.float32)
    names = [f"cell{i}" for i in range(N_OBS)]
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical([("T", "B", "é")[i % 3] for i in range(N_OBS)], ["B", "T", "é"]),
            "depth": counts.sum(1),
            "batch": pd.array([None if i % 5 == 0 else i % 4 for i in range(N_OBS)], dtype="Int64"),
        },
        index=names,
    )
    var = pd.DataFrame({"length": range(N_VARS)}, index=[f"gene{i}" for i in range(N_VARS)])
    edges = sp.coo_matrix(
        (np.linspace(0.5, 1, N_OBS, dtype=np.float32), (range(N_OBS), np.roll(range(N_OBS), 1)))
    )
    return ad.AnnData(
        sp.csr_matrix(counts),
        obs=obs,
        var=var,
        obsm={"X_pca": np.sqrt(at[:, :4]).astype(np.float32)},
        obsp={"connectivities": edges.tocsr()},
    )


def write(directory: Path) -> None:
    """Write all archives, a collection of them, and a split of one."""
    adata = cells()
    kept = {"obsm": ["X_pca"], "neighbor_key": "connectivities"}
    scdl.convert(adata, directory / "cells.scdl", **kept)
    scdl.convert(adata[:20].copy(), directory / GROWN, obsm=["X_pca"])
    # Cells are not joined to the last file of obs: several files are a format of their own.
    with mock.patch("storage_backends.memmap.table_writer.ROW_GROUP", 8):
        scdl.open(directory / GROWN).append(adata[20:].copy())
    for profile in PROFILES:
        scdl.convert(adata, directory / f"{profile}.zarr", compression=profile)
    scdl.open(directory).save_manifest(obs=["kind"])
    scdl.split(scdl.open(directory / "cells.scdl"), (0.75, 0.25), seed=0).save(
        directory / "split.npz"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        write(Path(place))
        target = GOLDEN / f"release_{scdl.__version__}"
        shutil.make_archive(str(target), "zip", place)
