"""One archive as a dataset."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self, SupportsIndex, Unpack

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdl.archive import csr
from scdl.archive.features import ObsFeatures, VarFeatures, spaces_of
from scdl.archive.graph import NeighborGraph, NeighborSamplingStrategy, key_of
from scdl.archive.joining import Request, Source, Sources, source
from scdl.archive.schema import (
    DATA,
    INDICES,
    INDPTR,
    MATRIX,
    NEIGHBOR_KEY,
    OBS,
    Info,
    dense_vectors,
    graph_array,
    graph_keys,
    obsm_array,
)
from scdl.dataset import summary
from scdl.dataset.batch import CellBatch
from scdl.dataset.documented import Row
from scdl.dataset.reader import CellReader
from scdl.errors import (
    ArchiveFormatError,
    CollectionError,
    FeatureNotFoundError,
    OptionError,
)
from storage_backends import __version__, registry
from storage_backends.base import ArrayStore
from storage_backends.compute.caching import cached_property
from storage_backends.paths import absolute, path_of

if TYPE_CHECKING:
    from anndata import AnnData

    from scdl.conversion.cell_names import CellNames
    from scdl.conversion.options import ConvertOptions
    from scdl.verification.verify import VerificationReport

Path = str | os.PathLike[str]

#: What gene and cell names are called as columns: on disk, and in the documentation.
VAR_INDEX_NAMES = ("var_feature_id", "feature_id")
OBS_INDEX_NAMES = ("obs_feature_id",)

#: Attributes that opening makes, and those that are read on first use; pickles go without them.
_OPENED = ("_store", "_info", "_views")
_READ = ("_source", "graph", "_graphs", "_graph_sources", "_var", "_obs", "gene_spaces")


class SingleCellDataset(CellReader):
    """An archive of any backend, read by row and by batch.

    Indexing gives what a PyTorch map-style dataset gives, so that a ``DataLoader`` takes it.
    Pickling carries paths, never data.

    Parameters
    ----------
    path
        Where the archive is, or is made.
    h5ad_path
        AnnData file to make it from; without one, the archive at `path` is opened.
    backend
        Storage backend of an archive that is made, as for :func:`scdl.convert`; one that is opened
        tells its own.
    load_neighbors
        Whether to use a neighbour graph, and to carry it over from an AnnData file. None: use one
        where the archive has it.
    neighbor_key
        Key of the graph in ``obsp``.
    neighbor_sampling_strategy
        How :meth:`sample_neighbors` chooses: ``"random"``, ``"first"`` or ``"weighted"``, in
        proportion to the weights.
    fallback_to_identity
        Whether a cell without neighbours is its own.
    **options
        For conversions, also by :meth:`load_h5ad`; see :func:`scdl.convert`. Without `h5ad_path`,
        ``matrix`` is another matrix of an AnnData that the archive keeps whole, to read in place of
        the one it was made for: ``X``, ``raw/X`` or ``layers/<key>``, stored by rows. Such a
        dataset does not change the archive.

    Raises
    ------
    ArchiveNotFoundError
        There is nothing at `path`, and no `h5ad_path`.
    ArchiveExistsError
        Something is at `path`, with an `h5ad_path`.
    ArchiveFormatError
        What is at `path` is no archive, or a damaged one.
    SourceError
        What is at `h5ad_path` cannot be converted.
    """

    def __init__(
        self,
        path: Path,
        h5ad_path: Path | None = None,
        *,
        backend: str | None = None,
        load_neighbors: bool | None = None,
        neighbor_key: str = NEIGHBOR_KEY,
        neighbor_sampling_strategy: NeighborSamplingStrategy
        | str = NeighborSamplingStrategy.RANDOM,
        fallback_to_identity: bool = True,
        **options: Unpack[ConvertOptions],
    ) -> None:
        # Messages have the path as it was given.
        given = path_of(path, "the path of an archive")
        self.data_path = absolute(given)
        self._load_neighbors = load_neighbors
        self._neighbor_key = neighbor_key
        self._sampling: dict[str, Any] = {
            "strategy": NeighborSamplingStrategy(neighbor_sampling_strategy),
            "fallback_to_identity": fallback_to_identity,
        }
        self._var_index_names: tuple[str, ...] = VAR_INDEX_NAMES
        self._obs_index_names: tuple[str, ...] = OBS_INDEX_NAMES
        self._options = options
        #: Another matrix than the archive was made for.
        self._matrix = options.get("matrix") if h5ad_path is None else None
        if options:
            from scdl.conversion.options import check_options

            check_options(options, SingleCellDataset)
        if h5ad_path is not None:
            from scdl.conversion.convert import convert

            key = neighbor_key if load_neighbors else None
            convert(h5ad_path, given, backend=backend, neighbor_key=key, **options)
        self._open(given)

    def _open(self, path: str) -> None:
        store = registry.open_archive(path)
        if self._matrix is not None:
            from scdl.dataset.matrix_view import MatrixView

            store = MatrixView(store, self._matrix)
        info = Info.of(store)
        views = [store.view(name) for name in MATRIX]
        # Plain arrays slice several times faster than numpy.memmap does.
        found = [np.asarray(view) for view in views if view is not None]
        usable = len(found) == len(MATRIX) and found[1].dtype.kind == "u"
        self._store: ArrayStore = store
        self._info = info
        #: Values, ids and offsets, or nothing where they are not all in memory.
        self._views = found if usable and len(found[0]) == len(found[1]) else []

    def select_matrix(self, matrix: str) -> Self:
        """The same cells with another matrix of an AnnData that the archive keeps whole.

        Parameters
        ----------
        matrix
            ``X``, ``raw/X`` or ``layers/<key>``, stored by rows.

        Raises
        ------
        OptionError
            The archive has no such matrix.
        """
        chosen = type(self).__new__(type(self))
        chosen.__setstate__({**self.__getstate__(), "_matrix": matrix})
        return chosen

    @property
    def identity(self) -> tuple[Any, ...]:
        """What tells these cells and this matrix from others at the same place."""
        return super().identity if self._matrix is None else (*super().identity, self._matrix)

    def _reopen(self, path: str) -> None:
        """Open what now stands at a path, and forget what was read from the old."""
        before = self._store
        self._open(path)
        for name in _READ:
            self.__dict__.pop(name, None)
        before.close()

    def __getstate__(self) -> dict[str, Any]:
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
            **super()._facts(),
        }

    # -- reading ---------------------------------------------------------------------------

    @property
    def info(self) -> Info:
        """Feature blocks, and what the archive says of itself."""
        return self._info

    def _read(
        self,
        at: NDArray[np.int64],
        ordered: bool,
        index_dtype: DTypeLike | None,
        *,
        concurrently: bool = False,
        sum_dtype: np.dtype[Any] | None = None,
        totals: bool = False,
    ) -> CellBatch:
        wide = None if index_dtype is None else np.dtype(index_dtype)
        # Ids that have to be sorted are widened on the way.
        info = self._info
        sorts = ordered and not info.is_sorted
        read_as = None if sorts else wide
        cells = self._stored_rows(at, read_as, concurrently)
        if sorts:
            cells = csr.clean(cells, info.max_n_vars, self._store.path, wide, sum_dtype)
        return CellBatch(
            cells.data,
            cells.indices,
            cells.indptr,
            n_vars=info.max_n_vars,
            rows=at,
            largest=cells.largest,
        )

    def _stored_rows(
        self, at: NDArray[np.int64], index_dtype: np.dtype[Any] | None, concurrently: bool
    ) -> csr.SparseRows:
        views = self._views
        if views:
            stored = views[1].dtype
            if index_dtype is None or np.can_cast(stored, index_dtype, "safe"):
                found = csr.gather(views, at, index_dtype or stored, concurrently=concurrently)
                if found is not None:
                    return found
        # Also says what is wrong.
        return csr.read(self._store, "", at, index_dtype, concurrently=concurrently)

    def _request(self, at: NDArray[np.int64]) -> Request:
        return Request(Sources([self._source]), np.zeros(len(at), np.int64), at)

    @cached_property
    def _source(self) -> Source:
        return source(self._store, is_sorted=self._info.is_sorted)

    def _vectors(self, key: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        name = obsm_array(key)
        if name not in self._store.arrays:
            known = ", ".join(dense_vectors(self._store)) or "none"
            raise FeatureNotFoundError(
                f"{self._store.path}: there is no obsm {key!r}; it holds: {known}"
            )
        spec = self._store.spec(name)
        out = np.empty((len(rows), *spec.item_shape), spec.dtype)
        self._store.read_ranges(name, rows, rows + 1, out)
        return out

    def _vector_keys(self) -> list[str]:
        return dense_vectors(self._store)

    def _row(self, index: SupportsIndex) -> Row:
        views = self._views
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
        if self._info.is_sorted or bool((columns[1:] > columns[:-1]).all()):
            return data[start:stop], columns
        return super()._row(index)

    # -- tables ----------------------------------------------------------------------------

    @cached_property
    def _var(self) -> VarFeatures:
        return VarFeatures(self._store, self._info, self._var_index_names)

    @cached_property
    def _obs(self) -> ObsFeatures | None:
        if OBS not in self._store.tables:
            return None
        return ObsFeatures(self._store, self._info, self._obs_index_names)

    @cached_property
    def gene_spaces(self) -> NDArray[np.int64]:
        """Gene space of each feature block, as the archive says or as the names of genes are."""
        return spaces_of(self._store, self._info)

    def var_features(self) -> VarFeatures:
        """Columns of var by cell."""
        return self._var

    def obs_features(self) -> ObsFeatures | None:
        """Columns of obs by cell; None where the archive has no obs."""
        return self._obs

    # -- neighbours ------------------------------------------------------------------------

    @property
    def neighbor_keys(self) -> list[str]:
        """Keys of the graphs of the archive; none where `load_neighbors` was False."""
        return [] if self._load_neighbors is False else graph_keys(self._store)

    @cached_property
    def graph(self) -> NeighborGraph | None:
        """The neighbour graph; None where there is none, or `load_neighbors` was False."""
        graphs = self.neighbor_keys
        key = key_of(graphs, self._neighbor_key)
        if key is None and graphs and self._load_neighbors:
            key = self._neighbor_key  # an error that says which there are
        return None if key is None else NeighborGraph(self._store, key, **self._sampling)

    @cached_property
    def _graphs(self) -> dict[str, NeighborGraph]:
        return {}

    def _graph_of(self, key: str) -> NeighborGraph | None:
        if key not in self._graphs:
            if key not in self.neighbor_keys:
                return None
            self._graphs[key] = NeighborGraph(self._store, key, **self._sampling)
        return self._graphs[key]

    @cached_property
    def _graph_sources(self) -> dict[str, Source]:
        return {}

    def _graph_source(self, key: str) -> Source:
        """Where the arrays of a graph are; errors as those of :meth:`neighbor_graph`."""
        if key not in self._graph_sources:
            self.neighbor_graph(key)
            prefix = graph_array(key, "")
            self._graph_sources[key] = source(self._store, prefix, is_sorted=False)
        return self._graph_sources[key]

    # -- the archive -----------------------------------------------------------------------

    @property
    def store(self) -> ArrayStore:
        """The storage backend's view of the archive."""
        return self._store

    @property
    def data(self) -> NDArray[Any]:
        """All stored values, read-only; mapped to memory where the backend can."""
        return self._whole(DATA)

    @property
    def col_index(self) -> NDArray[Any]:
        """Gene of every stored value, read-only."""
        return self._whole(INDICES)

    @property
    def row_index(self) -> NDArray[Any]:
        """n_obs + 1 offsets, read-only."""
        return self._whole(INDPTR)

    def _whole(self, name: str) -> NDArray[Any]:
        view = self._store.view(name)
        if view is None:
            view = self._store.read(name)
            view.flags.writeable = False
        return view

    @property
    def dtypes(self) -> dict[str, str]:
        """Types of the arrays by documented file name."""
        files = {"data.npy": DATA, "col_ptr.npy": INDICES, "row_ptr.npy": INDPTR}
        found = {file: self._store.spec(name).dtype.name for file, name in files.items()}
        if self.graph is not None:
            parts = {DATA: "values", INDICES: "indices", INDPTR: "indptr"}
            for part, name in parts.items():
                spec = self._store.spec(graph_array(self.graph.key, part))
                found[f"neighbor_{name}.npy"] = spec.dtype.name
        return found

    @property
    def metadata(self) -> dict[str, int]:
        """The documented ``{"num_rows": n_obs}``."""
        return {"num_rows": self.n_obs}

    def number_nonzero_values(self) -> int:
        """Stored values."""
        return self._store.spec(DATA).length

    @property
    def data_dtype(self) -> np.dtype[Any]:
        """Type of the stored values."""
        return self._store.spec(DATA).dtype

    @property
    def index_dtype(self) -> np.dtype[Any]:
        """Type of the stored column ids, unsigned."""
        return self._store.spec(INDICES).dtype

    @property
    def bytes_per_cell(self) -> float:
        """Bytes that the stored values and column ids of a cell take in memory, on average."""
        value_bytes = sum(self._store.spec(name).dtype.itemsize for name in (DATA, INDICES))
        return self.number_nonzero_values() * value_bytes / max(self.n_obs, 1)

    @property
    def cells_per_chunk(self) -> float:
        """Cells, on average, that are read as one whichever of them is asked for; below 1: none."""
        return self._store.chunk_length(DATA) * self.n_obs / max(self.number_nonzero_values(), 1)

    def will_need(self, rows: NDArray[np.int64]) -> None:
        """Tell that some cells will be read soon, so that the storage may begin; does not wait."""
        starts, stops = csr.plan(self._store, "", np.sort(rows))
        for name in (DATA, INDICES):
            self._store.will_need(name, starts, stops)

    def version(self) -> str:
        """Version of this package."""
        return __version__

    def to_anndata(self, rows: csr.Rows | None = None) -> AnnData:
        """The archive in memory as an AnnData: X, obs, var and whatever else it holds.

        Parameters
        ----------
        rows
            Cells to take, as for :meth:`read_rows`; None: all.

        Returns
        -------
        anndata.AnnData
            Genes in the order of the source. X and obsp are CSR matrices.

        Raises
        ------
        RowIndexError
            A row is out of range.
        SourceError
            The cells are of several feature blocks, which share no var.
        """
        from scdl.conversion.export import to_anndata

        at = None if rows is None else csr.positions(rows, self.n_obs)
        return to_anndata(self._store, at)

    def verify(self, *, deep: bool = False, progress: bool = False) -> VerificationReport:
        """Find out whether the archive that is at the path now is sound.

        Parameters
        ----------
        deep, progress
            As for :func:`scdl.verify`.

        Returns
        -------
        VerificationReport
            Its ``verdict``, and all that was found.
        """
        from scdl.verification.verify import verify

        return verify(self._store.path, deep=deep, progress=progress)

    def close(self) -> None:
        """Let go of files and memory."""
        self._views = []
        for name in ("_source", "_graph_sources"):
            self.__dict__.pop(name, None)
        self._store.close()

    def load(self, stored_path: Path) -> None:
        """Open another archive in place of this one."""
        given = path_of(stored_path, "the path of an archive")
        path = absolute(given)
        self._reopen(given)
        self.data_path = path

    def load_h5ad(self, anndata_path: Path) -> None:
        """Replace the archive by what an AnnData file holds, atomically.

        The options are those that the dataset was made with.

        Raises
        ------
        ArchiveLockedError, ArchiveChangedError
            As for :meth:`cast_data_to_dtype`.
        """
        from scdl.conversion.convert import reconvert

        self._check_whole()
        key = self._neighbor_key if self._load_neighbors else None
        options: Mapping[str, Any] = {**self._store.options, **self._options}
        reconvert(anndata_path, self._store, key, options)
        self._reopen(self._store.path)

    def save(self, output_path: Path | None = None, *, replace: bool = False) -> bool:
        """Make sure that the archive on disk is valid, or copy it.

        What is on disk is valid at any time; this rewrites an archive whose header another program
        left stale. With `output_path` a full copy goes there.

        Parameters
        ----------
        output_path
            Where the copy goes; not inside an archive.
        replace
            Whether to replace an archive that is at `output_path`, atomically.

        Returns
        -------
        bool
            True.

        Raises
        ------
        ArchiveExistsError
            Something is at `output_path`.
        ArchivePlaceError
            `output_path` is inside an archive, such as this one.
        ArchiveLockedError, ArchiveChangedError
            As for :meth:`cast_data_to_dtype`, in place.
        """
        if output_path is not None or self._store.stale:
            self._write([self._store], output_path, replace=replace)
        return True

    def cast_data_to_dtype(self, dtype: DTypeLike) -> None:
        """Store the values as another type, in place and atomically.

        Raises
        ------
        CastError
            The type cannot hold a value. The archive stays as it was.
        ArchiveLockedError
            Another process or thread is changing the archive.
        ArchiveChangedError
            Another one changed it since it was opened, or it was moved or replaced. What is changed
            is the archive that was opened, whatever its path leads to by now.
        """
        self._write([self._store], None, dtype=dtype)

    def concat(
        self,
        other_dataset: SingleCellDataset | Iterable[SingleCellDataset],
        extend_copy_size: int = 10_485_760,
        output_path: Path | None = None,
        destroy_on_copy: bool = False,
        *,
        backend: str | None = None,
        cell_names: CellNames = "keep",
        replace: bool = False,
        **options: Any,
    ) -> None:
        """Append the cells of other datasets: rows, feature blocks, obs, names and graphs.

        Parameters
        ----------
        other_dataset
            One dataset or several.
        extend_copy_size
            Bytes copied at once.
        output_path
            Where the result goes; default: in place, atomically.
        destroy_on_copy
            Whether to remove the archives of `other_dataset` after the result was compared with
            all that each of them has. What the result has no place for is an error before anything
            is copied.
        backend
            Storage backend of the result; default that of this archive.
        cell_names
            As for :meth:`scdl.SingleCellCollection.flatten`, of this archive and the others.
        replace
            Whether to replace an archive that is at `output_path`, atomically.
        **options
            Of the backend, such as ``compression``; default those of this archive.

        Raises
        ------
        CastError
            Integer data meets float data; ``cast_data_to_dtype`` makes them alike.
        ArchiveLockedError, ArchiveChangedError
            As for :meth:`cast_data_to_dtype`, in place; or of an archive that is to be removed.
        ArchiveExistsError, ArchivePlaceError
            As for :meth:`save`.
        CollectionError
            Names of cells are asked to be unique, and are not; or something of the archives that
            are to be removed has no place in the result, or is not there; they stay.
        """
        from scdl.conversion.cell_names import named
        from scdl.conversion.comparison import check_copied, check_removable, checking
        from scdl.conversion.concatenation import tables_of_cells
        from scdl.conversion.convert import check_storage

        own_backend = registry.of(self._store).name
        check_storage(backend or own_backend, options, SingleCellDataset.concat)
        others = _datasets(other_dataset)
        target = self._store.path if output_path is None else absolute(output_path)
        sources = {other.store.path: other.store for other in others}
        if destroy_on_copy:
            check_removable(list(sources.values()), [self._store.path, target])
        stores = [self._store, *(other.store for other in others)]
        tables = partial(tables_of_cells, stores)
        obs = named(tables, [store.path for store in stores], cell_names)
        start = self.n_obs
        own = self._store.options if backend in (None, own_backend) else {}
        self._write(
            stores,
            output_path,
            {"backend": backend or own_backend, **own, **options},
            replace=replace,
            chunk_bytes=extend_copy_size,
            obs=obs,
            lossless=destroy_on_copy,
        )
        if destroy_on_copy:
            with checking(target, is_new=output_path is not None and not replace) as result:
                for other, table in zip(others, obs[1:], strict=True):
                    check_copied(other.store, result, start, table)
                    start += other.n_obs
            for source in sources.values():
                source.remove()

    def _check_whole(self) -> None:
        """OptionError where another matrix was chosen, which is for reading."""
        if self._matrix is not None:
            raise OptionError(
                f"{self.data_path}: opened with matrix={self._matrix!r}, which is for reading; "
                "open the archive without to change or to copy it"
            )

    def _write(
        self,
        stores: Sequence[ArrayStore],
        output_path: Path | None,
        storage: Mapping[str, Any] | None = None,
        *,
        replace: bool = False,
        **how: Any,
    ) -> None:
        """Write archives one after the other, in place of this one or to a new path.

        Parameters
        ----------
        stores
            The archives.
        output_path
            Where; None: in place.
        storage
            The ``backend`` and its options; None: those of this archive.
        replace
            Whether an archive at `output_path` is replaced.
        **how
            For :func:`scdl.conversion.concatenation.concatenate`.
        """
        from scdl.conversion.concatenation import concatenate

        self._check_whole()
        own = self._store
        options = dict(storage or {"backend": registry.of(own).name, **own.options})
        target = registry.backend(options.pop("backend"))
        # Also by another name: then it is this archive that is replaced.
        in_place = output_path is None or (replace and _is_at(own, output_path))
        if in_place or output_path is None:
            begun = registry.rewrite(own, target, **options)
        else:
            begun = registry.create(output_path, target, replace=replace, **options)
        with begun as writer:
            concatenate(stores, writer, **how)
        if in_place:
            self._reopen(own.path)


def _is_at(store: ArrayStore, path: Path) -> bool:
    """Whether an archive stands at a path."""
    path = absolute(path)
    return path == store.path or os.path.realpath(path) == store.path


def _datasets(
    datasets: SingleCellDataset | Iterable[SingleCellDataset],
) -> list[SingleCellDataset]:
    """One dataset or several, as several."""
    # Cells of what reads can be gone through, too.
    several = isinstance(datasets, Iterable) and not isinstance(datasets, CellReader | str)
    given: list[Any] = [*datasets] if several else [datasets]  # type: ignore[misc]
    for one in given:
        if not isinstance(one, SingleCellDataset):
            raise CollectionError(
                f"expected archives that are open, as scdl.open gives them, found {one!r}; of a "
                "collection, flatten makes one archive"
            )
    return given
