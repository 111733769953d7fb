"""Plain arrays to torch tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from scdl.errors import CastError
from scdl.schema import check_columns

if TYPE_CHECKING:
    from scdl.batch import CellBatch, Layout

_LARGEST_EXACT_FLOAT32 = 2**24
_SIGNED = {2: np.int32, 4: np.int64, 8: np.int64}


def batch_tensor(batch: CellBatch, layout: Layout) -> torch.Tensor:
    """A batch as a tensor of n x n_vars."""
    if layout == "dense":
        return torch.from_numpy(_computable(batch.to_dense()))
    values = torch.from_numpy(_computable(batch.data))
    check_columns(batch.indices, batch.n_vars)
    columns = torch.from_numpy(batch.indices.astype(np.int64))
    if layout == "csr":
        indptr = torch.from_numpy(batch.indptr)
        return torch.sparse_csr_tensor(indptr, columns, values, batch.shape, check_invariants=False)
    if layout == "coo":
        rows = np.repeat(np.arange(len(batch)), np.diff(batch.indptr))
        positions = torch.stack([torch.from_numpy(rows), columns])
        return torch.sparse_coo_tensor(
            positions, values, batch.shape, is_coalesced=True, check_invariants=False
        )
    raise ValueError(f"layout must be 'csr', 'coo' or 'dense', not {layout!r}")


def row_tensor(values: NDArray[Any], columns: NDArray[Any], n_vars: int) -> torch.Tensor:
    """One cell as the documented tensor of shape [2, nnz]: values, then column ids.

    Floats stay floats, wide enough for the column ids to be exact; integers become int64.
    """
    if values.dtype.kind == "f":
        exact = values.dtype.itemsize <= 4 and n_vars <= _LARGEST_EXACT_FLOAT32
        out = np.empty((2, len(values)), np.float32 if exact else np.float64)
        out[0] = values
    else:
        out = np.empty((2, len(values)), np.int64)
        out[0] = _computable(values)
    out[1] = columns
    return torch.from_numpy(out)


def pinned(batch: CellBatch) -> CellBatch:
    """The batch in page-locked memory, where there is a GPU to copy to."""
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
    )


def _computable(values: NDArray[Any]) -> NDArray[Any]:
    """Values of a dtype that torch computes with."""
    if values.dtype.kind != "u" or values.dtype.itemsize == 1:
        return values
    if values.dtype.itemsize == 8 and len(values) and values.max() > np.iinfo(np.int64).max:
        raise CastError(
            f"torch has no uint64 arithmetic and {values.max()} is beyond int64; "
            "cast_data_to_dtype('float64') stores what it can compute with"
        )
    return values.astype(_SIGNED[values.dtype.itemsize])
