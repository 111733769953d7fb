"""Conversion of arrays to torch tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from scdl.errors import CastError, OptionError
from scdl.kernels import memory as recycled

if TYPE_CHECKING:
    from scdl.dataset.batch import CellBatch, Layout

with warnings.catch_warnings():
    # torch warns once per process that CSR tensors are in beta. Batches are, by default.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1))

_LARGEST_EXACT_FLOAT32 = 2**24
_SIGNED = {2: np.int32, 4: np.int64, 8: np.int64}


def batch_tensor(
    batch: CellBatch,
    layout: Layout,
    dtype: torch.dtype | None = None,
    index_dtype: type[np.signedinteger[Any]] = np.int64,
) -> torch.Tensor:
    """Convert a batch whose cells share their genes to a tensor, n x n_vars.

    Parameters
    ----------
    dtype
        Dtype of the values; None: the stored one, or the nearest that torch computes with.
    index_dtype
        Dtype of the indices in CSR form; those of other layouts are int64.
    """
    if layout == "dense":
        if dtype == torch.float32 and batch.data.dtype == np.float32:
            return torch.from_numpy(batch.to_dense())
        floats = batch.data.dtype.kind == "f" and dtype is not None and dtype.is_floating_point
        if floats:
            # Check the stored values, which are fewer than the dense ones, and of known cells.
            values_as(batch, dtype)
        filled = torch.from_numpy(computable(batch.to_dense(sum_dtype(dtype))))
        if floats and dtype != torch.float16:
            return filled.to(dtype)
        return as_dtype(filled, dtype, lambda at: int(batch.rows[at]))
    values, shape = values_as(batch, dtype), (len(batch.rows), batch.n_vars)
    batch.check_columns()
    if layout == "csr":
        columns = batch.indices
        if columns.dtype != index_dtype:
            columns = recycled.empty(len(batch.indices), index_dtype)
            columns[:] = batch.indices
        indptr = batch.indptr.astype(index_dtype, copy=False)
        parts = torch.from_numpy(indptr), torch.from_numpy(columns), values
        return torch.sparse_csr_tensor(*parts, shape, check_invariants=False)
    if layout == "coo":
        positions = np.empty((2, len(batch.data)), np.int64)
        positions[0] = np.repeat(np.arange(len(batch)), np.diff(batch.indptr))
        positions[1] = batch.indices
        return torch.sparse_coo_tensor(
            torch.from_numpy(positions), values, shape, is_coalesced=True,
            check_invariants=False,
        )  # fmt: skip
    raise OptionError(f"layout must be 'csr', 'coo' or 'dense', not {layout!r}")


def sum_dtype(dtype: torch.dtype | None) -> np.dtype[Any] | None:
    """The dtype in which duplicate values of one gene are added before a cast to a torch dtype.

    None if that is the stored dtype: it is exact for integers, or it was requested.
    """
    if dtype is None or not dtype.is_floating_point:
        return None
    return np.dtype(np.float64 if dtype == torch.float64 else np.float32)


def values_as(batch: CellBatch, dtype: torch.dtype | None) -> torch.Tensor:
    """The stored values of a batch cast to a dtype; CastError names the cell."""

    def cell(at: int) -> int:
        return int(batch.rows[np.searchsorted(batch.indptr, at, side="right") - 1])

    return as_dtype(torch.from_numpy(computable(batch.data)), dtype, cell)


def as_dtype(
    values: torch.Tensor, dtype: torch.dtype | None, cell: Callable[[int], int] | None = None
) -> torch.Tensor:
    """Cast values to a dtype; None: no cast.

    Parameters
    ----------
    cell
        Returns the row in its dataset for a position in `values`, for messages.

    Raises
    ------
    CastError
        An integer dtype cannot represent a value exactly, or a float dtype only as infinity.
    """
    if dtype is None or dtype == values.dtype:
        return values
    out = values.to(dtype)
    if not dtype.is_floating_point:
        lost = out.to(values.dtype) != values
    elif _fit(values, torch.finfo(dtype).max):
        return out
    else:
        lost = ~out.isfinite() & values.isfinite()
    if lost.any():
        where = lost.nonzero()[0].tolist()
        of_cell = "" if cell is None else f" of cell {cell(where[0])}"
        raise CastError(
            f"{dtype} cannot hold the value {values[tuple(where)].item()}{of_cell}; use another "
            "dtype"
        )
    return out


def _fit(values: torch.Tensor, largest: float) -> bool:
    """Whether the magnitude of all values is at most `largest`; False if one is NaN."""
    if values.dtype == torch.bool or not values.numel():
        return True
    of_type = (torch.finfo if values.is_floating_point() else torch.iinfo)(values.dtype).max
    return of_type <= largest or all(
        abs(bound.item()) <= largest for bound in torch.aminmax(values)
    )


def numbers(values: NDArray[Any]) -> torch.Tensor:
    """A column as a tensor: codes and other integers as int64, others with the stored dtype."""
    if values.dtype.kind in "iu":
        return torch.from_numpy(computable(values).astype(np.int64, copy=False))
    return torch.from_numpy(values)


def row_values(values: NDArray[Any], n_vars: int) -> NDArray[Any]:
    """Values with the dtype of the documented tensors of a cell.

    Floats stay floats, wide enough for the column ids to be exact; integers become int64.
    """
    if values.dtype.kind != "f":
        return computable(values).astype(np.int64, copy=False)
    exact = values.dtype.itemsize <= 4 and n_vars <= _LARGEST_EXACT_FLOAT32
    return values.astype(np.float32 if exact else np.float64, copy=False)


def row_tensor(values: NDArray[Any], columns: NDArray[Any], n_vars: int) -> torch.Tensor:
    """One cell as the documented tensor of shape [2, nnz]: values, then column ids."""
    values = row_values(values, n_vars)
    out = np.empty((2, len(values)), values.dtype)
    out[0], out[1] = values, columns
    return torch.from_numpy(out)


def pinned(batch: CellBatch) -> CellBatch:
    """Copy a batch to page-locked memory if there is a GPU."""
    if not torch.cuda.is_available():
        return batch

    def pin(array: NDArray[Any]) -> NDArray[Any]:
        if array.dtype.kind not in "fiu":
            return array
        page_locked: NDArray[Any] = torch.from_numpy(array).pin_memory().numpy()
        return page_locked

    return replace(
        batch,
        data=pin(batch.data),
        indices=pin(batch.indices),
        indptr=pin(batch.indptr),
        obs={name: pin(column) for name, column in batch.obs.items()},
        obsm={key: pin(vectors) for key, vectors in batch.obsm.items()},
        fields={name: pinned(read) for name, read in batch.fields.items()},
    )


def computable(values: NDArray[Any]) -> NDArray[Any]:
    """Convert values to a dtype that torch computes with."""
    if values.dtype.kind != "u" or values.dtype.itemsize == 1:
        return values
    if values.dtype.itemsize == 8 and len(values) and values.max() > np.iinfo(np.int64).max:
        raise CastError(
            f"torch has no uint64 arithmetic and {values.max()} is beyond int64; "
            "use cast_data_to_dtype('float64') first"
        )
    return values.astype(_SIGNED[values.dtype.itemsize])
