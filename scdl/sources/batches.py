"""Batches of cells in memory as sources: matrices of SciPy, NumPy, torch and Arrow, and AnnData."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl.archive.frames import table_of
from scdl.archive.schema import DATA, INDEX, INDICES, INDPTR, MATRIX
from scdl.archive.tables import NoTable, TableInMemory, TableSource
from scdl.errors import SourceError
from scdl.sources.anndata_object import AnnDataObject, is_anndata
from scdl.sources.base import Source
from scdl.sources.matrices import Csr, Dense, Matrix, Reader, Values
from storage_backends.base import is_column_type


class Batch(Source):
    """Cells in memory.

    Parameters
    ----------
    where
        Description of the batch, for messages.
    var
        The table of genes.
    matrix
        The values.
    obs
        The table of cells.
    obsm
        Dense vectors, one per cell.
    """

    label = None
    matrix_name = element = "X"

    def __init__(
        self,
        where: str,
        var: pa.Table,
        matrix: Matrix,
        obs: TableSource,
        obsm: Mapping[str, NDArray[Any]],
    ) -> None:
        self.path, self._var, self.matrix, self.obs, self._obsm = where, var, matrix, obs, obsm

    def var(self) -> pa.Table:
        return self._var

    def vectors(self, key: str) -> Reader:
        return Values(self._obsm[key]) if key in self._obsm else super().vectors(key)

    @property
    def kept_vectors(self) -> Sequence[str]:
        return [*self._obsm]


def is_batch(given: Any) -> bool:
    """Whether an object is a batch itself, not an iterator of batches."""
    return is_anndata(given) or hasattr(given, "shape") or isinstance(given, pa.RecordBatch)


def batch_of(
    where: str,
    given: Any,
    var: pa.Table,
    obs: Any = None,
    obsm: Mapping[str, Any] | None = None,
    matrix: str | None = None,
) -> Source:
    """A batch of cells as a source.

    Parameters
    ----------
    where
        Description of the batch, for messages.
    given
        An AnnData; a matrix of SciPy, NumPy or torch; or an Arrow table whose list columns
        ``indices`` and ``data`` have the genes and values of each cell, and whose other columns
        are obs unless `obs` is given.
    var
        The table of genes of a matrix.
    obs, obsm
        Columns, and dense vectors, of the cells of a matrix.
    matrix
        Matrix of an AnnData, as for :func:`scdl.convert`.

    Raises
    ------
    SourceError
        The batch is of another kind, its values are not numbers, or lengths do not match.
    """
    if is_anndata(given):
        if obs is not None or obsm is not None:
            raise SourceError(f"{where}: an AnnData has obs and obsm of its own; leave obs= out")
        source = AnnDataObject(given, matrix)
        source.path = where
        return source
    if isinstance(given, pa.RecordBatch):
        given = pa.table(given)
    if isinstance(given, pa.Table):
        obs = given.drop_columns(_lists(where, given)) if obs is None else obs
    cells = matrix_of(where, given, var.num_rows)
    n_obs = cells.shape[0]
    table = _obs_table(where, obs, n_obs)
    vectors = {
        str(key): _vectors(where, key, values, n_obs) for key, values in (obsm or {}).items()
    }
    return Batch(where, var, cells, table, vectors)


def matrix_of(where: str, given: Any, n_vars: int) -> Matrix:
    """A matrix in memory, cells x `n_vars` genes, of any kind."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(given, torch.Tensor):
        given = _of_torch(torch, given)
    if isinstance(given, pa.Table):
        return _of_arrow(where, given, n_vars)
    if hasattr(given, "tocsr"):
        given = given.tocsr()
        found, kind = tuple(given.shape), given.dtype
    else:
        given = np.asarray(given)
        found, kind = given.shape, given.dtype
    if kind.kind not in "biuf" or kind.itemsize > 8:
        raise SourceError(
            f"{where}: expected a matrix of numbers (of SciPy, NumPy, torch or Arrow) or an "
            f"AnnData, found {type(given).__name__} of {kind}"
        )
    if len(found) != 2 or found[1] != n_vars:
        raise SourceError(f"{where}: expected cells x {n_vars} genes, as in var, found {found}")
    if isinstance(given, np.ndarray):
        return Dense(where, Values(given), (found[0], n_vars))
    parts: dict[str, Reader] = {part: Values(getattr(given, part)) for part in MATRIX}
    return Csr(where, parts, (found[0], n_vars))


def _of_torch(torch: Any, given: Any) -> Any:
    """A tensor as a matrix of NumPy or SciPy."""
    import scipy.sparse as sp

    given = given.detach().cpu()
    if given.dtype == torch.bfloat16:
        # NumPy lacks this type, whose values float32 represents.
        given = given.to(torch.float32)
    if given.layout == torch.strided:
        return given.numpy()
    if given.layout == torch.sparse_coo:
        given = given.coalesce()
        return sp.coo_matrix((given.values().numpy(), given.indices().numpy()), tuple(given.shape))
    given = given.to_sparse_csr()
    parts = given.values(), given.col_indices(), given.crow_indices()
    return sp.csr_matrix(tuple(part.numpy() for part in parts), tuple(given.shape))


def _lists(where: str, table: pa.Table) -> list[str]:
    """Names of the columns of an Arrow table that are the matrix."""
    for name in (INDICES, DATA):
        type_ = table.schema.field(name).type if name in table.schema.names else None
        if type_ is None or not (pa.types.is_list(type_) or pa.types.is_large_list(type_)):
            raise SourceError(
                f"{where}: an Arrow table needs the list columns {INDICES!r} and {DATA!r}, with "
                "the genes and values of each cell; found "
                f"{', '.join(table.schema.names) or 'none'}"
            )
    return [INDICES, DATA]


def _of_arrow(where: str, table: pa.Table, n_vars: int) -> Matrix:
    columns = [table[name].combine_chunks() for name in _lists(where, table)]
    arrays = [c if isinstance(c, pa.Array) else pa.concat_arrays(c.chunks) for c in columns]
    has_nulls = any(a.null_count or a.flatten().null_count for a in arrays)
    lengths = [a.value_lengths().fill_null(0).to_numpy(zero_copy_only=False) for a in arrays]
    if has_nulls or not np.array_equal(lengths[0], lengths[1]):
        raise SourceError(
            f"{where}: {INDICES} and {DATA} must have lists of the same lengths, without nulls"
        )
    indices, data = (a.flatten().to_numpy(zero_copy_only=False) for a in arrays)
    if indices.dtype.kind not in "iu" or data.dtype.kind not in "biuf":
        raise SourceError(
            f"{where}: expected integers in {INDICES} and numbers in {DATA}, found "
            f"{indices.dtype} and {data.dtype}"
        )
    indptr = np.append(0, np.cumsum(lengths[0], dtype=np.int64))
    parts: dict[str, Reader] = {
        INDICES: Values(indices),
        DATA: Values(data),
        INDPTR: Values(indptr),
    }
    return Csr(where, parts, (len(arrays[0]), n_vars))


def _obs_table(where: str, obs: Any, n_obs: int) -> TableSource:
    """Columns of cells as a table."""
    table = table_in_memory(f"{where}: obs", obs)
    if table is None or (not table.schema.names and not table.num_rows):
        return NoTable(n_obs)
    if table.num_rows != n_obs:
        raise SourceError(f"{where}: obs has {table.num_rows} rows, expected {n_obs}, one per cell")
    return TableInMemory(table) if table.schema.names else NoTable(n_obs)


def table_in_memory(where: str, given: Any) -> pa.Table | None:
    """A data frame, dict or Arrow table as a table; None for None.

    The index of a data frame is the names of its rows, unless it only numbers them.

    Raises
    ------
    SourceError
        The object is none of these, or archives cannot store a column.
    """
    if given is None:
        return None
    pandas = sys.modules.get("pandas")
    try:
        if pandas is not None and isinstance(given, pandas.DataFrame):
            table = table_of(given)
            if isinstance(given.index, pandas.RangeIndex):
                table = table.drop_columns([INDEX]) if table.num_columns > 1 else pa.table({})
        elif isinstance(given, Mapping):
            table = pa.table({str(name): _column(values) for name, values in given.items()})
        elif isinstance(given, pa.RecordBatch | pa.Table):
            table = pa.table(given) if isinstance(given, pa.RecordBatch) else given
        else:
            raise SourceError(
                f"{where}: expected a data frame, a dict or an Arrow table, found "
                f"{type(given).__name__}"
            )
    except (pa.ArrowException, ValueError, TypeError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{where}: cannot be made a table: {error}") from error
    for field in table.schema:
        if table.schema.names.count(field.name) > 1 or not is_column_type(field.type):
            raise SourceError(
                f"{where}: column {field.name!r} of {field.type} is repeated or of a type that "
                "archives cannot store; expected numbers, booleans, text or categories"
            )
    return table.unify_dictionaries()


def _column(values: Any) -> pa.Array:
    array = pa.array(values)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _vectors(where: str, key: Any, values: Any, n_obs: int) -> NDArray[Any]:
    array = np.ascontiguousarray(values)
    if array.dtype.kind not in "biuf" or array.ndim < 2 or len(array) != n_obs:
        raise SourceError(
            f"{where}: obsm/{key}: expected an array of numbers with {n_obs} rows, found "
            f"{array.dtype} of shape {array.shape}"
        )
    return array
