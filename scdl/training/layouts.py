"""Layouts of a batch: how the values of cells become tensors.

A new one is a :class:`Layout` under a name in :data:`LAYOUTS`; loaders take it by that name.
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

#: Which values of a cell are kept where it has more than there is room for.
Choice = Literal["first", "largest", "random"]


class Asked(NamedTuple):
    """What a loader was asked for.

    Attributes
    ----------
    dtype
        Of the values; None: the stored one, or the next that torch computes with.
    length
        Values of a cell, where a layout takes a length.
    choose
        Which these are.
    key
        What random numbers of a batch follow from.
    """

    dtype: torch.dtype | None
    length: int | None
    choose: Choice | None
    key: tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """How the values of cells become tensors.

    Parameters
    ----------
    make
        Makes fields of a :class:`TrainingBatch`, such as ``x``, of cells.
    takes_length
        Whether it needs a number of values for each cell, and takes a choice of them.
    adds
        Whether the genes of a cell may come in any order and more than once: values of one gene
        are added.
    is_large
        Whether batches are many times as large as what they are made from.
    """

    make: Callable[[CellBatch, Asked], dict[str, Any]]
    takes_length: bool = False
    adds: bool = False
    is_large: bool = False


def _of_all_genes(kind: Literal["csr", "coo", "dense"], cells: CellBatch, asked: Asked) -> Any:
    # Half the memory to write, and what MKL computes with.
    wide = max(len(cells.data), cells.n_vars) > np.iinfo(np.int32).max
    index_dtype = np.int64 if wide else np.int32
    return {"x": tensors.batch_tensor(cells, kind, asked.dtype, index_dtype)}


def _padded(cells: CellBatch, asked: Asked) -> dict[str, torch.Tensor]:
    """Values, genes and their numbers in rows of one length."""
    cells.check_columns()
    assert asked.length is not None
    data, indices, indptr = tensors.computable(cells.data), cells.indices, cells.indptr
    data = data.astype(np.float32) if data.dtype == np.float16 else data
    lengths = np.minimum(np.diff(indptr), asked.length)
    if asked.choose == "random":
        chosen, kept = np.empty(lengths.sum(), np.int64), np.empty(len(indptr), np.int64)
        seed = np.uint64(hashing.mixed(*asked.key))
        choice_kernels.sample_rows(indptr, asked.length, seed, chosen, kept)
        data, indices, indptr = data[chosen], indices[chosen], kept
    values = np.zeros((len(cells), asked.length), data.dtype)
    genes = np.full(values.shape, cells.n_vars, np.int64)
    keys = _falling(data) if asked.choose == "largest" else data[:0]
    dense_kernels.fill_padded(data, indices, indptr, keys, values, genes)
    return {
        "x": tensors.as_dtype(torch.from_numpy(values), asked.dtype, cells.rows.item),
        "genes": torch.from_numpy(genes),
        "lengths": torch.from_numpy(lengths),
    }


def _falling(data: NDArray[Any]) -> NDArray[Any]:
    """Numbers of the same type that fall where others rise."""
    if data.dtype == bool:
        data = data.view(np.uint8)
    falling: NDArray[Any] = -data if data.dtype.kind == "f" else ~data
    return falling


#: All layouts by name.
LAYOUTS: dict[str, Layout] = {
    "csr": Layout(partial(_of_all_genes, "csr")),
    "coo": Layout(partial(_of_all_genes, "coo")),
    "dense": Layout(partial(_of_all_genes, "dense"), adds=True, is_large=True),
    "padded": Layout(_padded, takes_length=True),
}
