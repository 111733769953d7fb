"""The files and names that the examples in docstrings use; the site shows this code."""

from typing import Any


def documented_cells() -> dict[str, Any]:
    """Write the files into the working directory, and return the names."""
    # begin
    from pathlib import Path

    import anndata as ad
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp

    import scdl

    counts = [[0, 2, 0, 1], [3, 0, 0, 0], [0, 0, 5, 1], [1, 1, 0, 0], [0, 4, 0, 2], [2, 0, 1, 0]]
    types = pd.Categorical(["B", "T", "NK", "T", "B", "T"])
    obs = pd.DataFrame({"cell_type": types, "donor": ["d1", "d1", "d2", "d2", "d3", "d3"]})
    adata = ad.AnnData(
        sp.csr_matrix(np.array(counts, dtype=np.float32)),
        obs.set_index(obs.index.astype(str)),
        pd.DataFrame(index=["CD19", "CD3E", "GNLY", "LYZ"]),
        obsm={"X_pca": np.arange(12, dtype=np.float32).reshape(6, 2)},
        layers={"spliced": sp.csr_matrix(np.array(counts, dtype=np.float32) // 2)},
        # Each cell has the next one as its only neighbour; the last one has none.
        obsp={"connectivities": sp.csr_matrix(np.eye(6, k=1, dtype=np.float32))},
    )
    adata.uns["title"] = "six cells"
    Path("files").mkdir()
    for name in ("cells", "more"):
        adata.obs_names = [f"{name.removesuffix('s')}{i}" for i in range(6)]
        adata.write_h5ad(f"{name}.h5ad")
        adata.write_h5ad(f"files/{name}.h5ad")

    stored = {"obsm": "X_pca", "layers": "spliced", "neighbor_key": "connectivities"}
    scdl.convert("cells.h5ad", "cells.scdl", **stored)
    Path("atlas").mkdir()
    scdl.convert("cells.h5ad", "cells.zarr")
    scdl.convert("cells.h5ad", "atlas/cells.scdl", **stored)
    scdl.convert("more.h5ad", "atlas/more.scdl", **stored)
    data = scdl.open("cells.scdl")  # 6 cells of 4 genes
    atlas = scdl.open("atlas")  # a collection of 12 cells
    # end
    return {"ad": ad, "np": np, "scdl": scdl, "data": data, "atlas": atlas}
