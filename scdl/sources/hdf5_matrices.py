"""Matrices in HDF5 files, by their encoding.

Source: anndata's on-disk format specification, and files written by older releases.
"""

from __future__ import annotations

from typing import Any

import h5py

from scdl.archive.schema import DATA, MATRIX
from scdl.errors import SourceError
from scdl.sources.base import SparseParts
from scdl.sources.hdf5 import RowReader, numbers, readers
from scdl.sources.matrices import Csr, Dense, Matrix, Reader, check_shape
from scdl.sources.transposed import Coo, Csc, DenseTiles
from storage_backends.anndata_format.names import encoding_of, text
from storage_backends.base import DTYPES
from storage_backends.capabilities import Sparse

#: A dense matrix is read chunk by chunk if the chunks of the same rows take more bytes than this.
_LARGEST_BAND = 16 << 20
_SPARSE: dict[str, Any] = {"csr_matrix": Csr, "csc_matrix": Csc, "coo_matrix": Coo}


def open_matrix(where: str, element: h5py.Group | h5py.Dataset, shape: tuple[int, int]) -> Matrix:
    """A dense or sparse matrix of numbers.

    Parameters
    ----------
    where
        Path of the file and name of the matrix, for messages.
    shape
        Required shape.

    Raises
    ------
    SourceError
        The element has another shape or an unknown encoding, or is damaged.
    """
    if isinstance(element, h5py.Dataset):
        if element.shape is None:
            raise SourceError(f"{where} is empty, expected a matrix of shape {shape}")
        check_shape(where, tuple(int(n) for n in element.shape), shape)
        if _is_banded(element):
            return DenseTiles(where, element, shape)
        chunk_rows = element.chunks[0] if element.chunks else 1
        return Dense(where, RowReader(numbers(where, element)), shape, chunk_rows)
    encoding = _encoding(element)
    if encoding not in _SPARSE:
        raise SourceError(
            f"{where}: cannot read the encoding {encoding!r}; expected a dense array or "
            f"{', '.join(_SPARSE)}"
        )
    check_shape(where, _shape(element), shape)
    if encoding == "coo_matrix":
        return Coo(where, element, shape)
    matrix: Matrix = _SPARSE[encoding](where, readers(where, element, *MATRIX), shape)
    return matrix


def as_stored(
    where: str, element: h5py.Group | h5py.Dataset
) -> SparseParts | Matrix | Reader | None:
    """Readers of a matrix or an array; None for any other element."""
    encoding = _encoding(element)
    if encoding == "coo_matrix":
        rows, columns = _shape(element)
        return Coo(where, element, (rows, columns))
    if encoding in _SPARSE and _is_storable(element.get(DATA)):
        parts = readers(where, element, *MATRIX)
        rows, columns = _shape(element)
        return SparseParts(Sparse(encoding[:3], (rows, columns)), parts)
    return RowReader(element) if _is_storable(element) else None


def shape_of(element: h5py.Group | h5py.Dataset | None) -> tuple[int, ...] | None:
    """Shape of a dense or sparse matrix; None for any other element."""
    if isinstance(element, h5py.Group):
        return _shape(element) if _encoding(element) in _SPARSE else None
    return getattr(element, "shape", None)


def _encoding(element: h5py.Group | h5py.Dataset) -> str:
    # anndata before 0.7 used the attribute h5sparse_format.
    encoding = encoding_of(element) or text(element.attrs.get("h5sparse_format", ""))
    return encoding if encoding.endswith("_matrix") else f"{encoding}_matrix"


def _shape(element: h5py.Group) -> tuple[int, ...]:
    return tuple(
        int(n) for n in element.attrs.get("shape", element.attrs.get("h5sparse_shape", ()))
    )


def _is_banded(dataset: h5py.Dataset) -> bool:
    """Whether the chunks of the same rows are too large to keep in memory together."""
    if dataset.ndim != 2 or not dataset.chunks:
        return False
    return bool(dataset.chunks[0] * dataset.shape[1] * dataset.dtype.itemsize > _LARGEST_BAND)


def _is_storable(element: Any) -> bool:
    """Whether an element is an array with a dtype that archives can store."""
    return (
        isinstance(element, h5py.Dataset)
        and element.ndim > 0
        and element.dtype.newbyteorder("=") in DTYPES
    )
