"""AnnData HDF5 files: what is in them, checked, and read by blocks.

Nothing is read that is not asked for, so that a file with an element that nobody understands still
converts. Source: anndata's on-disk format specification, and what older releases wrote.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Self

import h5py
import pyarrow as pa

from scdl import hdf5_claims
from scdl.anndata_elements import legacy_rest, read_element
from scdl.chunks import FieldReader, RowReader, readable
from scdl.dataframes import H5Table
from scdl.errors import SourceError, SourceNotFoundError
from scdl.matrices import Csr, Dense, Matrix, Reader, check_shape, numbers, readers
from scdl.schema import DATA, INDICES, INDPTR
from scdl.sources import Source, SparseParts
from scdl.transpose import Coo, Csc, DenseTiles
from storage_backends import other_formats
from storage_backends.base import DTYPES, Sparse
from storage_backends.errors import one_line
from storage_backends.paths import path_of

#: Bytes of the chunks that hold the same rows of a dense matrix, above which it is read by chunks.
_LARGEST_BAND = 16 << 20
_SPARSE: dict[str, Any] = {"csr_matrix": Csr, "csc_matrix": Csc, "coo_matrix": Coo}
#: Mappings of elements, of which some may be carried over.
_MAPPINGS = ("layers", "obsm", "varm", "obsp", "varp")
#: Elements that may be as large as the matrix; the others are read as a whole.
_STREAMED = ("X", "raw/X", "layers/", "obsm/", "obsp/")


class H5adFile(Source):
    """An AnnData file, open for reading; a context manager.

    Parameters
    ----------
    path
        Where it is.
    matrix
        ``X``, ``raw/X`` or ``layers/<key>``; None: ``raw/X`` where the file has it, else ``X``.

    Raises
    ------
    SourceNotFoundError
        There is no such file.
    SourceError
        It is not HDF5, truncated, no AnnData, or lacks the matrix.
    """

    obs: H5Table

    def __init__(self, path: str | os.PathLike[str], matrix: str | None = None) -> None:
        self.path = self.label = path_of(path, "the path of an h5ad file")
        self._file = _open_hdf5(self.path)
        try:
            with readable(self.path):
                self.matrix_name = self.element = self._choose_matrix(matrix)
                self.obs = self._table("obs")
                self._var = self._table("raw/var" if self.matrix_name == "raw/X" else "var")
                self.matrix = self._matrix(self.matrix_name, (self.n_obs, self.n_vars))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    @property
    def n_vars(self) -> int:
        return self._var.num_rows

    def var(self) -> pa.Table:
        return self._var.whole()

    def graph(self, key: str) -> Matrix | None:
        name = f"obsp/{key}"
        with readable(self.path):
            there = hdf5_claims.element(self._file, name) is not None
            return self._matrix(name, (self.n_obs, self.n_obs)) if there else None

    def vectors(self, key: str) -> Reader:
        with readable(self.path):
            return self._vectors(key)

    def _vectors(self, key: str) -> RowReader | FieldReader:
        obsm, where = hdf5_claims.group(self._file, "obsm"), f"{self.path}: obsm/{key}"
        if obsm is None or key not in self._names_in("obsm"):
            raise SourceError(
                f"{where} is missing; obsm holds: {', '.join(self._names_in('obsm')) or 'nothing'}"
            )
        old = isinstance(obsm, h5py.Dataset)
        element = obsm if old else hdf5_claims.element(self._file, f"obsm/{key}")
        dtype = obsm.dtype[key].base if old else getattr(element, "dtype", None)
        if not isinstance(element, h5py.Dataset) or dtype is None or dtype.kind not in "biuf":
            raise SourceError(f"{where} is no dense array of numbers; leave it out")
        if element.ndim < 1 or element.shape[0] != self.n_obs:
            raise SourceError(f"{where} has shape {element.shape}, expected {self.n_obs} rows")
        return FieldReader(obsm, key) if old else RowReader(element)

    def not_carried(self, carried: set[str]) -> list[str]:
        with readable(self.path):
            return self._not_carried(carried)

    def _not_carried(self, carried: set[str]) -> list[str]:
        names = [name for name in ("X", "uns") if hdf5_claims.is_there(self._file, name)]
        for mapping in _MAPPINGS:
            names += [f"{mapping}/{key}" for key in self._names_in(mapping)]
        names += [f"raw/{key}" for key in self._names_in("raw")]
        names += self.unread
        carried = carried | {self.matrix_name, _OLD_NAMES.get(self.matrix_name, "")}
        if self.matrix_name == "raw/X":
            carried |= {"raw/var", "raw.var"}
            # The genes outside raw are left out with X.
            names += ["var"] if self._has("var") else []
        return [name for name in names if name not in carried]

    @property
    def unread(self) -> list[str]:
        """What is no part of an AnnData, and columns of cells and genes of unknown encodings."""
        known = {"X", "obs", "var", "uns", "raw", "__categories", *_MAPPINGS, *_OLD_NAMES.values()}
        tables = {"obs": self.obs, "var": self._var}
        columns = [f"{name}/{column}" for name, table in tables.items() for column in table.unread]
        return [name for name in self._file if name not in known] + columns

    def rest(self) -> Iterator[tuple[str, SparseParts | Reader | Any]]:
        with readable(self.path):
            modern = "encoding-type" in self._file.attrs
            if not modern:
                # anndata reads files of old releases as a whole.
                hdf5_claims.check(self._file)
        yield from self._rest() if modern else legacy_rest(self.path, self.matrix_name)

    def _rest(self) -> Iterator[tuple[str, SparseParts | Reader | Any]]:
        with readable(self.path):
            names = [n for n in self._names_of_rest() if n != self.matrix_name and self._has(n)]
        for name in names:
            with readable(f"{self.path}: {name}"):
                element = self._element_of_rest(name)
            yield name, element

    def _names_of_rest(self) -> list[str]:
        raw = self.matrix_name == "raw/X"
        names = ["X", "raw/X", "var" if raw else "raw/var"]
        names += [f"{mapping}/{k}" for mapping in _MAPPINGS for k in self._names_in(mapping)]
        names += [f"raw/varm/{key}" for key in self._names_in("raw/varm")]
        return names + ["uns"] * hdf5_claims.is_there(self._file, "uns")

    def _element_of_rest(self, name: str) -> SparseParts | Reader | Any:
        element = hdf5_claims.element(self._file, name)
        assert element is not None
        if name.startswith(_STREAMED):
            encoding = element.attrs.get("encoding-type")
            if encoding in ("csr_matrix", "csc_matrix") and _is_storable(element.get(DATA)):
                parts = readers(f"{self.path}: {name}", element, DATA, INDICES, INDPTR)
                rows, columns = map(int, element.attrs["shape"])
                return SparseParts(Sparse(str(encoding)[:3], (rows, columns)), parts)
            if _is_storable(element):
                return RowReader(element)
        return read_element(element)

    def _names_in(self, mapping: str) -> list[str]:
        group = hdf5_claims.group(self._file, mapping)
        if isinstance(group, h5py.Dataset):
            # Files of old releases keep some mappings as one compound dataset.
            return list(group.dtype.names or ())
        return [name for name in group or () if hdf5_claims.is_there(group, name)]

    def _names_at_the_root(self) -> list[str]:
        """Names of what is in the file, and in its groups."""
        groups = (hdf5_claims.group(self._file, name) for name in self._file)
        below = (name for group in groups if isinstance(group, h5py.Group) for name in group)
        return [*self._file, *below]

    def _choose_matrix(self, name: str | None) -> str:
        if not (self._has("obs") and self._has("var")):
            other = other_formats.hdf5(self._names_at_the_root())
            if other is not None:
                raise SourceError(other_formats.sentence(self.path, other))
            found = ", ".join(self._file) or "nothing"
            raise SourceError(f"{self.path}: no AnnData file: expected obs and var, found {found}")
        default = "raw/X" if self._element("raw/X") is not None else "X"
        chosen = default if name is None else name
        known = chosen in ("X", "raw/X") or chosen.startswith("layers/")
        if not known or self._element(chosen) is None:
            there = [n for n in ("X", "raw/X") if self._element(n) is not None]
            there += [f"layers/{key}" for key in self._names_in("layers")]
            raise SourceError(
                f"{self.path}: there is no matrix {chosen}; the file has: "
                f"{', '.join(there) or 'none'}"
            )
        return chosen

    def _element(self, name: str) -> h5py.Group | h5py.Dataset | None:
        found = hdf5_claims.element(self._file, name)
        old = _OLD_NAMES.get(name)
        return hdf5_claims.element(self._file, old) if found is None and old else found

    def _has(self, name: str) -> bool:
        return hdf5_claims.group(self._file, name) is not None

    def _table(self, name: str) -> H5Table:
        element = self._element(name)
        if element is None:
            raise SourceError(f"{self.path}: {name} is missing")
        return H5Table(f"{self.path}: {name}", element)

    def _matrix(self, name: str, shape: tuple[int, int]) -> Matrix:
        element, where = self._element(name), f"{self.path}: {name}"
        if isinstance(element, h5py.Dataset):
            if element.shape is None:
                raise SourceError(f"{where} is empty, expected a matrix of shape {shape}")
            check_shape(where, tuple(int(n) for n in element.shape), shape)
            if _is_banded(element):
                return DenseTiles(where, element, shape)
            chunk_rows = element.chunks[0] if element.chunks else 1
            return Dense(where, RowReader(numbers(where, element)), shape, chunk_rows)
        else:
            assert element is not None
            encoding = _sparse_encoding(element)
            if encoding not in _SPARSE:
                raise SourceError(
                    f"{where}: cannot read the encoding {encoding!r}; expected a dense array or "
                    f"{', '.join(_SPARSE)}"
                )
            check_shape(where, _sparse_shape(element), shape)
            if encoding == "coo_matrix":
                return Coo(where, element, shape)
            parts = readers(where, element, "data", "indices", "indptr")
            matrix: Matrix = _SPARSE[encoding](where, parts, shape)
            return matrix


def _sparse_encoding(element: h5py.Group) -> str:
    # Names of the attributes before and since anndata 0.7.
    encoding = element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", ""))
    encoding = encoding.decode() if isinstance(encoding, bytes) else str(encoding)
    return encoding if encoding.endswith("_matrix") else f"{encoding}_matrix"


def _sparse_shape(element: h5py.Group) -> tuple[int, ...]:
    return tuple(
        int(n) for n in element.attrs.get("shape", element.attrs.get("h5sparse_shape", ()))
    )


_OLD_NAMES = {"raw/X": "raw.X", "raw/var": "raw.var"}


def _open_hdf5(path: str) -> h5py.File:
    if not os.path.exists(path):
        raise SourceNotFoundError(other_formats.missing(path))
    if os.path.isdir(path):
        raise SourceError(f"{path}: expected an h5ad file, found a directory")
    other = other_formats.described(path)
    if other is not None:
        raise SourceError(other)
    try:
        hdf5_claims.check_heaps(path)
        return h5py.File(path, "r")
    except OSError as error:
        truncated = "truncated" in str(error)
        problem = "the HDF5 file is truncated" if truncated else "not an HDF5 file"
        raise SourceError(f"{path}: {problem} ({one_line(error)})") from error


def _is_banded(dataset: h5py.Dataset) -> bool:
    """Whether a row of chunks is too large to be held while its rows are read."""
    if dataset.ndim != 2 or not dataset.chunks:
        return False
    return bool(dataset.chunks[0] * dataset.shape[1] * dataset.dtype.itemsize > _LARGEST_BAND)


def _is_storable(element: Any) -> bool:
    """Whether the numbers of an element are of a type that archives have."""
    return (
        isinstance(element, h5py.Dataset)
        and element.ndim > 0
        and element.dtype.newbyteorder("=") in DTYPES
    )
