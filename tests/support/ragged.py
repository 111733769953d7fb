"""Cells of several archives with different genes, obs, graphs and backends, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sources import names, random_cells, write_h5ad

import scdl

#: Backends and types of the members; genes by number.
MEMBERS: list[tuple[dict[str, Any], list[int]]] = [
    ({"backend": "memmap"}, [*range(12)]),
    ({"backend": "zarr", "compression": "archive"}, [*range(14, 3, -1)]),
    ({"backend": "memmap"}, [*range(12)]),
    ({"backend": "zarr", "compression": "fast"}, [3, 1, 15, 9, 4]),
    ({"backend": "memmap", "data_dtype": "float64"}, [*range(12)]),
]
#: Genes of more than 256 ids in one member, so that the types of ids differ.
WIDE = 300


@dataclass(frozen=True)
class Ragged:
    """Archives, and the AnnData objects that they were made of."""

    paths: list[Path]
    parts: list[anndata.AnnData]

    @property
    def starts(self) -> np.ndarray:
        return np.cumsum([0, *(part.n_obs for part in self.parts)])

    def cell(self, row: int) -> pd.Series:
        """Values of a cell by gene."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        part = self.parts[number]
        values = part.X[[row - self.starts[number]]].toarray()[0]
        return pd.Series(values, part.var_names)

    def dense(self, rows: Any, genes: list[str] | None = None) -> np.ndarray:
        """Cells in their own genes, as wide as the widest, or in those of a list."""
        width = max(part.n_vars for part in self.parts) if genes is None else len(genes)
        if genes is not None and len(rows):
            return np.stack([self.cell(row).reindex(genes, fill_value=0) for row in rows])
        cells = [np.pad(cell, (0, width - len(cell))) for cell in map(self.cell, rows)]
        return np.stack(cells) if cells else np.zeros((0, width))


def write_member(
    place: Path, name: str, genes: list[int], n_obs: int, seed: int, **options: Any
) -> tuple[Path, anndata.AnnData]:
    """An archive with the genes of those numbers, and what it was made of."""
    cells = random_cells(n_obs, len(genes), dtype="<u2", density=0.5, seed=seed)
    rng = np.random.default_rng(seed)
    var = pd.DataFrame(
        {"symbol": pd.Categorical([f"S{g}" for g in genes])}, index=[f"g{g}" for g in genes]
    )
    columns: dict[str, Any] = {
        "type": pd.Categorical(rng.choice(["B", "T"] if seed % 2 else ["NK", "T"], n_obs))
    }
    columns |= {"age": rng.integers(0, 9, n_obs)} if seed % 3 else {}
    obs = pd.DataFrame(columns, index=names(f"m{seed}-", n_obs))
    graph = {"next_cell_ids": random_cells(n_obs, n_obs, density=0.3, seed=seed + 50)}
    vectors = rng.normal(size=(n_obs, 3)).astype("f4")
    source = write_h5ad(
        place / f"{name}.h5ad", cells, obs=obs, var=var, obsm={"X_pca": vectors},
        obsp=graph if seed % 2 == 0 else None,
    )  # fmt: skip
    options = {"data_dtype": "float32", **options}
    key = "next_cell_ids" if seed % 2 == 0 else None
    scdl.convert(source, place / name, obsm=["X_pca"], neighbor_key=key, **options)
    source.unlink()
    part = anndata.AnnData(sp.csr_matrix(cells.csr()), obs=obs, var=var, obsm={"X_pca": vectors})
    if seed % 2 == 0:
        part.obsp["next_cell_ids"] = sp.csr_matrix(graph["next_cell_ids"].csr())
    return place / name, part


def write_members(place: Path) -> Ragged:
    """Members of all backends, in a directory."""
    place.mkdir(parents=True, exist_ok=True)
    made = [
        write_member(place, f"m{i}", genes, 20 + i, i, **options)
        for i, (options, genes) in enumerate(MEMBERS)
    ]
    wide = [*range(WIDE)]
    made.append(write_member(place, "m5", wide, 4, 5, backend="memmap"))
    return Ragged([path for path, _ in made], [part for _, part in made])
