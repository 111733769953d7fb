"""Collate functions for ``torch.utils.data.DataLoader``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scdl.archive.gene_names import check_one_space, number_keys
from scdl.dataset import tensors
from scdl.dataset.batch import CellBatch, NeighborPair

__all__ = ["collate_neighbor_sparse_matrix_batch", "collate_sparse_matrix_batch", "row_tensor"]

#: Attributes of a row's tensor: the number of genes, and the gene space of the cell, which
#: exists only in datasets with several gene spaces.
_N_VARS, _SPACE = "n_vars", "gene_space"


def row_tensor(
    values: NDArray[Any], columns: NDArray[Any], n_vars: int, space: int | None = None
) -> torch.Tensor:
    """One cell as a tensor of shape [2, nnz], with its number of genes as an attribute.

    Parameters
    ----------
    space
        Gene space of the cell, in a dataset with several.
    """
    tensor = tensors.row_tensor(values, columns, n_vars)
    setattr(tensor, _N_VARS, n_vars)
    if space is not None:
        setattr(tensor, _SPACE, space)
    return tensor


class _Lazy(list[Any]):
    """A list whose items are all created when the first of them is accessed.

    It is a list because ``torch.cat`` requires one, and because users sort and change it. While it
    is `untouched`, no item can have been changed.
    """

    def __init__(self, n: int, placeholder: Any = None) -> None:
        super().__init__([placeholder] * n)
        self.untouched = True

    def _make(self) -> Iterator[Any]:
        """The items."""
        raise NotImplementedError

    def _touch(self) -> None:
        if self.untouched:
            super().__setitem__(slice(None), list(self._make()))
            # Set it last, for other threads, and for retries after an error.
            self.untouched = False

    def __radd__(self, other: list[Any]) -> list[Any]:
        return [*other, *self]

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def _touching(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method of list so that it creates the items first."""

    @functools.wraps(method)
    def call(self: _Lazy, *arguments: Any, **options: Any) -> Any:
        self._touch()
        return method(self, *arguments, **options)

    return call


_METHODS = """
    __getitem__ __setitem__ __delitem__ __iter__ __reversed__ __contains__ __eq__ __ne__ __lt__
    __le__ __gt__ __ge__ __add__ __iadd__ __mul__ __imul__ __rmul__ __repr__ append clear copy count
    extend index insert pop remove reverse sort
"""
for _name in _METHODS.split():
    setattr(_Lazy, _name, _touching(getattr(list, _name)))


class _Placeholder(torch.Tensor):
    """Placeholder items of :class:`RowTensors`, for torch's functions on lists of tensors."""

    @classmethod
    def __torch_function__(
        cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        def given(part: Any) -> Any:
            return list(part) if isinstance(part, RowTensors) else part

        named = {name: given(part) for name, part in (kwargs or {}).items()}
        return function(*map(given, args), **named)


_PLACEHOLDER = torch.empty(0).as_subclass(_Placeholder)


class RowTensors(_Lazy):
    """The cells of a batch as a list of tensors of shape [2, nnz].

    Attributes
    ----------
    batch
        The cells as they were read.
    """

    def __init__(self, batch: CellBatch) -> None:
        super().__init__(len(batch), _PLACEHOLDER)
        self.batch = batch

    def _make(self) -> Iterator[torch.Tensor]:
        for i in range(len(self.batch)):
            cell = self.batch[i : i + 1]
            space = None if cell.spaces is None else int(cell.spaces[0])
            yield row_tensor(cell.data, cell.indices, cell.n_vars, space)

    def collated(self) -> torch.Tensor:
        """All cells in the order of the batch as one sparse CSR tensor."""
        values = tensors.row_values(self.batch.data, self.batch.n_vars)
        same = values is self.batch.data
        return (self.batch if same else replace(self.batch, data=values)).to_torch("csr")


class RowPairs(_Lazy):
    """The cells of a batch and a neighbour of each, as ``get_row_with_neighbor`` returns them."""

    def __init__(self, cells: CellBatch, neighbors: CellBatch) -> None:
        super().__init__(len(cells))
        self.cells, self.neighbors = cells, neighbors

    def _make(self) -> Iterator[dict[str, Any]]:
        for i in range(len(self.cells)):
            cell, neighbor = (part[i : i + 1] for part in (self.cells, self.neighbors))
            pair = {
                "current_cell": (cell.data, cell.indices),
                "next_cell": (neighbor.data, neighbor.indices),
                "current_cell_index": int(cell.rows[0]),
                "next_cell_index": int(neighbor.rows[0]),
                "features": None,
            }
            spaces = None
            if cell.spaces is not None and neighbor.spaces is not None:
                spaces = int(cell.spaces[0]), int(neighbor.spaces[0])
            yield NeighborPair(pair, cell.n_vars, spaces)


def collate_sparse_matrix_batch(batch: Sequence[torch.Tensor]) -> torch.Tensor:
    """Collate cells into one ``torch.sparse_csr_tensor``.

    Parameters
    ----------
    batch
        Tensors of shape [2, nnz]: values, then column ids, as a dataset's ``ds[i]`` returns them.

    Returns
    -------
    torch.Tensor
        Sparse CSR, cells x genes. Its width is n_vars for cells of a dataset. For plain tensors,
        whose number of genes is unknown, it is the largest column id + 1.

    Raises
    ------
    GeneError
        The cells are of different gene spaces.

    Examples
    --------
    >>> from torch.utils.data import DataLoader
    >>> loader = DataLoader(data, batch_size=3, collate_fn=scdl.collate_sparse_matrix_batch)
    >>> batch = next(iter(loader))
    >>> batch.shape, batch.layout
    (torch.Size([3, 4]), torch.sparse_csr)
    """
    if isinstance(batch, RowTensors) and batch.untouched:
        return batch.collated()
    lengths = np.fromiter((row.shape[1] for row in batch), np.int64, len(batch))
    indptr = np.zeros(len(batch) + 1, np.int64)
    np.cumsum(lengths, out=indptr[1:])
    joined = torch.cat(tuple(batch), dim=1).numpy() if len(batch) else np.empty((2, 0), np.float32)
    columns = joined[1].astype(np.int64)
    widths = [getattr(row, _N_VARS, None) for row in batch]
    spaces = [getattr(row, _SPACE, None) for row in batch]
    check_one_space(number_keys(spaces), "the cells of this batch")
    known = [width for width in widths if width is not None]
    if len(known) == len(widths) and known:
        n_vars = max(known)
    else:
        n_vars = int(columns.max()) + 1 if len(columns) else 0
    rows = np.arange(len(batch))
    return CellBatch(joined[0], columns, indptr, n_vars, rows).to_torch("csr")


def collate_neighbor_sparse_matrix_batch(batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate cells and their neighbours, as ``get_row_with_neighbor`` returns them.

    Parameters
    ----------
    batch
        Mappings with ``current_cell``, ``next_cell``, ``current_cell_index`` and
        ``next_cell_index``. A cell is a tensor of shape [2, nnz], or its values and its column
        ids: arrays, tensors, lists or tuples.

    Returns
    -------
    dict
        ``current_cells`` and ``next_cells``, each a ``torch.sparse_csr_tensor``;
        ``current_cell_indices`` and ``next_cell_indices``, lists of int; ``batch_size``.

    Raises
    ------
    GeneError
        The cells are of different gene spaces, or the neighbours are.

    Examples
    --------
    >>> pairs = [data.get_row_with_neighbor(i) for i in (0, 1)]
    >>> batch = scdl.collate_neighbor_sparse_matrix_batch(pairs)
    >>> batch["current_cell_indices"], batch["next_cell_indices"]
    ([0, 1], [1, 2])
    >>> batch["next_cells"].to_dense()
    tensor([[3., 0., 0., 0.],
            [0., 0., 5., 1.]])
    """
    if isinstance(batch, RowPairs) and batch.untouched:
        return {
            "current_cells": RowTensors(batch.cells).collated(),
            "next_cells": RowTensors(batch.neighbors).collated(),
            "current_cell_indices": batch.cells.rows.tolist(),
            "next_cell_indices": batch.neighbors.rows.tolist(),
            "batch_size": len(batch),
        }
    return {
        "current_cells": collate_sparse_matrix_batch(_tensors(batch, "current_cell", 0)),
        "next_cells": collate_sparse_matrix_batch(_tensors(batch, "next_cell", 1)),
        "current_cell_indices": [int(pair["current_cell_index"]) for pair in batch],
        "next_cell_indices": [int(pair["next_cell_index"]) for pair in batch],
        "batch_size": len(batch),
    }


def _tensors(batch: Sequence[Mapping[str, Any]], which: str, place: int) -> list[torch.Tensor]:
    """Cells of the pairs as tensors; pairs of a dataset have a number of genes."""
    cells = []
    for pair in batch:
        cell, n_vars = pair[which], getattr(pair, _N_VARS, None)
        spaces = getattr(pair, "spaces", None)
        if isinstance(cell, torch.Tensor):
            cells.append(cell)
            continue
        values, columns = map(_array, cell)
        if n_vars is None:
            cells.append(tensors.row_tensor(values, columns, int(columns.max(initial=-1)) + 1))
        else:
            space = None if spaces is None else spaces[place]
            cells.append(row_tensor(values, columns, n_vars, space))
    return cells


def _array(part: Any) -> NDArray[Any]:
    """Values or column ids as an array, with torch's dtype for Python numbers."""
    return part if isinstance(part, np.ndarray) else torch.as_tensor(part).detach().cpu().numpy()
