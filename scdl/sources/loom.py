"""Loom files, versions 2 and 3, as sources.

The matrix and its layers are dense, genes x cells; attributes of columns are those of cells. Names
and columns are those that ``anndata.io.read_loom`` gives. Source: the specification of Loom, and
loompy, which writes text as ASCII with XML entities.
"""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scdl.errors import OptionError, SourceError
from scdl.sources import hdf5_guard
from scdl.sources.base import Source, choose_matrix
from scdl.sources.dataframes import H5Frame, H5Table
from scdl.sources.hdf5 import RowReader, numbers, open_file, readable
from scdl.sources.matrices import Dense, Matrix, Reader, check_shape
from scdl.sources.transposed import Columns, Coo, DenseTiles
from storage_backends import other_formats
from storage_backends.anndata_format.dataframes import Column, as_text
from storage_backends.anndata_format.names import INDEX_NAMED
from storage_backends.compute import arrow

OPTIONS = ("obs_names", "var_names")
FILES = ("*.loom",)
_MATRIX, _CELLS, _GENES = "matrix", "col_attrs", "row_attrs"
#: Attributes with names: those of the specification, and those that anndata writes.
_NAMES = {_CELLS: ("CellID", "obs_names"), _GENES: ("Gene", "var_names")}
#: Groups of the parts of an AnnData, by its name.
_GROUPS = {
    "layers": "layers", "obsm": _CELLS, "varm": _GENES, "obsp": "col_graphs", "varp": "row_graphs"
}  # fmt: skip
#: Attributes of the file about the file.
_OF_FILE = ("LOOM_SPEC_VERSION", "CreationDate", "last_modified")
#: Chunks of the same cells are read together if they take no more bytes than this.
_LARGEST_BAND = 64 << 20
#: Bytes of the index of chunks that HDF5 keeps, as HDF5 counts them; they take eight times as much.
#: The nodes that consecutive bands of cells share take less.
_INDEX_BYTES = 1 << 19


def is_loom(path: str) -> bool:
    """Whether a path is a Loom file."""
    if path.endswith(".loom"):
        # Opening a damaged one says what is wrong.
        return os.path.isfile(path)
    # No search in h5ad files, which are far more frequent.
    if path.endswith(".h5ad") or not other_formats.is_hdf5(path):
        return False
    try:
        with h5py.File(path) as file:
            return all(name in file for name in (_MATRIX, _CELLS, _GENES))
    except Exception:  # noqa: BLE001 - opening it as an h5ad file says what is wrong
        return False


def open_sources(
    path: str,
    matrix: str | None,
    stack: ExitStack,
    *,
    obs_names: str | None = None,
    var_names: str | None = None,
) -> list[Source]:
    """Open a file as a source; see :func:`scdl.convert` for the options.

    Raises
    ------
    SourceError
        The file is damaged or not a Loom file, or lacks the matrix.
    OptionError
        There is no such attribute.
    """
    file = stack.enter_context(open_file(path))
    limits = file.id.get_mdc_config()
    limits.set_initial_size, limits.initial_size = True, _INDEX_BYTES
    limits.min_size = limits.max_size = _INDEX_BYTES
    file.id.set_mdc_config(limits)
    with readable(path):
        return [LoomFile(path, file, matrix, obs_names, var_names)]


class LoomFile(Source):
    """A Loom file.

    Parameters
    ----------
    path, file
        Path of the file, and the open file.
    matrix
        ``X``, the main matrix, or ``layers/<key>``; None: ``X``.
    obs_names, var_names
        Attributes with the names of cells and genes; None: the default, see :func:`scdl.convert`.
    """

    def __init__(
        self,
        path: str,
        file: h5py.File,
        matrix: str | None,
        obs_names: str | None,
        var_names: str | None,
    ) -> None:
        self.path = self.label = path
        self._file = file
        main = hdf5_guard.group(file, _MATRIX)
        if not isinstance(main, h5py.Dataset) or main.ndim != 2:
            raise self._incomplete()
        self._shape = int(main.shape[1]), int(main.shape[0])
        self.obs = self._obs = self._table(_CELLS, self._shape[0], obs_names)
        self._var = self._table(_GENES, self._shape[1], var_names)
        available = ["X", *(f"layers/{key}" for key in self._keys("layers"))]
        self.matrix_name = self.element = choose_matrix(path, "file", matrix, available)
        self.matrix = self._matrix(self.element)

    @property
    def n_vars(self) -> int:
        return self._shape[1]

    def var(self) -> pa.Table:
        return self._var.whole

    def graph(self, key: str) -> Matrix | None:
        with readable(self.path):
            return self._graph(f"obsp/{key}") if key in self._keys("obsp") else None

    def vectors(self, key: str) -> Reader:
        known = self._keys("obsm")
        if key not in known:
            return super().vectors(key)
        with readable(self.path):
            reader = RowReader(self._member(f"obsm/{key}"))
        if len(reader) != self.n_obs:
            raise SourceError(
                f"{self.path}: {_CELLS}/{key} has {len(reader)} rows, expected {self.n_obs}"
            )
        return reader

    def names_of_rest(self) -> Sequence[str]:
        with readable(self.path):
            names = ["X", *(f"{kind}/{key}" for kind in _GROUPS for key in self._keys(kind))]
        return [name for name in names if name != self.element]

    def element_of_rest(self, name: str) -> Matrix | Reader:
        with readable(f"{self.path}: {name}"):
            if name == "X" or name.startswith("layers/"):
                return self._matrix(name)
            if name.startswith(("obsp/", "varp/")):
                return self._graph(name)
            return RowReader(self._member(name))

    @property
    def unread(self) -> Sequence[str]:
        """Unreadable attributes of cells and genes, and attributes of the file."""
        tables = {"obs": self._obs, "var": self._var}
        with readable(self.path):
            vectors = {"obs": self._keys("obsm"), "var": self._keys("varm")}
            lost = [f"{name}/{column}" for name, table in tables.items()
                    for column in table.unread if column not in vectors[name]]  # fmt: skip
            group = hdf5_guard.group(self._file, "attrs")
            # Since version 3 they are datasets.
            own = [*self._file.attrs, *(group if isinstance(group, h5py.Group) else ())]
        return [*lost, *(f"attrs/{name}" for name in own if name not in _OF_FILE)]

    def _table(self, name: str, length: int, index: str | None) -> H5Table:
        group = hdf5_guard.group(self._file, name)
        if not isinstance(group, h5py.Group):
            raise self._incomplete()
        if index is None:
            index = next((known for known in _NAMES[name] if known in group), None)
        elif index not in group:
            raise OptionError(
                f"{self.path}: there is no attribute {index!r}; {name} has: "
                f"{', '.join(group) or 'none'}"
            )
        return H5Table(f"{self.path}: {name}", group, partial(_Attributes, index, length))

    def _incomplete(self) -> SourceError:
        return SourceError(
            f"{self.path}: not a complete Loom file: expected a matrix, {_CELLS} and {_GENES}, "
            f"found {', '.join(self._file) or 'nothing'}"
        )

    def _keys(self, kind: str) -> list[str]:
        """Names of the parts of one kind, such as ``layers`` or ``obsm``."""
        group = hdf5_guard.group(self._file, _GROUPS[kind])
        names = list(group) if isinstance(group, h5py.Group) else []
        if kind in ("obsm", "varm"):
            return [name for name in names if _is_vectors(hdf5_guard.group(group, name))]
        return names

    def _member(self, name: str) -> Any:
        kind, _, key = name.partition("/")
        found = hdf5_guard.element(self._file, f"{_GROUPS[kind]}/{key}" if key else _MATRIX)
        if found is None:
            raise SourceError(f"{self.path}: {name} is missing")
        return found

    def _matrix(self, name: str) -> Matrix:
        where, dataset = f"{self.path}: {name}", self._member(name)
        if not isinstance(dataset, h5py.Dataset):
            raise SourceError(f"{where}: expected a dense matrix, found a group")
        check_shape(where, tuple(int(n) for n in dataset.shape[::-1]), self._shape)
        width = dataset.chunks[1] if dataset.chunks else 1
        band = width * dataset.shape[0] * dataset.dtype.itemsize
        if dataset.chunks and band > _LARGEST_BAND:
            return DenseTiles(where, dataset, self._shape, is_transposed=True)
        return Dense(where, Columns(numbers(where, dataset)), self._shape, width)

    def _graph(self, name: str) -> Matrix:
        where, group = f"{self.path}: {name}", self._member(name)
        n = self._shape[0 if name.startswith("obsp/") else 1]
        if not isinstance(group, h5py.Group):
            raise SourceError(f"{where}: expected a graph with a, b and w, found an array")
        return Coo(where, group, (n, n), ("w", "a", "b"))


def _is_vectors(attribute: Any) -> bool:
    """Whether an attribute has several numbers for each cell or gene."""
    return (
        isinstance(attribute, h5py.Dataset)
        and attribute.ndim > 1
        and attribute.shape[1] != 1
        and attribute.dtype.kind in "biuf"
    )


class _Attributes(H5Frame):
    """The attributes of cells or genes as a data frame.

    Parameters
    ----------
    index
        The attribute with the names; None: the positions are the names.
    length
        Number of cells or genes.
    """

    def __init__(self, index: str | None, length: int, where: str, group: h5py.Group) -> None:
        super().__init__(where, group)
        self._index, self._length = index, length

    @property
    def attributes(self) -> Any:
        return {INDEX_NAMED: self._index or ""}

    def index(self, name: str) -> Column:
        if name:
            found = super().index(name)
            if found.length == self._length:
                return found
            raise SourceError(
                f"{self.where}: {name} has {found.length} values, expected {self._length}, as the "
                "matrix has"
            )
        return as_text(
            Column(pa.int64(), self._length, lambda a, b: arrow.numbers(np.arange(a, b)))
        )

    def listed(self, attributes: Any, index: str) -> list[str]:
        names = super().listed(attributes, index)
        return [name for name in names if not _is_vectors(hdf5_guard.group(self.group, name))]

    def column(self, element: Any) -> Column | None:
        if len(getattr(element, "shape", ())) != 2 or element.shape[1] != 1:
            return super().column(element)
        if element.dtype.kind not in "biuf":
            return None
        type_ = pa.from_numpy_dtype(element.dtype.newbyteorder("="))
        return Column(type_, len(element), lambda a, b: arrow.numbers(element[a:b, 0]))

    def text(self, array: h5py.Dataset) -> Column | None:
        found = super().text(array)
        if found is None:
            return None
        return found._replace(read=lambda start, stop: _unescaped(found.read(start, stop)))


def _unescaped(values: pa.Array) -> pa.Array:
    """Text with characters in place of XML entities."""
    if not pc.any(pc.match_substring(values, "&")).as_py():
        return values
    encoded = values.dictionary_encode()
    labels = [text and html.unescape(text) for text in encoded.dictionary.to_pylist()]
    return pa.array(labels, values.type).take(encoded.indices)
