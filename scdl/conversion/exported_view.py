"""Elements of an archive as in-memory objects of anndata."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.elements import read_items
from scdl.archive.features import shared_var, spaces_of
from scdl.archive.frames import frame_of
from scdl.archive.schema import MATRIX, OBS, Info, var_table
from scdl.archive.stored_rows import StoredRows
from scdl.errors import ScdlWarning, SourceError
from scdl.sources.archive import Elements
from storage_backends.base import ArrayStore


class ArchiveView(Elements):
    """Reads elements of an archive into memory.

    Parameters
    ----------
    rows
        Positions of the cells to read; None: all.
    """

    def __init__(self, store: ArrayStore, rows: NDArray[np.int64] | None = None) -> None:
        info = Info.from_attrs(store.attrs, store.path)
        self._blocks = blocks_of_one_space(store, info, rows)
        super().__init__(store, info, self._blocks[0])
        self.rows = rows
        self._indexes: dict[str, pd.Index] = {}

    def read(self, name: str) -> Any:
        """Read an element, restricted to the selected cells."""
        if name == OBS:
            return self._obs()
        if name == self.genes:
            return frame_of(shared_var(self.store, self._blocks))
        sparse = self.sparse(name)
        by_cells = name == "raw/X" or name.startswith(("X", "layers/", "obsm/", "obsp/"))
        rows = self.rows if by_cells else None
        if sparse is not None and sparse[1].format == "csr":
            at = np.arange(sparse[1].shape[0]) if rows is None else rows
            n_columns = sparse[1].shape[1]
            value: Any = csr.scipy_matrix(sp.csr_matrix, self.csr(name, at), (len(at), n_columns))
        elif sparse is not None:
            data, indices, indptr = (self.store.read(sparse[0] + part) for part in MATRIX)
            parts = csr.SparseRows(data, indices, indptr)
            value = csr.scipy_matrix(sp.csc_matrix, parts, sparse[1].shape)
            value = value if rows is None else value[rows]
        elif name in self.store.arrays:
            value = self.store.read(name) if rows is None else read_items(self.store, name, rows)
        else:
            value = self[name]
            if rows is not None:
                value = value.iloc[rows] if hasattr(value, "iloc") else value[rows]
            if hasattr(value, "columns") and (named := _NAMED.get(name.rpartition("/")[0])):
                # AnnData also compares the dtypes of indexes.
                value = value.set_axis(self._index_of(named), axis=0)
        return value[:, rows] if rows is not None and name.startswith("obsp/") else value

    def _index_of(self, table: str) -> pd.Index:
        """Names of the selected cells, or of genes."""
        if table not in self._indexes:
            self._indexes[table] = self.read(table).index
        return self._indexes[table]

    def _obs(self) -> pd.DataFrame:
        if OBS not in self.store.tables:
            names = range(self.info.n_obs) if self.rows is None else self.rows
            return pd.DataFrame(index=[str(i) for i in names])
        frame = frame_of(self.store.read_table(OBS))
        return frame if self.rows is None else frame.iloc[self.rows]

    def csr(self, name: str, rows: NDArray[np.int64]) -> csr.SparseRows:
        """Read rows of a matrix that is stored in CSR form, sorted by column."""
        sparse = self.sparse(name)
        assert sparse is not None
        values = StoredRows.of(self.store, sparse[0], rows).read()
        if self.is_sorted(name):
            return values
        return csr.clean(values, sparse[1].shape[1], self.store.path)


def blocks_of_one_space(
    store: ArrayStore, info: Info, rows: NDArray[np.int64] | None
) -> Sequence[int]:
    """Indices of the feature blocks of cells (at least one), which must have the same genes.

    An AnnData has a single var, so columns of var that differ between the blocks cause a warning.
    """
    stops = [block.stop for block in info.blocks]
    taken: Sequence[int] = range(len(stops))
    if len(stops) == 1:
        return taken
    if rows is not None:
        taken = np.unique(info.blocks_of(rows)).tolist() or [0]
    if len(set(spaces_of(store, info)[np.array(taken)].tolist())) > 1:
        raise SourceError(
            f"{store.path}: the cells have different genes, in {len(stops)} feature blocks, but an "
            "AnnData has a single var; select the rows of one block (the blocks end at "
            f"{', '.join(map(str, stops))}), or map them to one gene space with genes="
        )
    names = {name for i in taken for name in store.table_schema(var_table(i)).names}
    lost = names - set(shared_var(store, taken).schema.names)
    if lost:
        warnings.warn(
            f"{store.path}: columns of var that differ between feature blocks are left out: "
            f"{', '.join(sorted(lost))}; read them with var_features()",
            ScdlWarning,
            stacklevel=4,
        )
    return taken


#: Tables whose index the data frames of a mapping must have.
_NAMED = {"obsm": OBS, "varm": "var", "raw/varm": "raw/var"}
