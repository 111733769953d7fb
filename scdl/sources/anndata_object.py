"""AnnData objects as sources: in memory, backed by a file, views, and lazily read ones.

Matrices in memory are read where they are. Those in files, of views and of Dask are read in ranges
of rows, so that the object is never in memory as a whole.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pyarrow as pa

from scdl.archive.frames import table_of
from scdl.archive.schema import INDEX, MATRIX
from scdl.archive.tables import TableInMemory
from scdl.errors import SourceError
from scdl.sources.base import BY_FORMAT, Source, choose_matrix
from scdl.sources.hdf5_matrices import open_matrix
from scdl.sources.lazy_matrices import LazyArray, SlicedMatrix, is_lazy, is_sparse
from scdl.sources.matrices import Dense, Matrix, Reader, Values, check_shape
from storage_backends.base import DTYPES, is_column_type
from storage_backends.compute.caching import cached_property

if TYPE_CHECKING:
    import anndata
    import pandas as pd

_MAPPINGS = ("layers", "obsm", "varm", "obsp", "varp")


def is_anndata(source: object) -> bool:
    """Whether an object is an AnnData; does not import anndata."""
    module = sys.modules.get("anndata")
    return module is not None and isinstance(source, module.AnnData)


class AnnDataObject(Source):
    """An AnnData object.

    Parameters
    ----------
    adata
        The object; it must not change while it is read.
    matrix
        ``X``, ``raw/X`` or ``layers/<key>``; None: ``raw/X`` if the object has it, else ``X``.

    Raises
    ------
    SourceError
        The object lacks the matrix, or its matrix does not hold numbers.
    """

    obs: TableInMemory

    def __init__(self, adata: anndata.AnnData, matrix: str | None = None) -> None:
        self._adata = adata
        self.path = f"AnnData object of {adata.n_obs} cells and {adata.n_vars} genes"
        self.label = str(adata.filename) if adata.isbacked else None
        names = self._matrices()
        self.matrix_name = self.element = choose_matrix(self.path, "object", matrix, names)
        self.obs, self._unread = storable("obs", adata.obs)
        self._var, unread = storable(self.genes, self._frame(self.genes))
        self._unread += unread
        self.matrix = self._matrix(self.matrix_name, (self.n_obs, self.n_vars))

    @property
    def n_vars(self) -> int:
        return self._var.num_rows

    def var(self) -> pa.Table:
        return self._var.table

    def graph(self, key: str) -> Matrix | None:
        if key not in self._adata.obsp:
            return None
        return self._wrapped(f"obsp/{key}", self._adata.obsp[key], (self.n_obs, self.n_obs))

    def vectors(self, key: str) -> Reader:
        where, obsm = f"{self.path}: obsm/{key}", self._adata.obsm
        if key not in obsm:
            raise SourceError(f"{where} is missing; obsm has: {', '.join(obsm) or 'nothing'}")
        values = obsm[key]
        if getattr(getattr(values, "dtype", None), "kind", "O") not in "biuf" or is_sparse(values):
            raise SourceError(f"{where} is not a dense array of numbers; leave it out")
        return Values(values) if isinstance(values, np.ndarray) else LazyArray(values)

    @property
    def unread(self) -> Sequence[str]:
        return self._unread

    def not_carried(self, carried: set[str]) -> list[str]:
        # As for a file, which lists raw/varm as one.
        names = super().not_carried(carried)
        return list(dict.fromkeys("raw/varm" if n.startswith("raw/varm/") else n for n in names))

    def names_of_rest(self) -> Sequence[str]:
        return [name for name in self._rest if name != self.matrix_name]

    def element_of_rest(self, name: str) -> Any:
        element = self._rest[name]()
        if not is_lazy(element):
            return element
        dtype = getattr(element, "dtype", None)
        if name.startswith("uns/") or not isinstance(dtype, np.dtype) or dtype not in DTYPES:
            # Such as tables and truth values, which archives store as a whole.
            return _loaded(element)
        if len(element.shape) == 2 and is_sparse(element):
            return self._wrapped(name, element, element.shape)
        return LazyArray(element)

    @cached_property
    def _rest(self) -> Mapping[str, Callable[[], Any]]:
        """Functions that return the elements other than obs and the genes of the matrix, by name.

        The mappings of a view copy an element when it is accessed.
        """
        adata, raw = self._adata, self._adata.raw
        found: dict[str, Callable[[], Any]] = {n: partial(self._whole, n) for n in self._matrices()}
        other = "var" if self.genes == "raw/var" else "raw/var"
        if other == "var" or raw is not None:
            found[other] = partial(self._frame, other)
        holders = {f"{name}/": getattr(adata, name) for name in _MAPPINGS}
        if raw is not None:
            holders["raw/varm/"] = raw.varm
        for prefix, holder in holders.items():
            found |= {f"{prefix}{key}": partial(holder.__getitem__, key) for key in _keys(holder)}
        return found | {name: partial(_same, value) for name, value in _leaves("uns", adata.uns)}

    def _matrices(self) -> list[str]:
        # A view would copy its matrix.
        adata = self._rows(0, 0) if self._adata.is_view else self._adata
        names = [] if adata.X is None else ["X"]
        names += [] if self._adata.raw is None else ["raw/X"]
        return names + [f"layers/{key}" for key in _keys(self._adata.layers)]

    def _frame(self, name: str) -> Any:
        return self._adata.var if name == "var" else self._adata.raw.var

    def _whole(self, name: str) -> Any:
        return _matrix_of(self._adata, name)

    def _matrix(self, name: str, shape: tuple[int, int]) -> Matrix:
        if not self._adata.is_view:
            return self._wrapped(name, self._whole(name), shape)
        # A view would copy the whole matrix; a view of it copies only some rows.
        where, sample = f"{self.path}: {name}", _matrix_of(self._rows(0, 1), name)
        return SlicedMatrix(where, lambda a, b: _matrix_of(self._rows(a, b), name), shape, sample)

    def _rows(self, start: int, stop: int) -> anndata.AnnData:
        """A view of some cells."""
        adata = self._adata
        if not (adata.is_view and adata.isbacked):
            return adata[start:stop]
        # anndata makes no views of views of a file, and does not say which rows a view has.
        parent = adata._adata_ref
        return parent[np.arange(parent.n_obs)[adata._oidx][start:stop], adata._vidx]

    def _wrapped(self, name: str, element: Any, shape: tuple[int, int]) -> Matrix:
        """A matrix of the object, whatever its class is."""
        where = f"{self.path}: {name}"
        check_shape(where, tuple(element.shape), shape)
        if element.dtype.kind not in "biuf":
            raise SourceError(f"{where}: expected numbers, found {element.dtype} values")
        if isinstance(element, np.ndarray):
            return Dense(where, Values(np.asarray(element)), shape)
        if getattr(element, "format", None) in BY_FORMAT and not is_lazy(element):
            parts = {part: Values(getattr(element, part)) for part in MATRIX}
            return BY_FORMAT[element.format](where, parts, shape)
        stored = getattr(element, "group", element)
        if isinstance(stored, h5py.Group | h5py.Dataset):
            return open_matrix(where, stored, shape)
        if not is_lazy(element):
            element = element.tocsr()
        return SlicedMatrix(where, lambda a, b: element[a:b], shape, element)


def _keys(mapping: Mapping[Any, Any]) -> list[str]:
    """Keys of a mapping of an AnnData, without the layer of no name, which is X (anndata 0.13)."""
    return [key for key in mapping if key is not None]


def _matrix_of(adata: anndata.AnnData, name: str) -> Any:
    """A matrix by its name."""
    if name == "X":
        return adata.X
    return adata.raw.X if name == "raw/X" else adata.layers[name.removeprefix("layers/")]


def storable(name: str, frame: Any) -> tuple[TableInMemory, list[str]]:
    """A data frame as a table, and the names of columns of other kinds than those of archives."""
    if hasattr(frame, "to_memory"):
        # Of anndata.experimental.read_lazy.
        frame = frame.to_memory()
    columns = [str(column) for column in frame.columns]
    frame = frame.set_axis(columns, axis=1)
    kept = [
        i
        for i, column in enumerate(columns)
        if column not in (INDEX, *columns[:i]) and _is_storable(frame.iloc[:, i])
    ]
    unread = [f"{name}/{column}" for i, column in enumerate(columns) if i not in kept]
    return TableInMemory(table_of(frame.iloc[:, kept])), unread


def _is_storable(column: pd.Series[Any]) -> bool:
    """Whether archives store columns of this kind."""
    try:
        type_ = table_of(column.to_frame("column")).schema.field("column").type
    except (pa.ArrowException, TypeError, ValueError):
        return False
    return is_column_type(type_)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """All entries of nested mappings with their paths."""
    if isinstance(value, Mapping) and not is_lazy(value) and (value or name == "uns"):
        for key, below in value.items():
            yield from _leaves(f"{name}/{key}", below)
    else:
        yield name, value


def _loaded(element: Any) -> Any:
    """Read all of a lazy element."""
    for read in ("to_memory", "compute"):
        if hasattr(element, read):
            return getattr(element, read)()
    return element[...]


def _same(value: Any) -> Any:
    return value


def open_sources(adata: anndata.AnnData, matrix: str | None, stack: ExitStack) -> list[Source]:
    """Open an object as a source."""
    return [AnnDataObject(adata, matrix)]
