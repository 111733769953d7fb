"""Write AnnData's HDF5 encoding in pieces."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp


class CsrWriter:
    """Appends rows to a CSR matrix in AnnData's HDF5 encoding.

    Datasets are resizable, with the chunks that h5py chooses for `expected_nnz`, as AnnData writes
    them, compressed or not.
    """

    def __init__(
        self,
        parent: h5py.Group,
        name: str,
        *,
        shape: tuple[int, int],
        expected_nnz: int,
        compression: dict[str, Any],
    ) -> None:
        self._group = parent.create_group(name)
        write_encoding(self._group, "csr_matrix", "0.1.0")
        self._group.attrs["shape"] = np.asarray(shape, dtype=np.int64)
        for column, dtype in (("data", np.float32), ("indices", np.int32)):
            self._group.create_dataset(
                column, (max(expected_nnz, 1),), dtype, maxshape=(None,), **compression
            )
        self._compression = compression
        self._row_lengths: list[npt.NDArray[np.int64]] = []
        self.nnz = 0

    def append(self, rows: sp.csr_matrix) -> None:
        """Append rows, stored as float32 values and int32 columns."""
        stop = self.nnz + rows.nnz
        for column, values in (("data", rows.data), ("indices", rows.indices)):
            dataset = self._group[column]
            if stop > len(dataset):
                dataset.resize((stop,))
            dataset[self.nnz : stop] = values
        self.nnz = stop
        self._row_lengths.append(np.diff(rows.indptr).astype(np.int64))

    def close(self) -> None:
        """Cut the datasets to length and write ``indptr``, int64."""
        for column in ("data", "indices"):
            self._group[column].resize((self.nnz,))
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(self._row_lengths))])
        self._group.create_dataset(
            "indptr", data=indptr.astype(np.int64), maxshape=(None,), **self._compression
        )


def write_encoding(group: h5py.Group, kind: str, version: str) -> None:
    group.attrs["encoding-type"] = kind
    group.attrs["encoding-version"] = version


def dataset_options(name: str) -> dict[str, Any]:
    """Options of ``create_dataset`` for ``none``, ``lzf``, ``gzip`` or ``gzip-<level>``."""
    method, _, level = name.partition("-")
    if name == "none":
        return {}
    if method == "gzip" and (not level or level in set("0123456789")):
        return {"compression": "gzip", "compression_opts": int(level or 4)}
    if name == "lzf":
        return {"compression": "lzf"}
    raise ValueError(f"compression is {name!r}; expected none, lzf, gzip or gzip-0 to gzip-9")
