"""Collating cells into batches, for ``torch.utils.data.DataLoader``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, SupportsIndex, overload

import numpy as np
import torch
from numpy.typing import NDArray

from scdl import tensors
from scdl.batch import CellBatch, NeighborPair

__all__ = ["collate_neighbor_sparse_matrix_batch", "collate_sparse_matrix_batch", "row_tensor"]

#: Attribute of a row's tensor that tells how many genes there are.
_N_VARS = "n_vars"


def row_tensor(values: NDArray[Any], columns: NDArray[Any], n_vars: int) -> torch.Tensor:
    """One cell as a tensor of shape [2, nnz] that remembers its number of genes."""
    tensor = tensors.row_tensor(values, columns, n_vars)
    setattr(tensor, _N_VARS, n_vars)
    return tensor


class _Placeholder(torch.Tensor):
    """Stands in the memory of :class:`RowTensors`, for torch's functions on lists of tensors."""

    @classmethod
    def __torch_function__(
        cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        def given(part: Any) -> Any:
            return list(part) if isinstance(part, RowTensors) else part

        named = {name: given(part) for name, part in (kwargs or {}).items()}
        return function(*map(given, args), **named)


_PLACEHOLDER = torch.empty(0).as_subclass(_Placeholder)


class RowTensors(list[torch.Tensor]):
    """The cells of a batch as tensors of shape [2, nnz], each made when it is asked for.

    It is a list because ``torch.cat`` and ``torch.stack`` take nothing else.

    Attributes
    ----------
    batch
        The cells as they were read.
    """

    def __init__(self, batch: CellBatch) -> None:
        super().__init__([_PLACEHOLDER] * len(batch))
        self.batch = batch

    @overload
    def __getitem__(self, index: SupportsIndex) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[torch.Tensor]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> torch.Tensor | list[torch.Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        cell = self.batch[_one(index, len(self))]
        return row_tensor(cell.data, cell.indices, cell.n_vars)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[i] for i in range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def collated(self) -> torch.Tensor:
        """All of them as one sparse CSR tensor."""
        values = tensors.row_values(self.batch.data, self.batch.n_vars)
        return replace(self.batch, data=values).to_torch("csr")


class RowPairs(Sequence[dict[str, Any]]):
    """The cells of a batch and a neighbour of each, as ``get_row_with_neighbor`` gives them."""

    def __init__(self, cells: CellBatch, neighbors: CellBatch) -> None:
        self.cells, self.neighbors = cells, neighbors

    def __len__(self) -> int:
        return len(self.cells)

    @overload
    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        cell, neighbor = (part[_one(index, len(self))] for part in (self.cells, self.neighbors))
        pair = {
            "current_cell": (cell.data, cell.indices),
            "next_cell": (neighbor.data, neighbor.indices),
            "current_cell_index": int(cell.rows[0]),
            "next_cell_index": int(neighbor.rows[0]),
            "features": None,
        }
        return NeighborPair(pair, cell.n_vars)


def _one(index: SupportsIndex, n: int) -> slice:
    """One item as a slice; negative ones count from the end."""
    at = range(n)[index]
    return slice(at, at + 1)


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
    if isinstance(batch, RowTensors):
        return batch.collated()
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
    if isinstance(batch, RowPairs):
        return {
            "current_cells": RowTensors(batch.cells).collated(),
            "next_cells": RowTensors(batch.neighbors).collated(),
            "current_cell_indices": torch.from_numpy(batch.cells.rows),
            "next_cell_indices": torch.from_numpy(batch.neighbors.rows),
            "batch_size": len(batch),
        }
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
