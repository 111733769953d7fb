"""Checks that the arrays of a Zarr group have the lengths that its matrices imply."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from storage_backends.capabilities import Sparse
from storage_backends.errors import ArchiveFormatError
from storage_backends.zarr.chunks.reading import ZarrArray


def check_lengths(
    where: str,
    matrix: str,
    sparse: Mapping[str, Sparse],
    lengths: Mapping[str, int],
    exposed: Collection[str],
) -> None:
    """Compare the lengths of arrays with the shapes of matrices, and with each other.

    Parameters
    ----------
    where
        Start of error messages.
    matrix
        Path of the matrix, which is stored by rows.
    sparse
        Sparse matrices by path.
    lengths
        Length of each array by path.
    exposed
        Paths of the elements whose rows are cells.

    Raises
    ------
    ArchiveFormatError
        Lengths differ.
    """
    rows = dict(lengths)
    for path, found in sparse.items():
        rows[path], along = found.shape[0], found.shape[found.format == "csc"]
        values, ids = lengths[f"{path}/data"], lengths[f"{path}/indices"]
        offsets = lengths[f"{path}/indptr"]
        if values != ids or offsets != along + 1:
            raise ArchiveFormatError(
                f"{where}: {path} has {found.shape[0]} rows and {found.shape[1]} columns, but "
                f"{offsets} offsets, {values} values and {ids} indices"
            )
    n_obs = lengths[f"{matrix}/indptr"] - 1
    for path, n_rows in rows.items():
        if path in exposed and n_rows != n_obs:
            raise ArchiveFormatError(f"{where}: {path} has {n_rows} rows, but {matrix} has {n_obs}")


def check_ends(where: str, offsets: ZarrArray, n_values: int) -> None:
    """Compare the first and last offset of a matrix with its number of values."""
    length = offsets.spec.length
    ends = np.empty(2, offsets.spec.dtype)
    offsets.read(np.array([0, length - 1]), np.array([1, length]), ends)
    if ends.tolist() != [0, n_values]:
        raise ArchiveFormatError(
            f"{where}: offsets run from {ends[0]} to {ends[1]}, for {n_values} values; convert "
            "the source again"
        )
