"""Assembly of cells of several archives, or of a gene space, into one AnnData in memory."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdl.archive.frames import frame_of
from scdl.errors import ScdlWarning
from storage_backends.compute.arrow import shared_columns

if TYPE_CHECKING:
    from scdl.dataset.rows import RowReader


def assemble(cells: RowReader, rows: NDArray[np.int64] | None) -> anndata.AnnData:
    """X, obs, var, obsm and fields of cells at some positions; None: all.

    Raises
    ------
    GeneError
        The cells have different genes.
    """
    at = np.arange(cells.n_obs) if rows is None else rows
    batch = cells.read_rows(at, obsm=cells._vector_keys(), fields=cells.fields)
    made = anndata.AnnData(
        batch.to_scipy(),
        _obs(cells, at),
        _var(cells, at),
        obsm=dict(batch.obsm),
        layers={name: read.to_scipy() for name, read in batch.fields.items()},
    )
    if cells.neighbor_keys:
        warnings.warn(
            f"{cells!r}: neighbour graphs are left out: {', '.join(cells.neighbor_keys)}; flatten "
            "writes an archive that contains them",
            ScdlWarning,
            stacklevel=3,
        )
    return made


def _obs(cells: RowReader, at: NDArray[np.int64]) -> pd.DataFrame:
    if cells.obs_features() is None:
        return pd.DataFrame(index=[str(i) for i in at])
    frame = cells.obs.iloc[at]
    return frame.set_axis(frame.index.astype(str), axis=0)


def _var(cells: RowReader, at: NDArray[np.int64]) -> pd.DataFrame:
    taken = np.unique(cells.info.blocks_of(at)).tolist() or [0]
    tables = [cells.var_features().blocks[i].table() for i in taken]
    shared = shared_columns(tables)
    lost = {name for table in tables for name in table.schema.names} - {*shared.schema.names}
    if lost:
        warnings.warn(
            f"{cells!r}: columns of var that differ between the sources of its cells are left out: "
            f"{', '.join(sorted(lost))}; var_features() has them for each cell",
            ScdlWarning,
            stacklevel=4,
        )
    frame = frame_of(shared)
    return frame.set_axis(frame.index.astype(str), axis=0)
