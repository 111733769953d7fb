"""AnnData HDF5 files as sources: elements are checked and read in blocks.

Only requested elements are read, so a file with an element of an unknown encoding can still be
converted. Source: anndata's on-disk format specification, and files written by older releases.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Self

import h5py
import pyarrow as pa

from scdl.archive.frames import frame_of
from scdl.errors import SourceError
from scdl.sources import hdf5_guard
from scdl.sources.anndata_elements import read_element
from scdl.sources.base import Source, SparseParts, choose_matrix
from scdl.sources.dataframes import H5Table
from scdl.sources.hdf5 import RowReader, field_reader, open_file, readable
from scdl.sources.hdf5_matrices import as_stored, open_matrix, shape_of
from scdl.sources.matrices import Matrix, Reader
from storage_backends import other_formats
from storage_backends.anndata_format.names import OLD_CATEGORIES, encoding_of, text
from storage_backends.compute.caching import cached_property
from storage_backends.paths import path_of

#: Mappings whose elements can be converted.
_MAPPINGS = ("layers", "obsm", "varm", "obsp", "varp")
#: Names that old releases use in place of raw; the categories are duplicates of those in uns.
_OLD_RAW = ("raw.X", "raw.var", "raw.varm", "raw.cat")
#: Elements that may be as large as the matrix and are streamed; others are read into memory.
_STREAMED = ("X", "raw/X", "layers/", "obsm/", "obsp/")


class H5adFile(Source):
    """An AnnData file, open for reading; a context manager.

    Parameters
    ----------
    path
        Path of the file.
    matrix
        ``X``, ``raw/X`` or ``layers/<key>``; None: ``raw/X`` if the file has it, else ``X``.
    within
        Group of the AnnData in the file, which is open already; default: the file as a whole.

    Raises
    ------
    SourceNotFoundError
        The file does not exist.
    SourceError
        The file is not HDF5, is truncated, is not an AnnData, or lacks the matrix.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        matrix: str | None = None,
        within: h5py.Group | None = None,
    ) -> None:
        self.path = self.label = path_of(path, "the path of an h5ad file")
        self._file = open_file(self.path) if within is None else within
        if within is not None:
            self.path += within.name
        try:
            with readable(self.path):
                self.matrix_name = self.element = self._choose_matrix(matrix)
                self.obs = self._obs = self._table("obs")
                self._var = self._table(self.genes)
                self.matrix = self._matrix(self.matrix_name, (self.n_obs, self.n_vars))
        except BaseException:
            self._file.file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.file.close()

    @property
    def n_vars(self) -> int:
        return self._var.num_rows

    def var(self) -> pa.Table:
        return self._var.whole

    def graph(self, key: str) -> Matrix | None:
        name = f"obsp/{key}"
        with readable(self.path):
            exists = self._element(name) is not None
            return self._matrix(name, (self.n_obs, self.n_obs)) if exists else None

    def vectors(self, key: str) -> Reader:
        where = f"{self.path}: obsm/{key}"
        with readable(self.path):
            obsm = hdf5_guard.group(self._file, "obsm")
            known = self._names_in("obsm")
            if obsm is None or key not in known:
                raise SourceError(f"{where} is missing; obsm has: {', '.join(known) or 'nothing'}")
            old = isinstance(obsm, h5py.Dataset)
            element = obsm if old else hdf5_guard.element(self._file, f"obsm/{key}")
            dtype = obsm.dtype[key].base if old else getattr(element, "dtype", None)
            if not isinstance(element, h5py.Dataset) or dtype is None or dtype.kind not in "biuf":
                raise SourceError(f"{where} is not a dense array of numbers; leave it out")
            if element.ndim < 1 or element.shape[0] != self.n_obs:
                raise SourceError(f"{where} has shape {element.shape}, expected {self.n_obs} rows")
            return field_reader(obsm, key) if old else RowReader(element)

    def not_carried(self, carried: set[str]) -> list[str]:
        with readable(self.path):
            names = [name for name in ("X", "uns") if self._is_present(name)]
            for mapping in _MAPPINGS:
                names += [f"{mapping}/{key}" for key in self._names_in(mapping)]
            names += [name for name in ("raw/X", "raw/var", "raw/varm") if self._is_present(name)]
            names += self._unread({"obs": self._obs, self.genes: self._var})
            if self.genes == "raw/var" and self._is_present("var"):
                # With raw/X selected, var is left out together with X.
                names.append("var")
        return [name for name in names if name not in {*carried, self.matrix_name, self.genes}]

    @property
    def unread(self) -> list[str]:
        """Objects that are not part of an AnnData, and unreadable columns of obs and var."""
        tables = {"obs": self._obs, self.genes: self._var}
        if self._is_present(self._other_genes):
            # An unreadable table is reported as a whole elsewhere, so skip its columns.
            with suppress(SourceError), readable(self.path):
                tables[self._other_genes] = self._table(self._other_genes)
        return self._unread(tables)

    @property
    def _other_genes(self) -> str:
        """Name of the table of genes that does not belong to the matrix."""
        return "var" if self.genes == "raw/var" else "raw/var"

    def _unread(self, tables: Mapping[str, H5Table]) -> list[str]:
        known = {"X", "obs", "var", "uns", "raw", OLD_CATEGORIES, *_MAPPINGS, *_OLD_RAW}
        columns = [f"{name}/{column}" for name, table in tables.items() for column in table.unread]
        return [name for name in self._file if name not in known] + columns

    def names_of_rest(self) -> Sequence[str]:
        with readable(self.path):
            others = ("X", "raw/X", self._other_genes)
            names = [name for name in others if self._is_present(name)]
            for mapping in (*_MAPPINGS, "raw/varm"):
                names += [f"{mapping}/{key}" for key in self._names_in(mapping)]
            moved = {old: new for new, old in self._old_graphs.items()}
            names += [moved.get(name, name) for name in self._names_in_uns()]
            return [name for name in names if name != self.matrix_name]

    def element_of_rest(self, name: str) -> SparseParts | Matrix | Reader | Any:
        where = f"{self.path}: {name}"
        with readable(where):
            if name in ("var", "raw/var"):
                return frame_of(self._table(name).whole)
            mapping, _, key = name.rpartition("/")
            holder = self._group(mapping) if mapping else None
            if isinstance(holder, h5py.Dataset):
                hdf5_guard.check(holder)
                field = field_reader(holder, key)
                return field.read(0, len(field))
            element = self._element(name)
            assert element is not None
            stored = as_stored(where, element) if name.startswith(_STREAMED) else None
            return read_element(element) if stored is None else stored

    def _names_in(self, mapping: str) -> list[str]:
        group = self._group(mapping)
        if isinstance(group, h5py.Dataset):
            # Old releases store some mappings as one compound dataset.
            return list(group.dtype.names or ())
        present = [name for name in group or () if hdf5_guard.is_present(group, name)]
        # anndata writes a name with a slash as groups of groups.
        return [name for key in present for name in self._pieces(mapping, key, set())]

    def _names_in_uns(self) -> list[str]:
        group = hdf5_guard.group(self._file, "uns")
        keys = group if isinstance(group, h5py.Group) else ()
        seen = {group.id} if isinstance(group, h5py.Group) else set()
        names = [f"uns/{name}" for key in keys for name in self._pieces("uns", key, seen)]
        if isinstance(self._group("obs"), h5py.Dataset):
            # Old releases stored the categories of columns in uns.
            columns = {*self._obs.categories, *self._table("var").categories}
            names = [n for n in names if n.removesuffix("_categories")[4:] not in columns]
        return names

    def _pieces(self, holder: str, key: str, seen: set[Any]) -> list[str]:
        """Names of all entries below a key of a mapping; the key itself if it is not a mapping."""
        try:
            group = self._group(f"{holder}/{key}")
        except SourceError:
            # Reading the element raises the error that explains why.
            return [key]
        if not isinstance(group, h5py.Group) or group.id in seen or not len(group):
            return [key]
        encoding = encoding_of(group) or text(group.attrs.get("h5sparse_format", ""))
        if encoding not in ("", "dict"):
            return [key]
        seen.add(group.id)
        return [name for k in group for name in self._pieces(holder, f"{key}/{k}", seen)]

    @cached_property
    def _old_graphs(self) -> Mapping[str, str]:
        """Paths of graphs that early releases stored in uns, by their current names."""
        moved = {}
        for key in ("connectivities", "distances"):
            old, new = f"uns/neighbors/{key}", f"obsp/{key}"
            with suppress(SourceError):
                graph = hdf5_guard.element(self._file, old)
                is_square = shape_of(graph) == (self.n_obs, self.n_obs)
                if is_square and not hdf5_guard.is_present(self._file, new):
                    moved[new] = old
        return moved

    def _choose_matrix(self, name: str | None) -> str:
        if any(hdf5_guard.group(self._file, table) is None for table in ("obs", "var")):
            groups = (hdf5_guard.group(self._file, name) for name in self._file)
            below = [k for group in groups if isinstance(group, h5py.Group) for k in group]
            other = other_formats.hdf5([*self._file, *below])
            if other is not None:
                raise SourceError(other_formats.sentence(self.path, other))
            names = ", ".join(self._file) or "nothing"
            raise SourceError(
                f"{self.path}: not an AnnData file: expected obs and var, found {names}"
            )
        available = [n for n in ("raw/X", "X") if self._element(n) is not None]
        available += [f"layers/{key}" for key in self._names_in("layers")]
        return choose_matrix(self.path, "file", name, available)

    def _paths(self, name: str) -> list[str]:
        """Possible paths of an element, that of newer releases first."""
        moved = self._old_graphs.get(name) if name.startswith("obsp/") else None
        old = name.replace("raw/", "raw.", 1) if name.startswith("raw/") else moved
        return [name, old] if old else [name]

    def _element(self, name: str) -> h5py.Group | h5py.Dataset | None:
        candidates = (hdf5_guard.element(self._file, path) for path in self._paths(name))
        return next((element for element in candidates if element is not None), None)

    def _group(self, name: str) -> h5py.Group | h5py.Dataset | None:
        """Like :meth:`_element`, for a mapping, whose contents are not checked."""
        candidates = (hdf5_guard.group(self._file, path) for path in self._paths(name))
        return next((group for group in candidates if group is not None), None)

    def _is_present(self, name: str) -> bool:
        """Whether a non-empty element exists under its current or old name."""
        return any(hdf5_guard.is_present(self._file, path) for path in self._paths(name))

    def _table(self, name: str) -> H5Table:
        element = self._group(name)
        if element is None:
            hint = "; convert X instead of raw/X with matrix='X'" if "raw" in name else ""
            raise SourceError(f"{self.path}: {name} is missing{hint}")
        return H5Table(f"{self.path}: {name}", element)

    def _matrix(self, name: str, shape: tuple[int, int]) -> Matrix:
        return open_matrix(f"{self.path}: {name}", self._element(name), shape)


def open_sources(path: str, matrix: str | None, stack: ExitStack) -> list[Source]:
    """Open a file as a source."""
    return [stack.enter_context(H5adFile(path, matrix))]
