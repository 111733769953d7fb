"""The elements of an archive as anndata has them in memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.features import shared_var, spaces_of
from scdl.archive.frames import frame_of
from scdl.archive.schema import MATRIX, OBS, Info, var_table
from scdl.errors import ScdlWarning, SourceError
from scdl.sources.archive import Elements
from storage_backends.base import ArrayStore


class ArchiveView(Elements):
    """What an archive holds, in memory.

    Parameters
    ----------
    rows
        Cells to take; None: all.
    """

    def __init__(self, store: ArrayStore, rows: NDArray[np.int64] | None = None) -> None:
        info = Info.from_attrs(store.attrs, store.path)
        self._blocks = blocks_of_one_space(store, info, rows)
        super().__init__(store, info, self._blocks[0])
        self.rows = rows
        self._indexes: dict[str, pd.Index] = {}

    def read(self, name: str) -> Any:
        """An element, of the chosen cells."""
        if name == OBS:
            return self._obs()
        if name == self.genes:
            return frame_of(shared_var(self.store, self._blocks))
        found = self.sparse(name)
        by_cells = name == "raw/X" or name.startswith(("X", "layers/", "obsm/", "obsp/"))
        rows = self.rows if by_cells else None
        if found is not None and found[1].format == "csr":
            at = np.arange(found[1].shape[0]) if rows is None else rows
            n_columns = found[1].shape[1]
            value: Any = scipy_matrix(sp.csr_matrix, self.csr(name, at), (len(at), n_columns))
        elif found is not None:
            data, indices, indptr = (self.store.read(found[0] + part) for part in MATRIX)
            parts = csr.SparseRows(data, indices, indptr)
            value = scipy_matrix(sp.csc_matrix, parts, found[1].shape)
            value = value if rows is None else value[rows]
        elif name in self.store.arrays:
            value = self._dense(name, rows)
        else:
            value = self[name]
            if rows is not None:
                value = value.iloc[rows] if hasattr(value, "iloc") else value[rows]
            if hasattr(value, "columns") and (named := _NAMED.get(name.rpartition("/")[0])):
                # AnnData compares the types of names too.
                value = value.set_axis(self._index_of(named), axis=0)
        return value[:, rows] if rows is not None and name.startswith("obsp/") else value

    def _index_of(self, table: str) -> pd.Index:
        """Names of the chosen cells, or of genes."""
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
        """Rows of a sparse matrix that is stored by rows."""
        found = self.sparse(name)
        assert found is not None
        values = csr.read(self.store, found[0], rows)
        if self.is_sorted(name):
            return values
        return csr.clean(values, found[1].shape[1], self.store.path)

    def _dense(self, name: str, rows: NDArray[np.int64] | None) -> NDArray[Any]:
        if rows is None:
            return self.store.read(name)
        spec = self.store.spec(name)
        out = np.empty((len(rows), *spec.item_shape), spec.dtype)
        self.store.read_ranges(name, rows, rows + 1, out)
        return out


def blocks_of_one_space(
    store: ArrayStore, info: Info, rows: NDArray[np.int64] | None
) -> Sequence[int]:
    """The feature blocks that some cells are of, at least one, all of the same genes.

    Warns of columns of var in which they differ: an AnnData has one var.
    """
    stops = [block.stop for block in info.blocks]
    taken: Sequence[int] = range(len(stops))
    if len(stops) == 1:
        return taken
    if rows is not None:
        taken = np.unique(np.searchsorted(stops, rows, side="right")).tolist() or [0]
    if len(set(spaces_of(store, info)[np.array(taken)].tolist())) > 1:
        raise SourceError(
            f"{store.path}: its cells have different genes, in {len(stops)} feature blocks, and an "
            "AnnData has one var; take the rows of one block, which end at "
            f"{', '.join(map(str, stops))}, or bring them into one gene space with genes="
        )
    names = {name for i in taken for name in store.table_schema(var_table(i)).names}
    lost = names - set(shared_var(store, taken).schema.names)
    if lost:
        warnings.warn(
            f"{store.path}: columns of var that differ between the sources of its cells are left "
            f"out: {', '.join(sorted(lost))}; var_features() has them for each cell",
            ScdlWarning,
            stacklevel=4,
        )
    return taken


def index_dtype(nnz: int, shape: tuple[int, int]) -> np.dtype[Any]:
    """Scipy computes with signed indices only."""
    return np.dtype(np.int64 if max(nnz, *shape) > np.iinfo(np.int32).max else np.int32)


def readable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Scipy has no matrices of halves."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype


#: Tables whose names of rows dataframes elsewhere have.
_NAMED = {"obsm": OBS, "varm": "var", "raw/varm": "raw/var"}


def scipy_matrix(kind: Any, parts: csr.SparseRows, shape: tuple[int, int]) -> Any:
    """A sparse matrix of scipy of the class `kind`, in types that scipy computes with."""
    signed = index_dtype(len(parts.data), shape)
    data = parts.data.astype(readable(parts.data.dtype), copy=False)
    return kind((data, parts.indices.astype(signed), parts.indptr.astype(signed)), shape=shape)
