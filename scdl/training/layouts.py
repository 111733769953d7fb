"""Layouts of a batch: how the values of cells become tensors.

To add a layout, register a :class:`Layout` under its name in :data:`LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from scdl.dataset import tensors
from scdl.dataset.batch import CellBatch
from scdl.kernels import choice as choice_kernels
from scdl.kernels import dense as dense_kernels
from scdl.kernels import hashing

#: Which values of a cell are kept if it has more than fit.
Choice = Literal["first", "largest", "random"]


class LayoutOptions(NamedTuple):
    """Options of a layout.

    Attributes
    ----------
    dtype
        Dtype of the values; None: the stored one, or the nearest that torch computes with.
    length
        Values per cell, for layouts that take a length.
    choose
        Which values to keep of cells that have more.
    key
        Random key of the batch.
    """

    dtype: torch.dtype | None
    length: int | None
    choose: Choice | None
    key: tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """A layout of batches.

    Parameters
    ----------
    make
        Converts cells to fields of a :class:`TrainingBatch`, such as ``x``.
    takes_length
        Whether the options `length` and `choose` apply.
    adds
        Whether the genes of a cell may be unsorted and duplicated: `make` adds their values.
    is_large
        Whether batches are many times larger than the cells they are assembled from.
    """

    make: Callable[[CellBatch, LayoutOptions], dict[str, Any]]
    takes_length: bool = False
    adds: bool = False
    is_large: bool = False


def _full_width(
    kind: Literal["csr", "coo", "dense"], cells: CellBatch, options: LayoutOptions
) -> Any:
    # int32 needs half the memory, and MKL computes with it.
    wide = max(len(cells.data), cells.n_vars) > np.iinfo(np.int32).max
    index_dtype = np.int64 if wide else np.int32
    return {"x": tensors.batch_tensor(cells, kind, options.dtype, index_dtype)}


def _padded(cells: CellBatch, options: LayoutOptions) -> dict[str, torch.Tensor]:
    """Values and genes padded to rows of equal length, and the number of values per row."""
    cells.check_columns()
    assert options.length is not None
    data, indices, indptr = tensors.computable(cells.data), cells.indices, cells.indptr
    data = data.astype(np.float32) if data.dtype == np.float16 else data
    lengths = np.minimum(np.diff(indptr), options.length)
    if options.choose == "random":
        chosen, offsets = np.empty(lengths.sum(), np.int64), np.empty(len(indptr), np.int64)
        seed = np.uint64(hashing.mixed(*options.key))
        choice_kernels.sample_rows(indptr, options.length, seed, chosen, offsets)
        data, indices, indptr = data[chosen], indices[chosen], offsets
    values = np.zeros((len(cells), options.length), data.dtype)
    genes = np.full(values.shape, cells.n_vars, np.int64)
    keys = _descending_keys(data) if options.choose == "largest" else data[:0]
    dense_kernels.fill_padded(data, indices, indptr, keys, values, genes)
    return {
        "x": tensors.as_dtype(torch.from_numpy(values), options.dtype, cells.rows.item),
        "genes": torch.from_numpy(genes),
        "lengths": torch.from_numpy(lengths),
    }


def _descending_keys(data: NDArray[Any]) -> NDArray[Any]:
    """Keys of the same dtype that sort the values in descending order."""
    if data.dtype == bool:
        data = data.view(np.uint8)
    keys: NDArray[Any] = -data if data.dtype.kind == "f" else ~data
    return keys


#: All layouts by name.
LAYOUTS: dict[str, Layout] = {
    "csr": Layout(partial(_full_width, "csr")),
    "coo": Layout(partial(_full_width, "coo")),
    "dense": Layout(partial(_full_width, "dense"), adds=True, is_large=True),
    "padded": Layout(_padded, takes_length=True),
}
