"""Collating cells into batches, for ``torch.utils.data.DataLoader``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scdl import tensors
from scdl.batch import CellBatch

__all__ = ["collate_neighbor_sparse_matrix_batch", "collate_sparse_matrix_batch", "row_tensor"]

#: Attribute of a row's tensor that tells how many genes there are.
_N_VARS = "n_vars"


def row_tensor(values: NDArray[Any], columns: NDArray[Any], n_vars: int) -> torch.Tensor:
    """One cell as a tensor of shape [2, nnz] that remembers its number of genes."""
    tensor = tensors.row_tensor(values, columns, n_vars)
    setattr(tensor, _N_VARS, n_vars)
    return tensor


def collate_sparse_matrix_batch(batch: Sequence[torch.Tensor]) -> torch.Tensor:
    """Cells as one ``torch.sparse_csr_tensor``.

    Parameters
    ----------
    batch
        Tensors of shape [2, nnz]: values, then column ids, as a dataset's ``ds[i]`` gives them.

    Returns
    -------
    torch.Tensor
        Sparse CSR, cells x genes. From a dataset it is always n_vars wide; from plain tensors,
        which do not know their number of genes, as wide as the largest column id + 1.
    """
    lengths = np.fromiter((row.shape[1] for row in batch), np.int64, len(batch))
    indptr = np.zeros(len(batch) + 1, np.int64)
    np.cumsum(lengths, out=indptr[1:])
    joined = torch.cat(tuple(batch), dim=1).numpy() if len(batch) else np.empty((2, 0), np.float32)
    columns = joined[1].astype(np.int64)
    widths = [getattr(row, _N_VARS, None) for row in batch]
    known = [width for width in widths if width is not None]
    if len(known) == len(widths) and known:
        n_vars = max(known)
    else:
        n_vars = int(columns.max()) + 1 if len(columns) else 0
    rows = np.arange(len(batch))
    return CellBatch(joined[0], columns, indptr, n_vars, rows).to_torch("csr")


def collate_neighbor_sparse_matrix_batch(batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Cells and their neighbours, as ``get_row_with_neighbor`` gives them.

    Returns
    -------
    dict
        ``current_cells`` and ``next_cells``, each a ``torch.sparse_csr_tensor``;
        ``current_cell_indices`` and ``next_cell_indices``, int64 tensors; ``batch_size``.
    """
    return {
        "current_cells": collate_sparse_matrix_batch(_tensors(batch, "current_cell")),
        "next_cells": collate_sparse_matrix_batch(_tensors(batch, "next_cell")),
        "current_cell_indices": torch.tensor([int(p["current_cell_index"]) for p in batch]),
        "next_cell_indices": torch.tensor([int(p["next_cell_index"]) for p in batch]),
        "batch_size": len(batch),
    }


def _tensors(batch: Sequence[Mapping[str, Any]], which: str) -> list[torch.Tensor]:
    """Cells of the pairs as tensors; pairs from a dataset know their number of genes."""
    cells = []
    for pair in batch:
        cell, n_vars = pair[which], getattr(pair, _N_VARS, None)
        if isinstance(cell, torch.Tensor):
            cells.append(cell)
        elif n_vars is None:
            cells.append(tensors.row_tensor(cell[0], cell[1], 0))
        else:
            cells.append(row_tensor(cell[0], cell[1], n_vars))
    return cells
