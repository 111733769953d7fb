"""An open archive, read by row and by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.announcing import will_need
from scdl.archive.elements import dense_vectors, graph_keys, read_items
from scdl.archive.features import ObsFeatures, VarFeatures, spaces_of
from scdl.archive.fields import Field, check_field, fields_of
from scdl.archive.graph import NeighborGraph, key_of
from scdl.archive.requests import Matrices, Request, StoredMatrix
from scdl.archive.schema import OBS, Info, field_prefix, graph_array, obsm_array
from scdl.dataset import summary
from scdl.dataset.documented import Row
from scdl.dataset.stored_cells import StoredCells
from scdl.errors import ArchiveFormatError, FeatureNotFoundError, OptionError
from storage_backends import __version__, registry
from storage_backends.base import ArrayStore, CacheOptions
from storage_backends.compute.caching import cached_property
from storage_backends.paths import Path, absolute, path_of

if TYPE_CHECKING:
    import pyarrow as pa

#: Column names for gene and cell names: on disk, and in the documentation.
VAR_INDEX_NAMES = ("var_feature_id", "feature_id")
OBS_INDEX_NAMES = ("obs_feature_id",)

#: Rows of obs that are read together.
_ROWS_AT_ONCE = 1 << 20

#: Attributes set when opening, and those computed lazily; pickles do not contain them.
_OPENED = ("_store", "info", "_matrices", "_graphs", "_graph_matrices")
_READ = ("graph", "_var", "_obs", "_fields", "gene_spaces", "storage")


#: Default of `cache_mb`.
CACHE_MB = 50_000


def cache_options(cache_dir: Path | None, cache_mb: float) -> CacheOptions | None:
    """Where to keep what is fetched from URLs; OptionError for a size that is not positive."""
    if not isinstance(cache_mb, int | float | np.number) or not 0 < cache_mb < math.inf:
        raise OptionError(f"cache_mb must be a positive number, not {cache_mb!r}")
    if cache_dir is None:
        return None
    return CacheOptions(absolute(path_of(cache_dir, "the path of a directory")), float(cache_mb))


class OpenedArchive(StoredCells):
    """An open archive, read by row and by batch.

    A subclass sets the path and the options, and calls ``_open``.
    """

    data_path: str
    _load_neighbors: bool | None
    _neighbor_key: str
    _sampling: dict[str, Any]
    _matrix: str | None
    _cache: CacheOptions | None = None
    _var_index_names: tuple[str, ...]
    _obs_index_names: tuple[str, ...]

    def _open(self, path: str) -> None:
        store = registry.open_archive(path, cache=self._cache)
        if self._matrix is not None:
            from scdl.dataset.matrix_view import MatrixView

            store = MatrixView(store, self._matrix)
        info = Info.of(store)
        matrix = StoredMatrix.of(store, is_sorted=info.is_sorted)
        self._store: ArrayStore = store
        self.info = info
        #: The matrix, under an empty name, and fields that were read.
        self._matrices = {"": Matrices.of(matrix, info.max_n_vars)}
        self._graphs: dict[str, NeighborGraph] = {}
        self._graph_matrices: dict[str, StoredMatrix] = {}

    def select_matrix(self, matrix: str) -> Self:
        """The same cells with another matrix of an AnnData that the archive keeps completely.

        Parameters
        ----------
        matrix
            ``X``, ``raw/X`` or ``layers/<key>``, stored by rows.

        Raises
        ------
        OptionError
            The archive has no such matrix.

        Examples
        --------
        >>> spliced = scdl.open("cells.zarr").select_matrix("layers/spliced")
        >>> spliced.get_row_padded(0)[0]
        array([0., 1., 0., 0.], dtype=float32)
        """
        chosen = type(self).__new__(type(self))
        chosen.__setstate__({**self.__getstate__(), "_matrix": matrix})
        return chosen

    @property
    def identity(self) -> tuple[Any, ...]:
        """Identifies these cells and this matrix among archives at the same path."""
        return super().identity if self._matrix is None else (*super().identity, self._matrix)

    def _reopen(self, path: str) -> None:
        """Open the archive now at a path, and discard what was read from the old one."""
        before = self._store
        self._open(path)
        for name in _READ:
            self.__dict__.pop(name, None)
        before.close()

    def __getstate__(self) -> dict[str, Any]:
        self._store.check_current()  # the copy opens what is at the path
        state = {k: v for k, v in self.__dict__.items() if k not in _OPENED + _READ}
        return state | {"data_path": self._store.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open(self.data_path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.data_path!r}): {summary.size(self.n_obs, self.n_vars)}"

    def _facts(self) -> summary.Facts:
        stored, dtypes = self.number_nonzero_values(), (self.data_dtype, self.index_dtype)
        is_there = self._store.is_current
        backend = registry.of(self._store).name if is_there else "no longer there"
        return {
            "path": f"{self.data_path} ({backend})",
            "values": summary.values(stored, self.number_of_values(), *dtypes),
            "var": summary.names(self._var.blocks[0].names),
            "obsm": summary.names(dense_vectors(self._store)),
            "fields": summary.names(self.fields),
            **super()._facts(),
        }

    # -- reading ---------------------------------------------------------------------------

    def _request(self, at: NDArray[np.int64], field: str = "") -> Request:
        return Request(self._matrices_of(field), np.zeros(len(at), np.int64), at)

    def matrix_of(self, field: str = "") -> StoredMatrix:
        """The arrays of the matrix that is read, or of a field, by name.

        :meta private:
        """
        return self._matrices_of(field).archives[0]

    def _matrices_of(self, field: str) -> Matrices:
        known = self._matrices.get(field)
        if known is None:
            is_sorted = self._field(field).is_sorted
            matrix = StoredMatrix.of(self._store, field_prefix(field), is_sorted=is_sorted)
            known = Matrices.of(matrix, self.info.max_n_vars)
            # Threads share the addresses of the first.
            known = self._matrices.setdefault(field, known)
        return known

    @property
    def fields(self) -> list[str]:
        """Names of the fields, which are further matrices of all cells with the same genes."""
        return list(self._fields)

    @cached_property
    def _fields(self) -> dict[str, Field]:
        return fields_of(self._store, self.info)

    def _field(self, name: str) -> Field:
        check_field(self._store.path, name, self._fields)
        return self._fields[name]

    def _vectors(self, key: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        name = obsm_array(key)
        if name not in self._store.arrays:
            known = ", ".join(dense_vectors(self._store)) or "none"
            raise FeatureNotFoundError(
                f"{self._store.path}: there is no obsm {key!r}; it holds: {known}"
            )
        return read_items(self._store, name, rows)

    def _vector_keys(self) -> list[str]:
        return dense_vectors(self._store)

    def _row(self, index: SupportsIndex) -> Row:
        views = self.matrix_of().views
        if not views:
            return super()._row(index)
        data, indices, indptr = views
        at = csr.position(index, len(indptr) - 1)
        start, stop = indptr.item(at), indptr.item(at + 1)
        if not start <= stop <= len(data):
            raise ArchiveFormatError(
                f"{self._store.path}: row {at} is [{start}, {stop}) of {len(data)} values; "
                "the archive is damaged, convert the source again"
            )
        columns = indices[start:stop]
        if self.info.is_sorted or bool((columns[1:] > columns[:-1]).all()):
            return data[start:stop], columns
        return super()._row(index)

    # -- tables ----------------------------------------------------------------------------

    @cached_property
    def _var(self) -> VarFeatures:
        return VarFeatures(self._store, self.info, self._var_index_names)

    @cached_property
    def _obs(self) -> ObsFeatures | None:
        if OBS not in self._store.tables:
            return None
        return ObsFeatures(self._store, self.info, self._obs_index_names)

    @cached_property
    def gene_spaces(self) -> NDArray[np.int64]:
        """Gene space of each feature block, as stated by the archive or derived from gene names."""
        return spaces_of(self._store, self.info)

    def _obs_batches(
        self, chosen: Callable[[Sequence[str]], list[str]]
    ) -> Iterator[tuple[int, pa.Table]]:
        columns = chosen(self._store.table_schema(OBS).names)
        for start, stop in csr.spans(self.n_obs, _ROWS_AT_ONCE):
            yield start, self._store.read_table(OBS, columns, start, stop)

    # -- neighbours ------------------------------------------------------------------------

    @property
    def neighbor_keys(self) -> list[str]:
        """Keys of the graphs of the archive; empty if `load_neighbors` is False."""
        return [] if self._load_neighbors is False else graph_keys(self._store)

    @cached_property
    def graph(self) -> NeighborGraph | None:
        """The neighbour graph; None if there is none, or `load_neighbors` is False."""
        graphs = self.neighbor_keys
        key = key_of(graphs, self._neighbor_key)
        if key is None and graphs and self._load_neighbors:
            key = self._neighbor_key  # raises an error that lists the existing keys
        return None if key is None else NeighborGraph(self._store, key, **self._sampling)

    def _graph_of(self, key: str) -> NeighborGraph | None:
        if key not in self._graphs:
            if key not in self.neighbor_keys:
                return None
            self._graphs[key] = NeighborGraph(self._store, key, **self._sampling)
        return self._graphs[key]

    def _graph_matrix(self, key: str) -> StoredMatrix:
        """The matrix of a graph; raises the errors of :meth:`neighbor_graph`."""
        if key not in self._graph_matrices:
            self.neighbor_graph(key)
            prefix = graph_array(key, "")
            self._graph_matrices[key] = StoredMatrix.of(self._store, prefix, is_sorted=False)
        return self._graph_matrices[key]

    # -- the archive -----------------------------------------------------------------------

    def will_need(self, rows: NDArray[np.int64], fields: Sequence[str] = ()) -> Any:
        """Announce cells that will be read soon, so that the storage can prefetch them.

        Examples
        --------
        >>> announced = data.will_need(np.array([3, 4]))  # keep it until the cells were read
        >>> _ = data.read_rows([3, 4])
        """
        return [will_need(self._request(rows, name)) for name in ("", *fields) if len(rows)]

    def version(self) -> str:
        """Version of this package.

        Examples
        --------
        >>> data.version() == scdl.__version__
        True
        """
        return __version__

    def close(self) -> None:
        """Release files and memory.

        Examples
        --------
        >>> dataset = scdl.open("cells.scdl")
        >>> dataset.close()
        """
        matrix = replace(self._matrices[""], archives=(StoredMatrix(self._store, True),))
        self._matrices = {"": matrix}
        self._graph_matrices = {}
        self._store.close()
