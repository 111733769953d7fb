"""Layouts of a batch: how the values of cells become tensors.

To add a layout, register a :class:`Layout` under its name in :data:`LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from scdl.dataset import tensors
from scdl.dataset.batch import CellBatch
from scdl.errors import LoaderError
from scdl.kernels import choice as choice_kernels
from scdl.kernels import dense as dense_kernels
from scdl.kernels import hashing

_INT32_MAX = np.iinfo(np.int32).max

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
    genes
        The genes of the matrix, n x length, for layouts of fields that follow it.
    """

    dtype: torch.dtype | None
    length: int | None
    choose: Choice | None
    key: tuple[int, ...]
    genes: torch.Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """A layout of batches.

    Parameters
    ----------
    make
        Converts cells to fields of a :class:`TrainingBatch`, such as ``x``.
    takes_length
        Whether the options `length` and `choose` apply.
    follows
        Whether it takes the genes that a layout with a length took of the matrix; for fields only.
    adds
        Whether the genes of a cell may be unsorted and duplicated: `make` adds their values.
    is_large
        Whether batches are many times larger than the cells they are assembled from.
    """

    make: Callable[[CellBatch, LayoutOptions], dict[str, Any]]
    takes_length: bool = False
    follows: bool = False
    adds: bool = False
    is_large: bool = False


def _full_width(
    kind: Literal["csr", "coo", "dense"], cells: CellBatch, options: LayoutOptions
) -> Any:
    # int32 needs half the memory, and MKL computes with it.
    wide = max(len(cells.data), cells.n_vars) > _INT32_MAX
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


def _aligned(cells: CellBatch, options: LayoutOptions) -> dict[str, torch.Tensor]:
    """The values of given genes of each cell, 0 where a cell has none."""
    cells.check_columns()
    assert options.genes is not None
    data, genes = tensors.computable(cells.data), options.genes.numpy()
    data = data.astype(np.float32) if data.dtype == np.float16 else data
    values = np.empty(genes.shape, data.dtype)
    dense_kernels.take_columns(data, cells.indices, cells.indptr, cells.n_vars, genes, values)
    return {"x": tensors.as_dtype(torch.from_numpy(values), options.dtype, cells.rows.item)}


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
    "aligned": Layout(_aligned, follows=True),
}


class Laid(NamedTuple):
    """How the matrix or a field of a batch is laid out.

    Attributes
    ----------
    layout
        One of :data:`LAYOUTS`.
    length, choose
        As in :class:`LayoutOptions`.
    """

    layout: str
    length: int | None = None
    choose: Choice | None = None

    @property
    def kind(self) -> Layout:
        """The layout of this name."""
        return LAYOUTS[self.layout]

    @classmethod
    def field(cls, name: str, given: str | Mapping[str, Any], matrix: Laid) -> Laid:
        """How a field is laid out, given as a layout or as a dict of it and its options.

        `length` and `choose` default to those of the matrix.

        Raises
        ------
        LoaderError
            The layout or an option does not exist, or has an invalid value.
        """
        what = f"the field {name!r}: "
        if isinstance(given, Mapping) and (unknown := given.keys() - {*cls._fields}):
            raise LoaderError(
                f"{what}there is no option {min(map(str, unknown))!r}; a field takes: "
                f"{', '.join(cls._fields)}"
            )
        options = dict(given) if isinstance(given, Mapping) else {"layout": given}
        layout = options.setdefault("layout", matrix.layout)
        if isinstance(layout, str) and layout in LAYOUTS and LAYOUTS[layout].takes_length:
            options = {"length": matrix.length, "choose": matrix.choose, **options}
        return cls(**options).checked(what, matrix)

    def checked(self, what: str = "", matrix: Laid | None = None) -> Laid:
        """Raise LoaderError, which begins with `what`, unless the options fit the layout.

        Parameters
        ----------
        matrix
            How the matrix is laid out, if this is for a field.
        """
        possible = [n for n, kind in LAYOUTS.items() if matrix is not None or not kind.follows]
        if not isinstance(self.layout, str) or self.layout not in possible:
            raise LoaderError(
                f"{what}layout must be one of {', '.join(possible)}, not {self.layout!r}"
            )
        lengths = " or ".join(repr(n) for n, kind in LAYOUTS.items() if kind.takes_length)
        if self.kind.follows and matrix is not None and not matrix.kind.takes_length:
            raise LoaderError(
                f"{what}the layout {self.layout!r} takes the genes of the matrix, so that the "
                f"layout of the loader must be {lengths}, not {matrix.layout!r}"
            )
        if self.kind.takes_length != (self.length is not None):
            raise LoaderError(
                f"{what}length is required for the layout {lengths}, in values per cell, and not "
                "allowed for other layouts"
            )
        if self.length is not None and not (
            isinstance(self.length, int | np.integer) and self.length >= 1
        ):
            raise LoaderError(
                f"{what}length must be a whole number of at least 1, not {self.length!r}"
            )
        if self.choose is not None and not self.kind.takes_length:
            raise LoaderError(
                f"{what}choose={self.choose!r} and by_value=True are for the layout 'padded'"
            )
        if self.choose not in (None, *get_args(Choice)):
            choices = ", ".join(get_args(Choice))
            raise LoaderError(f"{what}choose must be one of {choices}, not {self.choose!r}")
        return self
